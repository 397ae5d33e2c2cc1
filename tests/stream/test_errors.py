"""What goes wrong with a request is answered as JSON with the right status; nothing else is disturbed."""

import json
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest

from epp.extproc.events import BodyMode
from epp.extproc.session import PATIENCE_BYTES
from epp.pool import Endpoint
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import (
    BODY,
    CHAT,
    MODELS,
    destination,
    kind,
    request_body,
    request_headers,
    request_trailers,
    response_body,
    response_headers,
    set_headers,
)
from tests.stream.picker import LEAST_BUSY, LIMIT, Picker, config, until

FULL, BUFFERED, STREAMED, NONE = (
    BodyMode.FULL_DUPLEX_STREAMED,
    BodyMode.BUFFERED,
    BodyMode.STREAMED,
    BodyMode.NONE,
)
ROLE = [Endpoint("p", "10.0.0.1", 8000, labels={"llm-d.ai/role": "prefill"})]
LABELLED = config("decode-filter", "active-request-scorer", others=["recorder"])


def parsed_by(*parsers: str, text: str = LEAST_BUSY) -> str:
    """The configuration with these parsers alone."""
    refs = [{"pluginRef": name} for name in parsers]
    return json.dumps(json.loads(text) | {"requestHandler": {"parsers": refs}})


def nobody(because: str) -> str:
    return config("nobody", "active-request-scorer", nobody={"because": because})


BAD = b'{"model": "m", "messages": [}'
NO_MODEL = b'{"messages": [{"role": "user", "content": "hi"}]}'
NO_PROMPT = b'{"model": "m"}'
TOO_LONG_HEADERS = CHAT | {"content-length": str(LIMIT + 1)}
TOO_LONG = b'{"model": "m", "messages": "' + b"x" * LIMIT + b'"}'

# picker, body, headers; status, code, reason, words of the message
Case = tuple[dict[str, Any], bytes | None, dict[str, str], tuple[int, str, str | None, str]]
CASES: dict[str, Case] = {
    "invalid JSON": ({}, BAD, CHAT, (400, "BadRequest", None, "error unmarshaling")),
    "no model": ({}, NO_MODEL, CHAT, (400, "BadRequest", None, "model")),
    "no messages": ({}, NO_PROMPT, CHAT, (400, "BadRequest", None, "messages")),
    "no parser": (
        {"text": parsed_by("openai-parser")},
        BODY,
        CHAT | {":path": "/v1/xcompletions?a=1"},
        (400, "BadRequest", None, "no parser registered matching path suffix for: /v1/xcompletions"),
    ),
    "too long": ({}, TOO_LONG, TOO_LONG_HEADERS, (413, "PayloadTooLarge", None, str(LIMIT))),
    "far too long by its length": (
        {},
        None,
        CHAT | {"content-length": str(LIMIT + PATIENCE_BYTES + 1)},
        (413, "PayloadTooLarge", None, str(LIMIT)),
    ),
    "empty pool": (
        {"endpoints": 0},
        BODY,
        CHAT,
        (503, "ServiceUnavailable", "rejected-no-endpoints", "the pool is empty"),
    ),
    "empty pool, no body": (
        {"endpoints": 0},
        None,
        MODELS,
        (503, "ServiceUnavailable", "rejected-no-endpoints", "the pool is empty"),
    ),
    "no label fits": (
        {"text": LABELLED, "endpoints": ROLE},
        BODY,
        CHAT,
        (503, "ServiceUnavailable", "rejected-no-endpoints", "'decode-filter' has left none"),
    ),
    "no label fits, no body": (
        {"text": LABELLED, "endpoints": ROLE},
        None,
        MODELS,
        (503, "ServiceUnavailable", "rejected-no-endpoints", "'decode-filter' has left none"),
    ),
    "no label fits, as llm-d answers": (
        {"text": LABELLED, "endpoints": ROLE, "llm_d_status_codes": True},
        BODY,
        CHAT,
        (429, "ResourceExhausted", "rejected-saturated", "'decode-filter' has left none"),
    ),
    "all too busy": (
        {"text": nobody("load")},
        BODY,
        CHAT,
        (429, "ResourceExhausted", "rejected-saturated", "'nobody' has left none"),
    ),
    "all of the wrong kind": (
        {"text": nobody("kind")},
        BODY,
        CHAT,
        (503, "ServiceUnavailable", "rejected-no-endpoints", "'nobody' has left none"),
    ),
}


@pytest.mark.parametrize("mode", [FULL, BUFFERED, BodyMode.BUFFERED_PARTIAL], ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize(("options", "body", "headers", "expected"), CASES.values(), ids=CASES)
async def test_error(
    start: Start,
    mode: BodyMode,
    options: dict[str, Any],
    body: bytes | None,
    headers: dict[str, str],
    expected: tuple[int, str, str | None, str],
) -> None:
    """Status, OpenAI-style JSON with cause and request id, and the dropped reason where one applies; then OK."""
    status, code, reason, words = expected
    picker = await start(*filter(None, [options.get("text")]), **{k: v for k, v in options.items() if k != "text"})
    async with picker.stream() as stream:
        await stream.send(request_headers(mode, headers, end=headers[":method"] == "GET"))
        if body is not None:
            await stream.send(request_body(body))
        reply = await stream.receive()
        if kind(reply) == "request_headers":  # the empty one of the buffered modes
            reply = await stream.receive()
        assert await stream.rest() == []
    told = assert_refused(reply, status)
    assert told["request_id"] == "r-1"
    assert told["code"] == (reason or code)
    assert words in told["message"]
    assert set_headers(reply).get("x-llm-d-request-dropped-reason") == reason
    await picker.settled()
    (line,) = picker.log()
    assert (line["status"], line["ending"], line["dropped_reason"]) == (status, "refused", reason)
    assert line["error"] == told["message"]
    errors = picker.metrics.families["llm_d_epp_request_error_total"].children
    assert [(labels[-1], child.value) for labels, child in errors.items()] == [(code, 1)]
    kept = picker.decisions.find("r-1")
    assert (kept["error"]["status"], kept["destination"]) == (status, None)


def assert_refused(reply: Any, status: int) -> dict[str, Any]:
    """The error that an immediate response tells the client."""
    assert kind(reply) == "immediate_response"
    immediate = reply.immediate_response
    assert immediate.status.code == status
    assert set_headers(reply)["content-type"] == "application/json"
    told: dict[str, Any] = json.loads(immediate.body)
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "type", "param", "code", "request_id"}
    return told["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        pytest.param([request_headers(STREAMED, TOO_LONG_HEADERS)], 413, id="streamed, by its length"),
        pytest.param([request_headers(NONE, TOO_LONG_HEADERS)], 413, id="none, by its length"),
        pytest.param([request_headers(BUFFERED), request_trailers()], 400, id="buffered, trailers without a body"),
        pytest.param([request_headers(FULL), request_body(b"x" * LIMIT, end=False), request_body(b"x")], 413, id="sum"),
    ],
)
async def test_error_of_the_protocol(start: Start, messages: list[ProcessingRequest], status: int) -> None:
    """What is known before anything is read names the client's own request id, too."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.send(*messages)
        replies = await stream.rest()
    assert assert_refused(replies[-1], status)["request_id"] == "r-1"


async def test_a_streamed_body_that_grows_too_long(start: Start) -> None:
    """It was routed already; it is refused all the same, and what was charged is given back."""
    picker = await start()
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(STREAMED))
        assert picker.inflight() == {destination(reply): (1, 0)}
        await stream.ask(request_body(b"x" * LIMIT, end=False))
        assert_refused(await stream.ask(request_body(b"x")), 413)
        assert await stream.rest() == []
    await picker.settled()
    assert [entry[0] for entry in picker.heard()] == ["picked", "done"]


async def test_a_body_that_is_cut_off_is_scheduled_by_load(start: Start) -> None:
    """BUFFERED_PARTIAL: what can't be read because its end is missing is no error."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.ask(request_headers(BodyMode.BUFFERED_PARTIAL))
        assert destination(await stream.ask(request_body(BODY[:30], end=False)))
        await stream.rest()
    await picker.settled()
    assert picker.log()[0]["model"] is None


FAULTY = parsed_by(
    *("openai-parser", "odd-parser"),
    text=config("active-request-scorer", others=["odd-parser"], odd_parser={"at": "parse"}),
)


async def test_a_fault_of_ours_is_a_500_of_this_request_alone(start: Start) -> None:
    """The client is told, the log says why, and streams that are open beside it go on."""
    picker: Picker = await start(FAULTY)
    async with picker.stream() as other, picker.stream() as stream:
        await other.send(request_headers(), request_body(BODY[:20], end=False))
        await stream.send(request_headers(headers=CHAT | {":path": "/v1/odd"}), request_body(b"x"))
        told = assert_refused(await stream.receive(), 500)
        assert await stream.rest() == []
        assert (told["request_id"], told["code"], told["type"]) == ("r-1", "Internal", "server_error")
        assert "fault of the parser" not in told["message"]
        assert destination(await other.ask(request_body(BODY[20:])))
        await other.rest()
    (crash,) = picker.crashes
    assert isinstance(crash, KeyError)
    picker.crashes.clear()


ILLEGAL = {
    "a body before the headers": [request_body(BODY)],
    "headers twice": [request_headers(), request_headers()],
    "a body after its end": [request_headers(end=True), request_body(BODY)],
    "an empty message": [ProcessingRequest()],
    "a body mode that nobody knows": [request_headers().FromString(b"\x12\x00\x5a\x02\x08\x63")],
    "bytes that are no message": [b"\xff\xff\xff\xff"],
}


@pytest.mark.parametrize("messages", ILLEGAL.values(), ids=ILLEGAL)
async def test_a_message_that_cant_come_ends_the_stream_loudly(start: Start, messages: list[Any]) -> None:
    """INTERNAL and never OK, since under full duplex that would lose a body in silence; others go on."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.send(*messages)
        _, code, details = await stream.ended()
        assert code is grpc.StatusCode.INTERNAL
        assert details
    await until(lambda: not picker.streams(), "the stream is closed")
    codes = picker.metrics.families["llm_d_epp_extproc_streams_total"].children
    assert {labels: child.value for labels, child in codes.items()} == {("Internal",): 1}
    async with picker.stream() as stream:
        assert destination((await send_request(stream, FULL)).route)
        await stream.rest()


async def test_a_response_that_nobody_asked_for_passes(start: Start) -> None:
    """Envoy's own answer to a broken upload comes before the request is whole."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.send(request_headers(), request_body(BODY[:9], end=False))
        assert kind(await stream.ask(response_headers(408))) == "response_headers"
        assert kind(await stream.ask(response_body(b"too slow"))) == "response_body"
        assert await stream.rest() == []
    await picker.settled()
    (line,) = picker.log()
    assert (line["request_id"], line["status"], line["endpoint"], line["model"]) == ("r-1", 408, None, None)
    assert picker.heard() == []
