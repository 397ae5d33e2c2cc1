"""Engines that serve different models over real gRPC: who gets a request, 404, and the list of all models."""

import json

import msgspec
import pytest

from epp.keys import REPORTED, SERVED_MODELS
from epp.objects import Objects, Rule
from epp.pool import Endpoint
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import MODELS, MODES, destination, kind, request_body, request_headers, set_headers
from tests.stream.picker import Picker

each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())


async def ready(start: Start, *models: str) -> Picker:
    """A picker in front of engines with one model each."""
    picker = await start(endpoints=len(models))
    picker.pipeline.models = lambda: {model: msgspec.Raw(card(model)) for model in models}
    for slot, model in enumerate(models):
        picker.pool.write_set(picker.pool.slot_at(f"10.0.0.{slot + 1}:8000"), SERVED_MODELS, (REPORTED, model))
    return picker


def card(model: str) -> bytes:
    return b'{"id": "%b", "by": "its engine"}' % model.encode()


def chat(model: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()


async def test_a_request_goes_to_an_engine_that_has_its_model(start: Start) -> None:
    """Without a word of it in the configuration."""
    picker = await ready(start, "a", "b", "a")
    for model, expected in (("b", {"10.0.0.2:8000"}), ("a", {"10.0.0.1:8000", "10.0.0.3:8000"})):
        for _ in range(4):
            async with picker.stream() as stream:
                sent = await send_request(stream, MODES[2], chat(model))
                assert destination(sent.route) in expected
                assert await stream.rest() == []


async def test_a_model_that_nobody_serves(start: Start) -> None:
    """404 in OpenAI's form, with the nearest name; while all engines have the same, the engine says it itself."""
    picker = await ready(start, "llama-8b", "qwen")
    async with picker.stream() as stream:
        await stream.send(request_headers())
        reply = await stream.ask(request_body(chat("llama-7b")))
        assert kind(reply) == "immediate_response"
        assert reply.immediate_response.status.code == 404
        error = json.loads(reply.immediate_response.body)["error"]
        assert error["message"] == "The model `llama-7b` does not exist; did you mean `llama-8b`?"
        assert (error["type"], error["code"]) == ("not_found_error", "NotFound")
        assert await stream.rest() == []
    same = await ready(start, "llama-8b", "llama-8b")
    async with same.stream() as stream:
        assert destination((await send_request(stream, MODES[2], chat("llama-7b"))).route)
        assert await stream.rest() == []


async def test_a_model_whose_engine_is_out(start: Start) -> None:
    """503, as it will be back; a 404 would tell clients to give up."""
    picker = await ready(start, "llama-8b", "qwen")
    picker.pool.eligible[picker.pool.slot_at("10.0.0.2:8000")] = False
    async with picker.stream() as stream:
        await stream.send(request_headers())
        reply = await stream.ask(request_body(chat("qwen")))
        assert reply.immediate_response.status.code == 503
        assert b"served-model-filter" in reply.immediate_response.body
        assert await stream.rest() == []


@each_mode
async def test_the_list_of_models(start: Start, mode: object) -> None:
    """Answered by the picker where engines differ: no engine could."""
    picker = await ready(start, "a", "b")
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(mode, MODELS, end=True))
        assert reply.immediate_response.status.code == 200
        page = json.loads(reply.immediate_response.body)
        assert page == {"object": "list", "data": [json.loads(card("a")), json.loads(card("b"))]}
        assert set_headers(reply) == {"content-type": "application/json"}
        assert await stream.rest() == []
    await picker.settled()
    (entry,) = picker.log()
    assert (entry["status"], entry["ending"], entry["error"]) == (200, "answered", None)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        pytest.param("/v1/models/a", "a", id="its name"),
        pytest.param("/v1/models/org/b?x=1", "org/b", id="a name with a slash"),
        pytest.param("/openai/v1/models/org%2Fb/", "org/b", id="an escaped slash, and a prefix"),
    ],
)
async def test_one_model(start: Start, path: str, model: str) -> None:
    """In the words of an engine that has it."""
    picker = await ready(start, "a", "org/b")
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(MODES[2], MODELS | {":path": path}, end=True))
        assert (reply.immediate_response.status.code, reply.immediate_response.body) == (200, card(model))
        assert await stream.rest() == []


async def test_the_nearest_name_may_be_a_rewrites(start: Start) -> None:
    """A name that a rewrite offers for a model that is served is one that the client may have meant; others aren't."""
    picker = await ready(start, "llama-8b", "qwen")
    rules = [Rule("r", ("assistant",), ("llama-8b",), (None,)), Rule("s", ("narrator",), ("gone",), (None,))]
    picker.pool.objects = Objects.of({}, rules)
    for asked, hint in (("asistant", "did you mean `assistant`?"), ("narator", "there are: assistant, llama-8b, qwen")):
        async with picker.stream() as stream:
            await stream.send(request_headers())
            reply = await stream.ask(request_body(chat(asked)))
            message = json.loads(reply.immediate_response.body)["error"]["message"]
            assert message == f"The model `{asked}` does not exist; {hint}"
            assert await stream.rest() == []


async def test_one_model_that_nobody_serves(start: Start) -> None:
    """404 with the nearest name; but somebody who doesn't say what he serves may have it."""
    picker = await ready(start, "llama-8b", "qwen")
    line = MODELS | {":path": "/v1/models/llama-7b"}
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(MODES[2], line, end=True))
        assert reply.immediate_response.status.code == 404
        error = json.loads(reply.immediate_response.body)["error"]
        assert error["message"] == "The model `llama-7b` does not exist; did you mean `llama-8b`?"
        assert await stream.rest() == []
    picker.pool.add(Endpoint("silent", "10.0.0.9", 8000))
    async with picker.stream() as stream:
        assert destination(await stream.ask(request_headers(MODES[2], line, end=True)))
        assert await stream.rest() == []


async def test_names_that_rewrites_offer(start: Start) -> None:
    """They are models, too, described as what they stand for; whatever nobody serves isn't offered."""
    picker = await ready(start, "llama-8b", "llama-8b")
    rules = [Rule("r", ("chat", "talk"), ("gone", "llama-8b"), (1, 1)), Rule("s", ("lost",), ("gone",), (None,))]
    picker.pool.objects = Objects.of({}, [*rules, Rule("all", (), ("llama-8b",), (None,))])
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(MODES[2], MODELS, end=True))
        models = json.loads(reply.immediate_response.body)["data"]
        assert [model["id"] for model in models] == ["llama-8b", "chat", "talk"]
        assert {model["by"] for model in models} == {"its engine"}
        assert await stream.rest() == []
    for name, status in (("talk", 200), ("lost", 404)):
        async with picker.stream() as stream:
            reply = await stream.ask(request_headers(MODES[2], MODELS | {":path": f"/v1/models/{name}"}, end=True))
            assert reply.immediate_response.status.code == status
            assert await stream.rest() == []


OTHERS = {
    "engines agree": (["a", "a"], {}),
    "another path": (["a", "b"], {":path": "/v1/modelsx/a"}),
    "its end": (["a", "b"], {":path": "/xv1/models"}),
    "a model, and engines agree": (["a", "a"], {":path": "/v1/models/b"}),
    "another method": (["a", "b"], {":method": "DELETE"}),
}


@pytest.mark.parametrize(("models", "line"), OTHERS.values(), ids=OTHERS)
async def test_what_an_engine_answers(start: Start, models: list[str], line: dict[str, str]) -> None:
    picker = await ready(start, *models)
    async with picker.stream() as stream:
        assert destination(await stream.ask(request_headers(MODES[2], MODELS | line, end=True)))
        assert await stream.rest() == []
