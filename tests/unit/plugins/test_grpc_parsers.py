"""The gRPC parsers: vLLM's engine API and Vertex AI's predictions, in frames of five bytes, compressed or bare."""

import gzip
import json
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from epp_plugins.openai import OpenAIParser
from epp_plugins.vertexai import VertexAIParser
from epp_plugins.vllm_grpc import VllmGrpcParser
from epp_protos import vertex_prediction_pb2 as vertex
from epp_protos import vllm_engine_pb2 as engine
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.formats import grpc
from epp.plugin import BadRequest, Body, Usage

ROOT = Path(__file__).parents[3]
GENERATE = "/vllm.grpc.engine.VllmEngine/Generate"
EMBED = "/vllm.grpc.engine.VllmEngine/Embed"
CHAT = "/google.cloud.aiplatform.v1.PredictionService/ChatCompletions"
RAW = "/google.cloud.aiplatform.v1beta1.PredictionService/StreamRawPredict"
MESSAGES = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def frame(message: bytes, *, compressed: bool = False) -> bytes:
    data = gzip.compress(message) if compressed else message
    return bytes([compressed]) + len(data).to_bytes(4, "big") + data


def generate(*, extra: bytes = b"", **fields: Any) -> bytes:
    return engine.GenerateRequest(**fields).SerializeToString() + extra


def tokens(*ids: int, **fields: Any) -> bytes:
    return generate(tokenized=engine.TokenizedInput(input_ids=ids, original_text="t"), **fields)


def read(body: bytes, path: str = GENERATE) -> Body:
    return VllmGrpcParser().parse(path, {}, body)


def unknown(number: int, data: bytes) -> bytes:
    """A field of bytes that the subset of the messages doesn't have; its tag takes one byte."""
    return bytes([number << 3 | 2, len(data)]) + data


WAYS = {
    "framed": frame,
    "compressed": lambda message: frame(message, compressed=True),
    "bare": lambda message: message,
    "bare and compressed": gzip.compress,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_generate(way: Any) -> None:
    """Token ids stand in the prompt as they are, however the message is wrapped."""
    message = tokens(5, 6, request_id="r", stream=True, sampling_params=engine.SamplingParams(max_tokens=9))
    body = read(way(message))
    assert (body.model, body.stream, body.max_tokens) == ("", True, 9)
    assert body.prompts == (struct.pack("<2I", 5, 6),)


def test_other_inputs() -> None:
    assert read(frame(generate(text="hello"))).prompts == (b"hello",)
    embed = engine.EmbedRequest(tokenized=engine.TokenizedInput(input_ids=[5])).SerializeToString()
    assert read(frame(embed), EMBED).prompts == (struct.pack("<I", 5),)


def test_what_the_prompt_depends_on() -> None:
    """Not on the request's id or its limits; on what we don't know, since it may be a picture."""
    plain = read(frame(tokens(5))).prompts
    assert (
        read(frame(tokens(5, request_id="other", sampling_params=engine.SamplingParams(max_tokens=1)))).prompts == plain
    )
    pictures = {read(frame(tokens(5, extra=unknown(9, data)))).prompts for data in (b"one", b"two")}
    assert len(pictures | {plain}) == 3
    swapped = [unknown(9, b"one") + unknown(8, b"two"), unknown(8, b"two") + unknown(9, b"one")]
    assert len({read(frame(tokens(5, extra=extra))).prompts for extra in swapped}) == 1


TOO_LONG = frame(b"\0" * (grpc.INFLATED_BYTES + 1), compressed=True)
REFUSED = {
    "empty": b"",
    "no head": b"\0\0",
    "cut off": frame(tokens(5))[:-1],
    "two messages": frame(tokens(5)) * 2,
    "no gzip": b"\1" + frame(tokens(5))[1:],
    "gzip cut off": b"\1\0\0\0\x10" + gzip.compress(tokens(5))[:16],
    "a bomb": TOO_LONG,
    "no message": frame(b"\xff\xff"),
    "no input": frame(generate(request_id="r")),
    "no ids": frame(tokens()),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("path", [GENERATE, EMBED])
def test_what_no_engine_could_take(path: str, body: bytes) -> None:
    with pytest.raises(BadRequest):
        read(body, path)


def response(**fields: Any) -> bytes:
    return engine.GenerateResponse(**fields).SerializeToString()


ANSWERS = [
    response(chunk=engine.GenerateStreamChunk(prompt_tokens=10, completion_tokens=1, cached_tokens=8)),
    response(chunk=engine.GenerateStreamChunk(prompt_tokens=10, completion_tokens=2, cached_tokens=8)),
    response(complete=engine.GenerateComplete(prompt_tokens=10, completion_tokens=3, cached_tokens=8)),
]
FRAMES = b"".join(frame(answer, compressed=index == 1) for index, answer in enumerate(ANSWERS))


@given(st.lists(st.integers(0, len(FRAMES)), max_size=12))
@settings(deadline=None)
def test_usage_split_anywhere(places: list[int]) -> None:
    reader = VllmGrpcParser().response(streaming=False)
    for start, end in pairwise([0, *sorted(places), len(FRAMES)]):
        reader.feed(FRAMES[start:end], end=end == len(FRAMES))
    assert reader.usage == Usage(10, 3, 8)


def test_usage_of_bare_messages_of_embeddings_and_of_nonsense() -> None:
    reader = VllmGrpcParser().response(streaming=False)
    for answer in ANSWERS:
        reader.feed(answer, end=False)
    assert reader.usage == Usage(10, 3, 8)
    reader = VllmGrpcParser().response(streaming=False)
    complete = engine.EmbedResponse(complete=engine.EmbedComplete(prompt_tokens=4)).SerializeToString()
    reader.feed(frame(complete), end=True)
    assert reader.usage == Usage(4, None, 0)
    reader = VllmGrpcParser().response(streaming=False)
    reader.feed(frame(b"\xff\xff") + frame(b""), end=True)
    assert reader.usage == Usage()


def test_a_message_too_long_to_keep_is_skipped() -> None:
    """What comes after it is read."""
    reader = VllmGrpcParser().response(streaming=False)
    long = frame(b"x" * (2 << 20))
    for start in range(0, len(long), 60_000):
        reader.feed(long[start : start + 60_000], end=False)
        assert len(reader._messages._data) < 2**20 + 60_000
    reader.feed(FRAMES, end=True)
    assert reader.usage == Usage(10, 3, 8)


def wrapped(data: Any, path: str = CHAT, **options: bool) -> Body:
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    message = vertex.PredictRequest(endpoint="e", http_body=vertex.HttpBody(content_type="application/json", data=text))
    return VertexAIParser().parse(path, {}, frame(message.SerializeToString(), **options))


@pytest.mark.parametrize("path", [CHAT, RAW])
@pytest.mark.parametrize("compressed", [False, True])
def test_vertex_reads_the_openai_request_inside(path: str, compressed: bool) -> None:
    """It is the same request, and has the same prompt, as without its wrapping."""
    plain = OpenAIParser().parse("/v1/chat/completions", {}, json.dumps(MESSAGES).encode())
    body = wrapped(MESSAGES | {"stream": True, "max_tokens": 3}, path, compressed=compressed)
    assert (body.model, body.prompts, body.stream, body.max_tokens) == ("m", plain.prompts, True, 3)


def test_vertex_completions_and_requests_without_a_model() -> None:
    assert wrapped({"prompt": "hello"}, RAW).prompts == (b"hello",)
    assert wrapped({"prompt": '"messages"'}, RAW).prompts == (b'"messages"',)
    assert wrapped({"messages": MESSAGES["messages"]}).model == ""


@pytest.mark.parametrize("data", [b"", b"{", {"model": "m"}, [], b'"messages"'], ids=str)
@pytest.mark.parametrize("path", [CHAT, RAW])
def test_vertex_refuses(path: str, data: Any) -> None:
    with pytest.raises(BadRequest):
        wrapped(data, path)


EVENTS = b'data: {"choices":[]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'


@pytest.mark.parametrize(
    "pieces",
    [[EVENTS[:30], EVENTS[30:]], [EVENTS], [b'{"usage":{"prompt_tokens":5,"completion_tokens":1}}', EVENTS[22:]]],
    ids=["split event", "events", "json, then events"],
)
def test_vertex_usage(pieces: list[bytes]) -> None:
    """The bodies in the messages go on from one to the next."""
    data = b"".join(frame(vertex.HttpBody(data=piece).SerializeToString()) for piece in pieces)
    for size in (1, 13, len(data)):
        reader = VertexAIParser().response(streaming=False)
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size], end=start + size >= len(data))
        assert reader.usage == Usage(5, 2)


def test_vertex_usage_of_a_json_answer() -> None:
    reader = VertexAIParser().response(streaming=False)
    body = vertex.HttpBody(data=json.dumps({"usage": {"prompt_tokens": 5}}).encode())
    reader.feed(frame(body.SerializeToString()) + frame(b"\xff"), end=True)
    assert reader.usage == Usage(5)


def test_compiled_messages_are_those_of_the_sources(tmp_path: Path) -> None:
    """`make protos` has been run after the last change of protos/."""
    script = ROOT / "protos" / "compile"
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    kept = ROOT / "plugins" / "epp_protos"
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert made == {file.name: file.read_text() for file in kept.glob("*_pb2.py*")}
    assert len(made) == 2 * len(list((ROOT / "protos").glob("*.proto")))
