"""The simulated vLLM over real HTTP: what it answers, how it streams, how it fails, what its page says."""

import asyncio
import base64
import io
import json
import re
import signal
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from epp.cli.engine import main, parser, read
from epp.engine.options import EngineOptions
from epp.engine.profiles import PROFILES
from epp.engine.server import EngineServer

DATA = Path(__file__).parents[4] / "shared" / "data"
DEADLINE = 10.0
FOREVER = 1e9  # as a time factor: the first step never ends
CHAT = "/v1/chat/completions"


def captured(name: str) -> str:
    """A capture of a real vLLM."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no captures of a real vLLM: {name} is not in ../shared/data")
    return path.read_text()


def hello(**options: Any) -> dict[str, Any]:
    """The body of a chat of 11 tokens and an answer of 4."""
    content = "Tell me about the sea, please."
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, "ignore_eos": True, **options}


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    async with EngineServer(EngineOptions(loras=("poet", "clerk"), max_model_len=2048)) as server:
        yield server


@pytest.fixture
async def http(engine: EngineServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with client(engine) as session:
        yield session


def client(engine: EngineServer) -> aiohttp.ClientSession:
    """A client whose every request has a deadline."""
    return aiohttp.ClientSession(f"http://{engine.address}", timeout=aiohttp.ClientTimeout(total=DEADLINE))


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """A request that must succeed, answered in one piece."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with http.post(path, json=body, headers=named) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def events(response: aiohttp.ClientResponse) -> list[str]:
    """The data of the server-sent events of a stream."""
    text = (await response.read()).decode()
    assert text.endswith("\n\n")
    assert all(event.startswith("data: ") for event in text.split("\n\n")[:-1])
    return [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]


async def families(http: aiohttp.ClientSession) -> dict[str, Metric]:
    """The engine's page, parsed by the reference implementation."""
    async with http.get("/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return {family.name: family for family in text_string_to_metric_families(await response.text())}


def values(family: Metric) -> dict[str, float]:
    """The samples of a family by name and labels other than those common to all."""
    common = {"engine", "model_name", "le"}
    return {
        ",".join([sample.name, *(v for k, v in sample.labels.items() if k not in common)]): sample.value
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_chat_in_one_piece(http: aiohttp.ClientSession) -> None:
    answer = await post(http, CHAT, hello(), x_request_id="my-id")
    assert (answer["id"], answer["object"], answer["model"]) == ("chatcmpl-my-id", "chat.completion", "llama-8b")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 4 * 4
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 4,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0, "multimodal_tokens": None},
        "completion_tokens_details": None,
    }


async def test_completion_in_one_piece(http: aiohttp.ClientSession) -> None:
    answer = await post(http, "/v1/completions", {"prompt": "x" * 40, "ignore_eos": True})
    assert answer["object"] == "text_completion"
    assert answer["usage"]["prompt_tokens"] == 10
    assert answer["usage"]["completion_tokens"] == 16, "OpenAI's default"
    assert len(answer["choices"][0]["text"]) == 16 * 4


async def test_the_same_prompt_gets_the_same_answer(http: aiohttp.ClientSession) -> None:
    first, second = [(await post(http, CHAT, hello()))["choices"] for _ in range(2)]
    assert first == second


async def test_a_stream_has_the_chunks_of_a_real_vllm(http: aiohttp.ClientSession) -> None:
    real = [event.removeprefix("data: ") for event in captured("vllm-0.32-stream.txt").split("\n\n") if event]
    async with http.post(CHAT, json=hello(stream=True, stream_options={"include_usage": True})) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        ours = await events(response)
    assert real[-1] == ours[-1] == "[DONE]"
    for theirs, mine in ((real[0], ours[0]), (real[1], ours[1]), (real[-3], ours[-3])):
        assert _shape(json.loads(mine)) == _shape(json.loads(theirs))
    usage = json.loads(ours[-2])
    details = usage["usage"].pop("prompt_tokens_details")
    assert _shape(usage) == _shape(json.loads(real[-2]))
    assert details == {"cached_tokens": 0, "created_cache_tokens": 0}


def _shape(value: Any) -> Any:
    """A JSON value's keys in order, and its types."""
    if isinstance(value, dict):
        return [(key, _shape(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return type(value).__name__


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_stream_adds_up_to_the_answer_in_one_piece(http: aiohttp.ClientSession, path: str) -> None:
    body = hello() if path == CHAT else {"prompt": "abcdefgh", "max_tokens": 5, "ignore_eos": True}
    (choice,) = (await post(http, path, body))["choices"]
    async with http.post(path, json={**body, "stream": True}) as response:
        *chunks, done = await events(response)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    streamed = "".join(c["delta"]["content"] if path == CHAT else c["text"] for c in choices)
    assert streamed == (choice["message"]["content"] if path == CHAT else choice["text"])
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert done == "[DONE]"


async def test_an_answer_that_ends_itself(http: aiohttp.ClientSession) -> None:
    """Without a limit the answer's own length holds; its last token is the end of the message and has no text."""
    answer = await post(http, CHAT, hello(max_tokens=None, ignore_eos=False))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert len(choice["message"]["content"]) == 4 * (answer["usage"]["completion_tokens"] - 1)


async def test_the_next_turn_finds_this_turn_in_the_cache(http: aiohttp.ClientSession) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x" * 200}]
    cached = []
    for _ in range(3):
        answer = await post(http, CHAT, {"messages": messages, "max_tokens": 32})
        used = answer["usage"]
        cached.append(used["prompt_tokens_details"]["cached_tokens"])
        computed = used["total_tokens"] - 1
        messages += [answer["choices"][0]["message"], {"role": "user", "content": "y" * 40}]
        expected = computed // 16 * 16
    answer = await post(http, CHAT, {"messages": messages, "max_tokens": 1})
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == expected
    assert cached[0] == 0 < cached[1] < cached[2]


async def test_headers_of_a_stream_come_before_the_first_token() -> None:
    async with (
        EngineServer(EngineOptions(time_factor=FOREVER)) as engine,
        client(engine) as http,
        http.post(CHAT, json=hello(stream=True)) as response,
    ):
        assert response.status == 200
        assert len(engine.model.running) == 1
        assert engine.metrics[0].generation_tokens == 0


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_goes_away_aborts_its_request(streamed: bool) -> None:
    async with EngineServer(EngineOptions(time_factor=FOREVER)) as engine, client(engine) as http:
        call = asyncio.create_task(_read(http, hello(stream=streamed)))
        await _until(http, running=1)
        call.cancel()
        await asyncio.wait_for(engine.drained(), DEADLINE)
        assert len(engine.model) == engine.model.pool.used == 0


async def _read(http: aiohttp.ClientSession, body: dict[str, Any]) -> bytes:
    async with http.post(CHAT, json=body) as response:
        return await response.read()


async def _until(http: aiohttp.ClientSession, running: int, waiting: int = 0) -> dict[str, Metric]:
    """Asks for the page until that many requests run and wait; returns that page."""
    expected = {"vllm:num_requests_running": running, "vllm:num_requests_waiting": waiting}
    async with asyncio.timeout(DEADLINE):
        while True:
            page = await families(http)
            if values(page["vllm:num_requests_running"]) | values(page["vllm:num_requests_waiting"]) == expected:
                return page


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        pytest.param(CHAT, b"{", 400, "truncated", id="not JSON"),
        pytest.param(CHAT, b"\xff", 400, "", id="not UTF-8"),
        pytest.param(CHAT, b'{"model": "llama-8b"}', 400, "messages", id="no messages"),
        pytest.param(CHAT, b'{"messages": []}', 400, "messages", id="empty messages"),
        pytest.param(CHAT, hello(model="gpt"), 404, "The model `gpt` does not exist", id="unknown model"),
        pytest.param(CHAT, hello(max_tokens=0), 400, "max_tokens", id="no tokens"),
        pytest.param(CHAT, hello(max_tokens="4"), 400, "max_tokens", id="tokens as text"),
        pytest.param(CHAT, hello(max_tokens=2038), 400, "2048", id="longer than the context"),
        pytest.param(CHAT, hello(max_completion_tokens=2038), 400, "2048", id="the same by its newer name"),
        pytest.param(CHAT, hello(n=0), 400, "$.n", id="no answers"),
        pytest.param(CHAT, hello(tools=[{"type": "function"}]), 400, "a function with a name", id="tool without name"),
        pytest.param(CHAT, hello(tool_choice="required"), 400, "there are no tools", id="a call without tools"),
        pytest.param(CHAT, hello(tool_choice="maybe"), 400, "'maybe'", id="unknown choice"),
        pytest.param("/tokenize", {}, 400, "prompt or messages", id="nothing to tokenize"),
        pytest.param("/tokenize", {"prompt": "x", "model": "gpt"}, 404, "gpt", id="unknown model to tokenize for"),
        pytest.param("/v1/completions", {"prompt": ""}, 400, "empty", id="empty prompt"),
        pytest.param("/v1/completions", {"prompt": [-1]}, 400, "token ids", id="negative token"),
        pytest.param("/v1/completions", {"prompt": [{"a": 1}]}, 400, "token ids", id="prompt of objects"),
        pytest.param("/v1/embeddings", {"input": "x" * 9000}, 400, "2048", id="input longer than the context"),
        pytest.param("/v1/embeddings", {"input": "x", "model": "gpt"}, 404, "gpt", id="unknown model to embed"),
    ],
)
async def test_refusals(
    http: aiohttp.ClientSession, path: str, body: dict[str, Any] | bytes, status: int, words: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(path, data=raw) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (status, status)
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    assert words in error["message"]


async def test_the_longest_request_that_fits(http: aiohttp.ClientSession) -> None:
    answer = await post(http, "/v1/completions", {"prompt": "x" * 2047 * 4, "max_tokens": 1})
    assert answer["usage"]["total_tokens"] == 2048


async def test_a_body_of_megabytes_is_read(http: aiohttp.ClientSession) -> None:
    body = io.BytesIO(json.dumps(hello(user="x" * 5_000_000)).encode())
    async with http.post(CHAT, data=body) as response:
        assert response.status == 200


async def test_token_ids_are_a_prompt(http: aiohttp.ClientSession) -> None:
    answer = await post(http, "/v1/completions", {"prompt": [[1, 2, 3]], "max_tokens": 1})
    assert answer["usage"]["prompt_tokens"] == 3


async def test_a_failure_asked_for_by_header(http: aiohttp.ClientSession) -> None:
    async with http.post(CHAT, json=hello(), headers={"x-sim-fail": "429"}) as response:
        assert response.status == 429
        assert (await response.json())["error"]["type"] == "RateLimitError"


@pytest.mark.parametrize("header", ["x-sim-fail", "x-sim-die-after", "x-sim-stall-after", "x-sim-delay"])
async def test_a_header_that_is_no_number_is_refused(http: aiohttp.ClientSession, header: str) -> None:
    async with http.post(CHAT, json=hello(), headers={header: "often"}) as response:
        assert response.status == 400
        assert header in (await response.json())["error"]["message"]


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_a_connection_cut_in_a_stream(http: aiohttp.ClientSession, engine: EngineServer, after: int) -> None:
    async with http.post(CHAT, json=hello(stream=True), headers={"x-sim-die-after": str(after)}) as response:
        received = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await _collect(response, received)
    assert received.count(b"data: ") == after
    await asyncio.wait_for(engine.drained(), DEADLINE)


async def _collect(response: aiohttp.ClientResponse, received: bytearray) -> None:
    async for piece in response.content.iter_any():
        received += piece


@pytest.mark.parametrize("after", [0, 2])
async def test_a_stream_that_stalls_keeps_its_connection(
    http: aiohttp.ClientSession, engine: EngineServer, after: int
) -> None:
    async with http.post(CHAT, json=hello(stream=True), headers={"x-sim-stall-after": str(after)}) as response:
        received = bytearray()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_collect(response, received), 0.3)
    assert received.count(b"data: ") == after
    await asyncio.wait_for(engine.drained(), DEADLINE)


async def test_a_delay_asked_for_by_header(http: aiohttp.ClientSession) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await post(http, CHAT, hello(), x_sim_delay="0.2")
    assert loop.time() - began >= 0.2


async def test_a_connection_cut_in_place_of_an_answer(http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(http, CHAT, hello(), x_sim_die_after="5")


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        (EngineOptions(), {200}),
        (EngineOptions(failure_rate=0.5), {200, 500}),
        (EngineOptions(failure_rate=1.0, failure_statuses=(429, 503)), {429, 503}),
    ],
)
async def test_failures_by_chance(options: EngineOptions, statuses: set[int]) -> None:
    seen = set()
    async with EngineServer(options) as engine, client(engine) as http:
        for _ in range(20):
            async with http.post(CHAT, json=hello(max_tokens=1)) as response:
                seen.add(response.status)
    assert seen == statuses


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(http: aiohttp.ClientSession, encoding: str) -> None:
    body = {"input": ["the sea", "the sun", "the sea"], "encoding_format": encoding}
    answer = await post(http, "/v1/embeddings", body)
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    vectors = [item["embedding"] for item in answer["data"]]
    if encoding == "base64":
        vectors = [struct.unpack("<384f", base64.b64decode(vector)) for vector in vectors]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1.0)


async def test_models(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models") as response:
        cards = (await response.json())["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("llama-8b", None),
        ("poet", "llama-8b"),
        ("clerk", "llama-8b"),
    ]


async def test_adapters_come_and_go(http: aiohttp.ClientSession) -> None:
    async def change(verb: str, body: dict[str, Any]) -> tuple[int, str]:
        async with http.post(f"/v1/{verb}_lora_adapter", json=body) as response:
            return response.status, await response.text()

    new = {"lora_name": "cook", "lora_path": "/adapters/cook"}
    assert await change("load", new) == (200, "Success: LoRA adapter 'cook' added successfully.")
    status, text = await change("load", new)
    assert (status, json.loads(text)["error"]["type"]) == (400, "InvalidUserInput")
    assert (await change("load", {**new, "load_inplace": True}))[0] == 200
    assert (await post(http, CHAT, hello(model="cook")))["model"] == "cook"
    async with http.get("/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["llama-8b", "poet", "clerk", "cook"]
    assert await change("unload", new) == (200, "Success: LoRA adapter 'cook' removed successfully.")
    async with http.post(CHAT, json=hello(model="cook")) as response:
        assert response.status == 404
    assert (await change("unload", new))[0] == 404
    assert (await change("load", {"lora_name": "cook"}))[0] == 400
    assert (await change("unload", {}))[0] == 400


async def test_an_engine_without_slots_takes_no_adapter() -> None:
    async with EngineServer(EngineOptions()) as engine, client(engine) as http:
        async with http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "b"}) as response:
            assert response.status == 400
            assert "--max-loras" in (await response.json())["error"]["message"]
        assert "vllm:lora_requests_info" not in await families(http)


async def test_tokens_of_a_prompt_and_of_a_chat(http: aiohttp.ClientSession) -> None:
    answer = await post(http, "/tokenize", {"prompt": "hello world!"})
    assert (answer["count"], answer["max_model_len"], answer["token_strs"]) == (3, 2048, None)
    assert len(answer["tokens"]) == 3
    assert await post(http, "/detokenize", {"tokens": answer["tokens"]}) == {"prompt": "hello world!"}
    chat = await post(http, "/tokenize", {"messages": hello()["messages"]})
    assert chat["count"] == (await post(http, CHAT, hello()))["usage"]["prompt_tokens"]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_several_answers_to_one_prompt(http: aiohttp.ClientSession, path: str) -> None:
    """They differ, the prompt counts once, and the stream has the same, in pieces by index."""
    body = hello(n=3) if path == CHAT else {"prompt": "x" * 44, "max_tokens": 4, "ignore_eos": True, "n": 3}
    answer = await post(http, path, body)
    texts = [choice["message"]["content"] if path == CHAT else choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer["usage"]["prompt_tokens"] == 11
    assert answer["usage"]["completion_tokens"] == 12
    async with http.post(path, json={**body, "stream": True}) as response:
        *chunks, done = await events(response)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    pieces = [(c["index"], c["delta"]["content"] if path == CHAT else c["text"]) for c in choices]
    assert ["".join(text for index, text in pieces if index == number) for number in range(3)] == texts
    assert [c["index"] for c in choices if c["finish_reason"] == "length"] == [0, 1, 2]
    assert done == "[DONE]"
    page = await families(http)
    assert values(page["vllm:request_params_n"])["vllm:request_params_n_sum"] == 6
    assert values(page["vllm:request_params_n"])["vllm:request_params_n_count"] == 2
    assert values(page["vllm:request_success"])["vllm:request_success_total,length"] == 6


async def test_several_prompts_in_one_completion(http: aiohttp.ClientSession) -> None:
    answer = await post(http, "/v1/completions", {"prompt": ["a" * 8, "b" * 12], "n": 2, "max_tokens": 1})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 5


async def test_token_ids_are_told_if_asked_for(http: aiohttp.ClientSession) -> None:
    """They are what the next prompt has to begin with, to find this one in the cache."""
    body = {"prompt": list(range(20)), "max_tokens": 13, "ignore_eos": True, "return_token_ids": True}
    (choice,) = (await post(http, "/v1/completions", body))["choices"]
    assert choice["prompt_token_ids"] == list(range(20))
    ids = choice["token_ids"]
    assert len(ids) == 13
    again = await post(http, "/v1/completions", {"prompt": [*range(20), *ids, 7], "max_tokens": 1})
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 32
    async with http.post("/v1/completions", json={**body, "stream": True}) as response:
        *chunks, _ = await events(response)
    assert [json.loads(chunk)["choices"][0]["token_ids"] for chunk in chunks] == [[token] for token in ids]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
        },
    },
}


async def test_a_chat_with_tools_gets_a_call_and_after_its_result_a_text(http: aiohttp.ClientSession) -> None:
    """The call comes back as the tokens that it was, so the next turn finds it in the cache."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather?"}]
    body = {"tools": [WEATHER], "max_tokens": 200}
    answer = await post(http, CHAT, {**body, "messages": messages})
    (choice,) = answer["choices"]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "weather"
    arguments = json.loads(call["function"]["arguments"])
    assert isinstance(arguments["city"], str)
    assert 1 <= arguments["days"] <= 7

    async with http.post(CHAT, json={**body, "messages": messages, "stream": True}) as response:
        *chunks, _ = await events(response)
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert {name: value for name, value in calls[0].items() if name != "function"} == {
        "id": call["id"],
        "type": "function",
        "index": 0,
    }
    assert "".join(c["function"]["arguments"] for c in calls) == call["function"]["arguments"]
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "tool_calls"

    result = {"role": "tool", "tool_call_id": call["id"], "content": "Sunny."}
    turn = [*messages, {"role": "assistant", "content": None, "tool_calls": message["tool_calls"]}, result]
    second = await post(http, CHAT, {**body, "messages": turn})
    assert second["choices"][0]["message"]["content"]
    assert "tool_calls" not in second["choices"][0]["message"]
    used, before = second["usage"], answer["usage"]
    computed = before["total_tokens"] - 1
    assert used["prompt_tokens_details"]["cached_tokens"] == computed // 16 * 16


async def test_every_piece_of_a_streamed_call_says_something(http: aiohttp.ClientSession) -> None:
    """No event has an empty delta, whether the call is short, long or cut."""
    bare = {"type": "function", "function": {"name": "now"}}
    for tools, max_tokens in (([bare], 200), ([WEATHER], 200), ([WEATHER], 8)):
        body = hello(tools=tools, max_tokens=max_tokens, stream=True)
        async with http.post(CHAT, json=body) as response:
            *chunks, _ = await events(response)
        choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
        assert all(choice["delta"] for choice in choices)
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == ("length" if max_tokens == 8 else "tool_calls")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("included", [False, True])
async def test_a_stop_string_ends_the_answer(http: aiohttp.ClientSession, path: str, included: bool) -> None:
    """In one piece and streamed; the tokens that make it up are counted, and it is shown only if asked for."""
    body = hello() if path == CHAT else {"prompt": "abcdefgh"}
    body |= {"max_tokens": 30, "ignore_eos": True}

    def said(choice: dict[str, Any]) -> str:
        return str(choice["message"]["content"] if path == CHAT else choice["text"])

    whole = said((await post(http, path, body))["choices"][0])
    stop = whole[22:27]
    at = whole.find(stop)
    wanted = whole[: at + len(stop) * included]
    body |= {"stop": ["never", stop], "include_stop_str_in_output": included}
    answer = await post(http, path, body)
    (choice,) = answer["choices"]
    assert (said(choice), choice["finish_reason"], choice["stop_reason"]) == (wanted, "stop", stop)
    assert answer["usage"]["completion_tokens"] == -(-(at + len(stop)) // 4)
    async with http.post(path, json=body | {"stream": True}) as response:
        *chunks, _ = await events(response)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert "".join(c["delta"]["content"] if path == CHAT else c["text"] for c in choices) == wanted
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)
    later = (await post(http, path, body | {"stop": stop, "min_tokens": 30}))["choices"][0]
    assert (said(later), later["finish_reason"]) == (whole, "length")


async def test_usage_in_every_chunk(http: aiohttp.ClientSession) -> None:
    """The usage so far, from the opening on."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = hello(max_tokens=3, ignore_eos=True, stream=True, stream_options=options)
    async with http.post(CHAT, json=body) as response:
        *chunks, _ = await events(response)
    used = [json.loads(chunk)["usage"] for chunk in chunks]
    assert [each["completion_tokens"] for each in used] == [0, 1, 2, 3, 3]
    assert all(each["total_tokens"] == used[0]["prompt_tokens"] + each["completion_tokens"] for each in used)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"stream_options": {"include_usage": True}}, "Stream options can only be defined when `stream=True`."),
        ({"stop": ["a", ""]}, "stop cannot contain an empty string."),
        ({"echo": True}, "echo is not modelled"),
    ],
    ids=["stream options", "stop", "echo"],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_options_that_are_refused(
    http: aiohttp.ClientSession, path: str, option: dict[str, Any], message: str
) -> None:
    """With the status and the words of vLLM where it refuses them too."""
    body = {**(hello() if path == CHAT else {"prompt": "x"}), **option}
    async with http.post(path, json=body) as response:
        assert response.status == 400
        assert message in (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    ("choice", "calls"),
    [("required", True), ("none", False), ({"type": "function", "function": {"name": "weather"}}, True)],
)
async def test_tool_choice(http: aiohttp.ClientSession, choice: Any, calls: bool) -> None:
    answer = await post(http, CHAT, hello(tools=[WEATHER], tool_choice=choice, max_tokens=200))
    assert ("tool_calls" in answer["choices"][0]["message"]) == calls


async def test_a_call_that_is_cut_has_a_part_of_its_arguments(http: aiohttp.ClientSession) -> None:
    answer = await post(http, CHAT, hello(tools=[WEATHER], tool_choice="required", max_tokens=8))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])


async def test_ranks_have_caches_and_queues_of_their_own() -> None:
    options = EngineOptions(data_parallel_size=2)
    body = {"prompt": "x" * 400, "max_tokens": 1}
    async with EngineServer(options) as engine, client(engine) as http:
        for rank in ("0", "1", "1"):
            await post(http, "/v1/completions", body, x_data_parallel_rank=rank)
        page = await families(http)
        async with http.post("/v1/completions", json=body, headers={"x-data-parallel-rank": "2"}) as response:
            assert response.status == 400
            assert "ranks 0, 1" in (await response.json())["error"]["message"]
    hits = {
        sample.labels["engine"]: sample.value
        for sample in page["vllm:prefix_cache_hits"].samples
        if sample.name.endswith("_total")
    }
    assert hits == {"0": 0, "1": 96}
    running = [sample.labels["engine"] for sample in page["vllm:num_requests_running"].samples]
    assert running == ["0", "1"]


async def test_a_request_that_names_no_rank_goes_to_the_one_with_the_least_to_do() -> None:
    async with EngineServer(EngineOptions(data_parallel_size=2, time_factor=FOREVER)) as engine, client(engine) as http:
        calls = [asyncio.create_task(_read(http, hello(stream=True))) for _ in range(4)]
        async with asyncio.timeout(DEADLINE):
            while sum(map(len, engine.models)) < 4:
                await families(http)
        assert [len(model) for model in engine.models] == [2, 2]
        for call in calls:
            call.cancel()
        await asyncio.wait_for(engine.drained(), DEADLINE)


async def test_the_prefix_cache_is_emptied_when_nobody_uses_it(http: aiohttp.ClientSession) -> None:
    body = {"prompt": "x" * 400, "max_tokens": 1}
    await post(http, "/v1/completions", body)
    assert await post(http, "/reset_prefix_cache", {}) == {"success": True}
    assert (await post(http, "/v1/completions", body))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_prefix_cache_is_not_emptied_while_it_is_used() -> None:
    async with EngineServer(EngineOptions(time_factor=FOREVER)) as engine, client(engine) as http:
        call = asyncio.create_task(_read(http, hello(stream=True)))
        await _until(http, running=1)
        async with http.post("/reset_prefix_cache") as response:
            assert response.status == 500
        call.cancel()
        await asyncio.wait_for(engine.drained(), DEADLINE)


async def test_a_connection_is_kept_for_many_requests(engine: EngineServer) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    trace = aiohttp.TraceConfig()
    created = []

    async def on_create(*args: object) -> None:
        created.append(args)

    trace.on_connection_create_end.append(on_create)
    async with aiohttp.ClientSession(f"http://{engine.address}", connector=connector, trace_configs=[trace]) as http:
        for streamed in (True, False, True):
            await _read(http, hello(stream=streamed))
    assert len(created) == 1


@pytest.mark.parametrize("capture", ["vllm-0.32-metrics-loaded.txt", "vllm-0.32-metrics-idle.txt"])
async def test_the_page_is_that_of_a_real_engine(capture: str) -> None:
    """Every family with its type, every sample with its labels, in the real order: only the values are ours."""
    real = list(text_string_to_metric_families(captured(capture)))
    async with EngineServer(EngineOptions(max_model_len=2048)) as engine, client(engine) as http:
        await post(http, CHAT, hello())
        ours = list((await families(http)).values())
    assert [family.name for family in ours] == [family.name for family in real]
    for mine, theirs in zip(ours, real, strict=True):
        assert mine.type == theirs.type, mine.name
        assert _series(mine) == _series(theirs)


def _series(family: Metric) -> list[tuple[str, ...]]:
    """The family's samples by name and labels, with the values of those labels that are the same everywhere."""
    own = {"le", "source", "finished_reason", "engine", "reason", "sleep_state", "generation", "handler", "method"}
    return sorted(
        (sample.name, *sorted(f"{k}={v if k in own else '*'}" for k, v in sample.labels.items()))
        for sample in family.samples
    )


async def test_every_line_of_the_page_has_the_form_of_the_real_ones(http: aiohttp.ClientSession) -> None:
    """A picker that reads the text by patterns of its own sees the same shapes: labels in order, floats."""
    await post(http, CHAT, hello())
    async with http.get("/metrics") as response:
        ours = await response.text()
    real = captured("vllm-0.32-metrics-loaded.txt")

    def shapes(page: str) -> dict[str, tuple[str, ...]]:
        lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[-+.e0-9]+", value) for _, _, value in lines)
        return {name.partition("{")[0]: tuple(re.findall(r'([a-z_]+)="', name)) for name, _, _ in lines}

    assert shapes(ours).items() - shapes(real).items() == {
        ("vllm:lora_requests_info", ("max_lora", "running_lora_adapters", "waiting_lora_adapters"))
    }, "served only with adapters, which the real one lacked"
    assert shapes(real).items() <= shapes(ours).items()


async def test_the_page_counts_what_happened(http: aiohttp.ClientSession) -> None:
    body = {"prompt": "x" * 4 * 40, "max_tokens": 3, "ignore_eos": True}
    for _ in range(2):
        await post(http, "/v1/completions", body)
    page = await families(http)
    assert values(page["vllm:prefix_cache_queries"]) == {"vllm:prefix_cache_queries_total": 80}
    assert values(page["vllm:prefix_cache_hits"]) == {"vllm:prefix_cache_hits_total": 32}
    assert values(page["vllm:prompt_tokens"]) == {"vllm:prompt_tokens_total": 80}
    assert values(page["vllm:generation_tokens"]) == {"vllm:generation_tokens_total": 6}
    by_source = values(page["vllm:prompt_tokens_by_source"])
    assert by_source["vllm:prompt_tokens_by_source_total,local_compute"] == 48
    assert by_source["vllm:prompt_tokens_by_source_total,local_cache_hit"] == 32
    assert values(page["vllm:request_success"])["vllm:request_success_total,length"] == 2
    cached = values(page["vllm:prompt_tokens_cached_by_source"])
    assert cached["vllm:prompt_tokens_cached_by_source_total,device"] == 32
    histograms = {
        name.removeprefix("vllm:"): values(family)
        for name, family in page.items()
        if family.type == "histogram" and name.startswith("vllm:")
    }
    counts = {name: samples[f"vllm:{name}_count"] for name, samples in histograms.items()}
    each = dict.fromkeys(histograms, 2.0) | {"inter_token_latency_seconds": 4.0, "iteration_tokens_total": 6.0}
    assert counts == each
    sums = {name: histograms[name][f"vllm:{name}_sum"] for name in SUMS}
    assert sums == SUMS


SUMS = {
    "request_prompt_tokens": 80,
    "request_generation_tokens": 6,
    "iteration_tokens_total": 40 + 8 + 6,
    "request_max_num_generation_tokens": 6,
    "request_params_n": 2,
    "request_params_max_tokens": 6,
    "request_num_preemptions": 0,
    "request_prefill_kv_computed_tokens": 48,
}


async def test_the_page_counts_what_http_brought(http: aiohttp.ClientSession) -> None:
    body = json.dumps(hello()).encode()
    async with http.post(CHAT, data=body) as response:
        answer = await response.read()
    async with http.post(CHAT, data=b"{") as response:
        assert response.status == 400
    async with http.get("/nowhere") as response:
        assert response.status == 404
    page = await families(http)
    assert values(page["http_requests"]) == {
        f"http_requests_total,{CHAT},POST,2xx": 1,
        f"http_requests_total,{CHAT},POST,4xx": 1,
        "http_requests_total,none,GET,4xx": 1,
    } | {name: value for name, value in values(page["http_requests"]).items() if "_created" in name}
    assert values(page["http_request_size_bytes"])[f"http_request_size_bytes_sum,{CHAT}"] == len(body) + 1
    assert values(page["http_response_size_bytes"])[f"http_response_size_bytes_sum,{CHAT}"] > len(answer)
    assert values(page["http_request_duration_highr_seconds"])["http_request_duration_highr_seconds_count"] == 3


async def test_the_page_shows_the_queues_and_the_cache() -> None:
    options = EngineOptions(time_factor=FOREVER, max_num_seqs=2, blocks=100, block_size=8, loras=('a"b',))
    async with EngineServer(options) as engine, client(engine) as http:
        calls = [asyncio.create_task(_read(http, hello(stream=True, model=m))) for m in ("llama-8b", 'a"b', 'a"b')]
        page = await _until(http, running=2, waiting=1)
        assert values(page["vllm:kv_cache_usage_perc"]) == {"vllm:kv_cache_usage_perc": 0.04}
        (sample,) = page["vllm:cache_config_info"].samples
        wanted = {"block_size": "8", "num_gpu_blocks": "100", "engine": "0", "kv_cache_size_tokens": "800"}
        assert sample.labels.items() >= wanted.items()
        by_reason = values(page["vllm:num_requests_waiting_by_reason"])
        assert by_reason == {
            "vllm:num_requests_waiting_by_reason,capacity": 1,
            "vllm:num_requests_waiting_by_reason,deferred": 0,
        }
        (sample,) = page["vllm:lora_requests_info"].samples
        assert sample.labels == {
            "max_lora": "1",
            "running_lora_adapters": 'a"b',
            "waiting_lora_adapters": 'a"b',
        }
        for call in calls:
            call.cancel()
        await asyncio.wait_for(engine.drained(), DEADLINE)


async def test_who_waits_for_a_slot_for_its_adapter_is_deferred() -> None:
    options = EngineOptions(time_factor=FOREVER, loras=("a", "b"), max_loras=1)
    async with EngineServer(options) as engine, client(engine) as http:
        calls = [asyncio.create_task(_read(http, hello(stream=True, model=model))) for model in ("a", "b")]
        page = await _until(http, running=1, waiting=1)
        assert values(page["vllm:num_requests_waiting_by_reason"])["vllm:num_requests_waiting_by_reason,capacity"] in (
            0,
            1,
        )
        for call in calls:
            call.cancel()
        await asyncio.wait_for(engine.drained(), DEADLINE)


async def test_closing_lets_running_requests_end() -> None:
    async with EngineServer(EngineOptions(grace=DEADLINE)) as engine, client(engine) as http:
        response = await http.post(CHAT, json=hello(stream=True, max_tokens=50))
        assert len(engine.model) == 1
        closing = asyncio.create_task(engine.__aexit__(None, None, None))
        assert (await events(response))[-1] == "[DONE]"
        await asyncio.wait_for(closing, DEADLINE)


@pytest.mark.parametrize("streamed", [True, False])
async def test_closing_cuts_what_does_not_end(streamed: bool) -> None:
    engine = EngineServer(EngineOptions(time_factor=FOREVER))
    async with client(await engine.__aenter__()) as http:
        call = asyncio.create_task(_status_and_body(http, hello(stream=streamed)))
        await _until(http, running=1)
        await asyncio.wait_for(engine.__aexit__(None, None, None), DEADLINE)
        if streamed:
            with pytest.raises(aiohttp.ClientPayloadError):
                await call
        else:
            assert (await call)[0] == 503


async def _status_and_body(http: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, bytes]:
    async with http.post(CHAT, json=body) as response:
        return response.status, await response.read()


async def test_health(http: aiohttp.ClientSession) -> None:
    async with http.get("/health") as response:
        assert response.status == 200


async def test_a_taken_port_is_an_error_that_leaves_nothing_behind(engine: EngineServer) -> None:
    port = int(engine.address.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        await EngineServer(EngineOptions(port=port)).__aenter__()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param(EngineOptions(profile="huge"), "no profile 'huge'; there are tiny", id="no such profile"),
        pytest.param(EngineOptions(data_parallel_size=0), "at least 1 rank", id="no ranks"),
        pytest.param(EngineOptions(blocks=4, max_model_len=65), "more than the 64 tokens", id="context too long"),
    ],
)
def test_options_that_cannot_be(options: EngineOptions, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EngineServer(options)


def test_a_small_cache_shortens_the_context() -> None:
    assert EngineServer(EngineOptions(blocks=10)).model.config.max_model_len == 160


async def test_the_command_runs_until_sigterm() -> None:
    arguments = ["-m", "epp", "engine", "--port", "0", "--model", "tiny-lama", "--blocks", "64", "--lora", "a", "b"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
            address = line.rpartition("http://")[2].strip()
            async with aiohttp.ClientSession(f"http://{address}") as http:
                assert (await post(http, CHAT, hello(model="b")))["model"] == "b"
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["--kv-events-config", "{"], "--kv-events-config: Input data was truncated", id="no JSON"),
        pytest.param(["--kv-events-config", '{"port": 1}'], "unknown field `port`", id="unknown field"),
        pytest.param(["--blocks", "1", "--max-model-len", "100"], "more than the 16 tokens", id="no room"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert words in capsys.readouterr().err


def test_the_command_gives_each_rank_a_port_if_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-parallel-size", "2", "--data-parallel-ports", "--port", "8000", "--lora", "a"]
    servers = read(parser().parse_args(arguments))
    assert [(one.port, one.ranks()) for one in servers] == [(8000, (0,)), (8001, (1,))]
    (one,) = read(parser().parse_args(["--data-parallel-size", "2"]))
    assert one.ranks() == (0, 1)


def test_the_command_lists_the_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} " in listed for name in PROFILES)
