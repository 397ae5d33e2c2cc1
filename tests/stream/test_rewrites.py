"""Model rewrites and objectives over real gRPC: the engine's name goes out, the client's comes back."""

import json
from typing import Any

import pytest

from epp.extproc.events import BodyMode
from epp.objects import Objects, Rule
from tests.stream.conftest import Start
from tests.stream.envoy import send_response
from tests.stream.messages import (
    CHAT,
    DESTINATION,
    kind,
    piece,
    pieces,
    removed,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
    set_headers,
)
from tests.stream.picker import Picker, Stream, until

FULL, BUFFERED, PARTIAL = BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL
CHANGING = (FULL, BUFFERED, PARTIAL)
FIXED = (BodyMode.STREAMED, BodyMode.NONE, BodyMode.GRPC)
BODY = (
    b'{ "seed":9007199254740993, "model" : "chat",\n'
    b'"messages": [{"role": "user", "content": "\\"model\\": \\"chat\\""}] }'
)
CHANGED = BODY.replace(b'"chat"', b'"llama-3"', 1)
OBJECTS = Objects.of({"batch": -5}, [Rule("canary", ("chat",), ("llama-3",), (None,))])
ANSWER = b'{"id":"1","model" : "llama-3","choices":[{"message":{"content":"\\"model\\":\\"llama-3\\""}}]}'
EVENTS = b'data: {"id":"1","model":"llama-3","choices":[{"delta":{"content":"llama-3"}}]}\n\n' * 3 + b"data: [DONE]\n\n"
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}

ids = {"ids": lambda value: value.name.lower() if isinstance(value, BodyMode) else None}


async def sent(stream: Stream, mode: BodyMode, body: bytes = BODY, **headers: str) -> tuple[bytes, dict[str, str]]:
    """What reaches the engine: the body, and the headers that are set."""
    head = CHAT | {"content-length": str(len(body))} | {name.replace("_", "-"): text for name, text in headers.items()}
    await stream.send(request_headers(mode, head))
    if mode in (FULL, BodyMode.GRPC):
        for data, last in pieces(body, 70):
            await stream.send(request_body(data, end=last))
        route = await stream.receive()
        back = b""
        while True:
            data, last = piece(await stream.receive())
            back += data
            if last:
                return back, set_headers(route)
    route = await stream.receive()
    if mode in (BUFFERED, PARTIAL):
        route = await stream.ask(request_body(body))
        mutation = route.request_body.response.body_mutation
        return mutation.body if mutation.HasField("body") else body, set_headers(route)
    return body, set_headers(route)


async def ready(start: Start, objects: Objects = OBJECTS, **options: Any) -> Picker:
    picker = await start(**options)
    picker.pool.objects = objects
    return picker


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("mode", CHANGING, **ids)
async def test_the_engine_gets_its_own_name(start: Start, mode: BodyMode, path: str) -> None:
    """The body is the client's, byte for byte but for the name; its length is corrected where Envoy doesn't."""
    picker = await ready(start)
    async with picker.stream() as stream:
        body, headers = await sent(stream, mode, **{":path": path})
        assert body == CHANGED
        assert headers.get("content-length") == (None if mode is FULL else str(len(CHANGED)))
        assert await stream.rest() == []
    await picker.settled()
    (entry,) = picker.log()
    assert (entry["model"], entry["target_model"]) == ("chat", "llama-3")
    counts = picker.metrics.families["llm_d_epp_model_rewrite_decisions_total"].children
    assert {labels: child.value for labels, child in counts.items()} == {("canary", "chat", "llama-3"): 1}
    totals = picker.metrics.families["llm_d_epp_request_total"].children
    assert list(totals) == [("chat", "llama-3", "default-flow", "0")]


@pytest.mark.parametrize("mode", FIXED, **ids)
async def test_modes_that_do_not_let_us(start: Start, mode: BodyMode) -> None:
    """The request passes as it is, and no rewrite is counted."""
    picker = await ready(start)
    async with picker.stream() as stream:
        body, headers = await sent(stream, mode)
        assert (body, "content-length" in headers) == (BODY, False)
        assert DESTINATION in headers
        stream.cancel()
    await picker.settled()
    assert not picker.metrics.families["llm_d_epp_model_rewrite_decisions_total"].children


async def test_a_body_without_a_length_gets_none(start: Start) -> None:
    """A chunked request stays one."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await stream.ask(request_headers(BUFFERED, CHAT))
        route = await stream.ask(request_body(BODY))
        assert route.request_body.response.body_mutation.body == CHANGED
        assert "content-length" not in set_headers(route)


ASKED = "x-llm-d-model-name-rewrite"
HEADERS = {
    "header": (Objects(), {ASKED: "x"}, "x"),
    "old header": (Objects(), {"x-gateway-model-name-rewrite": "x"}, "x"),
    "both headers": (Objects(), {ASKED: "x", "x-gateway-model-name-rewrite": "y"}, "x"),
    "a rule beats the header": (OBJECTS, {ASKED: "x"}, "llama-3"),
    "the header where no rule fits": (Objects.of({}, [Rule("r", ("other",), ("y",), (None,))]), {ASKED: "x"}, "x"),
    "a rule for all": (Objects.of({}, [Rule("r", (), ("y",), (None,))]), {}, "y"),
    "the same name": (Objects.of({}, [Rule("r", (), ("chat",), (None,))]), {}, "chat"),
    "nothing": (Objects(), {}, "chat"),
}


@pytest.mark.parametrize(("objects", "headers", "target"), HEADERS.values(), ids=HEADERS)
async def test_who_says_which_model(start: Start, objects: Objects, headers: dict[str, str], target: str) -> None:
    picker = await ready(start, objects)
    async with picker.stream() as stream:
        body, _ = await sent(stream, FULL, **headers)
        assert body == BODY.replace(b'"chat"', json.dumps(target).encode(), 1)
        assert await stream.rest() == []


async def test_a_rule_for_all_names_a_model_where_the_client_names_none(start: Start) -> None:
    """In a format that needs no model; the answer keeps the engine's name, since the client has no other."""
    picker = await ready(start, Objects.of({}, [Rule("r", (), ("llama-3",), (None,))]))
    async with picker.stream() as stream:
        body, _ = await sent(stream, FULL, b'{"token_ids":[1]}', **{":path": "/inference/v1/generate"})
        assert body == b'{"model":"llama-3","token_ids":[1]}'
        answer = await send_response(stream, FULL, ANSWER)
        assert answer.body == ANSWER
        assert await stream.rest() == []


@pytest.mark.parametrize(("name", "priority"), [("batch", -5), ("unknown", 0), ("", 0)])
async def test_an_objective_has_a_priority(start: Start, name: str, priority: int) -> None:
    """What objects say counts for plugins, and in the metrics' labels; an unknown objective is 0."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await sent(stream, FULL, **{"x-llm-d-inference-objective": name})
        assert await stream.rest() == []
    await picker.settled()
    totals = picker.metrics.families["llm_d_epp_request_total"].children
    assert [labels[3] for labels in totals] == [str(priority)]


async def answered(stream: Stream, mode: BodyMode, body: bytes, size: int, content_type: str) -> bytes:
    """What reaches the client of a response in pieces of that size."""
    head = {"content-type": content_type} | ({"content-length": str(len(body))} if mode is BUFFERED else {})
    await stream.ask(response_headers(headers=head))
    back = b""
    for data, last in pieces(body, size):
        await stream.send(response_body(data, end=last))
        if mode is FULL:
            continue
        reply = await stream.receive()
        mutation = reply.response_body.response.body_mutation
        back += mutation.body if mutation.HasField("body") else data
        if mode is BUFFERED and mutation.HasField("body"):
            assert set_headers(reply) == {"content-length": str(len(mutation.body))}
    while mode is FULL:
        data, last = piece(await stream.receive())
        back += data
        if last:
            break
    return back


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("mode", [FULL, BodyMode.STREAMED], **ids)
@pytest.mark.parametrize(
    ("body", "content_type"), [(ANSWER, "application/json"), (EVENTS, "text/event-stream; charset=utf-8")]
)
async def test_the_client_gets_its_own_name_back(
    start: Start, mode: BodyMode, size: int, body: bytes, content_type: str
) -> None:
    """At the one place of the name in the answer or in each event, wherever the pieces are cut; nowhere in the text."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await stream.send(request_headers(BUFFERED, CHAT, response_mode=mode), request_body(BODY))
        await stream.receive()
        await stream.receive()
        back = await answered(stream, mode, body, size, content_type)
        assert back == body.replace(b'"model" : "llama-3"', b'"model" : "chat"').replace(
            b'"model":"llama-3"', b'"model":"chat"'
        )
        assert await stream.rest() == []


async def test_a_buffered_answer(start: Start) -> None:
    """Its length is corrected."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await stream.send(request_headers(BUFFERED, CHAT), request_body(BODY))
        await stream.receive()
        await stream.receive()
        back = await answered(stream, BUFFERED, ANSWER, len(ANSWER), "application/json")
        assert back == ANSWER.replace(b'"model" : "llama-3"', b'"model" : "chat"')
        assert await stream.rest() == []


@pytest.mark.parametrize(
    ("objects", "head", "end", "asked"),
    [
        (OBJECTS, {}, False, True),
        (OBJECTS, {"content-encoding": "gzip"}, False, False),
        (OBJECTS, {}, True, False),
        (Objects(), {}, False, False),
    ],
    ids=["to rename", "encoded", "no body", "no rewrite"],
)
async def test_a_body_that_is_not_shown_is_asked_for(
    start: Start, objects: Objects, head: dict[str, str], end: bool, asked: bool
) -> None:
    """Where the response's body doesn't come to us and a name has to be changed in it, the mode is overridden."""
    picker = await ready(start, objects)
    async with picker.stream() as stream:
        await stream.send(request_headers(BUFFERED, CHAT, response_mode=BodyMode.NONE), request_body(BODY))
        await stream.receive()
        await stream.receive()
        reply = await stream.ask(response_headers(headers=head, end=end))
        assert reply.HasField("mode_override") == asked
        assert ("content-length" in removed(reply)) == asked
        if asked:
            assert reply.mode_override.response_body_mode == BodyMode.STREAMED
            mutation = (await stream.ask(response_body(ANSWER))).response_body.response.body_mutation
            assert mutation.body == ANSWER.replace(b'"model" : "llama-3"', b'"model" : "chat"')
        assert await stream.rest() == []


@pytest.mark.parametrize("head", [{"content-encoding": "gzip"}, {}], ids=["encoded", "another name"])
async def test_answers_that_are_left_alone(start: Start, head: dict[str, str]) -> None:
    """One that can't be read, and one that names another model."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await sent(stream, FULL)
        body = ANSWER if head else ANSWER.replace(b"llama-3", b"llama-4")
        answer = await send_response(stream, FULL, body, head=response_headers(headers=head))
        assert answer.body == body
        assert await stream.rest() == []


async def test_what_is_held_back_comes_before_the_trailers(start: Start) -> None:
    """An answer that is cut off in the middle of the name loses nothing."""
    picker = await ready(start)
    async with picker.stream() as stream:
        await sent(stream, FULL)
        await stream.ask(response_headers())
        assert piece(await stream.ask(response_body(b'{"model":"lla', end=False))) == (b'{"model":', False)
        assert piece(await stream.ask(response_trailers())) == (b'"lla', False)
        assert kind(await stream.receive()) == "response_trailers"
        assert await stream.rest() == []
    await until(lambda: not picker.crashes, "nothing has failed")
