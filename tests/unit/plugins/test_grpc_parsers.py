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
from epp_plugins.vllm_http import VllmHttpParser
from epp_protos import vertex_prediction_pb2 as vertex
from epp_protos import vllm_engine_pb2 as engine
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.formats import grpc
from epp.formats.text import MEDIA_BYTES
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


def placed(*hashes: str, at: int = 1, **fields: Any) -> bytes:
    """Media of two tokens each, one after the other."""
    ranges = [engine.PlaceholderRange(offset=at + 2 * number, length=2) for number in range(len(hashes))]
    return engine.MultimodalInputs(mm_placeholders=ranges, mm_hashes=hashes, **fields).SerializeToString()


def as_http(**features: Any) -> Body:
    body = {"token_ids": [5, 9, 9, 6], "features": features}
    return VllmHttpParser().parse("/inference/v1/generate", {}, json.dumps(body).encode())


def test_hashes_take_the_place_of_the_ids() -> None:
    """A picture is what it shows, whatever id stands for it, and the same as over HTTP."""
    body = read(frame(tokens(5, 9, 9, 6, mm_inputs=placed("cat"))))
    assert body.prompts[0][:4] == struct.pack("<I", 5)
    assert body.prompts[0][-4:] == struct.pack("<I", 6)
    http = as_http(mm_hashes={"image": ["cat"]}, mm_placeholders={"image": [{"offset": 1, "length": 2}]})
    assert (body.prompts, body.media) == (http.prompts, http.media)
    assert read(frame(tokens(5, 8, 8, 6, mm_inputs=placed("cat")))).prompts == body.prompts
    assert read(frame(tokens(5, 9, 9, 6, mm_inputs=placed("dog")))).prompts != body.prompts
    assert read(frame(tokens(5, 9, 9, 6, mm_inputs=placed("cat", modality=engine.VIDEO)))).media != body.media


MEDIA = {
    "in ids": ({"mm_inputs": placed("a", "b")}, 2),
    "of two kinds": ({"mm_inputs": placed("a"), "extra_mm_inputs": [placed("a", at=3, modality=engine.VIDEO)]}, 2),
    "as pictures": ({"mm_inputs": engine.MultimodalInputs(image_data=[b"1", b"2", b"3"]).SerializeToString()}, 3),
    "as tensors": ({"mm_inputs": unknown(2, b"pixels")}, 1),
    "to be fetched": ({"media_refs": engine.MediaRefs(items=[engine.MediaRef(url="http://a/b.png")])}, 1),
}


@pytest.mark.parametrize(("fields", "count"), MEDIA.values(), ids=MEDIA)
def test_media(fields: dict[str, Any], count: int) -> None:
    """Each has its digest, and the prompt depends on it, be it of token ids or text."""
    body = read(frame(tokens(5, 9, 9, 8, 8, 6, **fields)))
    assert len(body.media) == len(set(body.media)) == count
    assert body.prompts != read(frame(tokens(5, 9, 9, 8, 8, 6))).prompts
    written = read(frame(generate(text="hello", **fields)))
    assert sorted(written.media) == sorted(body.media)
    assert written.prompts[0].endswith(b"hello")
    assert len(written.prompts[0]) == len(b"hello") + count * (1 + MEDIA_BYTES)


def test_where_kv_comes_from_is_no_part_of_the_prompt() -> None:
    """A request that has been prefilled elsewhere has the same prompt."""
    fetched = tokens(5, kv_transfer_params=b"host", kv_transfer_params_json='{"remote_host": "h"}')
    assert read(frame(fetched)).prompts == read(frame(tokens(5))).prompts


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
    """By the name of its field a message, or the request's id."""
    data = {name: value if isinstance(value, bytes) else value.SerializeToString() for name, value in fields.items()}
    return engine.Answer(**data).SerializeToString()


CHUNKS = [engine.GenerateStreamChunk(prompt_tokens=10, completion_tokens=n, cached_tokens=8) for n in (1, 2)]
COMPLETE = engine.GenerateComplete(prompt_tokens=10, completion_tokens=3, cached_tokens=8)
ANSWERS = [*(response(first=chunk) for chunk in CHUNKS), response(second=COMPLETE)]
OLD = [*(response(first=b"id", second=chunk) for chunk in CHUNKS), response(first=b"id", third=COMPLETE)]
FRAMES = b"".join(frame(answer, compressed=index == 1) for index, answer in enumerate(ANSWERS))


@given(st.lists(st.integers(0, len(FRAMES)), max_size=12))
@settings(deadline=None)
def test_usage_split_anywhere(places: list[int]) -> None:
    reader = VllmGrpcParser().response(streaming=False)
    for start, end in pairwise([0, *sorted(places), len(FRAMES)]):
        reader.feed(FRAMES[start:end], end=end == len(FRAMES))
    assert reader.usage == Usage(10, 3, 8)


@pytest.mark.parametrize("answers", [ANSWERS, OLD], ids=["now", "vLLM's first releases"])
def test_usage_of_bare_messages(answers: list[bytes]) -> None:
    reader = VllmGrpcParser().response(streaming=False)
    for answer in answers[:2]:
        reader.feed(answer, end=False)
    assert reader.usage == Usage(10, 2, 8)
    reader.feed(answers[2], end=True)
    assert reader.usage == Usage(10, 3, 8)


EMBEDDED = {
    # a vector of two floats in front, of which the first reads like a message
    "now": unknown(1, struct.pack("<2f", 1.0, -2.5)) + engine.EmbedResponse(prompt_tokens=4).SerializeToString(),
    "vLLM's first releases": response(first=b"id", second=engine.GenerateStreamChunk(prompt_tokens=4)),
}


@pytest.mark.parametrize("answer", EMBEDDED.values(), ids=EMBEDDED)
def test_usage_of_embeddings(answer: bytes) -> None:
    reader = VllmGrpcParser().response(streaming=False)
    reader.feed(frame(answer), end=True)
    assert reader.usage == Usage(4, None, 0)


def test_usage_of_nonsense() -> None:
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
