"""The OpenAI parser's readers: usage out of JSON answers and event streams, however they are split."""

import gzip
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from epp_plugins.openai import OpenAIParser
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.formats.answers import RESPONSE_BYTES, EventUsage, JsonUsage
from epp.formats.openai import USAGE
from epp.plugin import Usage

CAPTURE = Path(__file__).parents[4] / "shared" / "data" / "vllm-0.32-stream.txt"


def read_events(pieces: Sequence[bytes]) -> Usage:
    reader = OpenAIParser().response(streaming=True)
    for number, piece in enumerate(pieces, 1):
        reader.feed(piece, end=number == len(pieces))
    return reader.usage


def read_json(*pieces: bytes) -> Usage:
    reader = OpenAIParser().response(streaming=False)
    for piece in pieces:
        reader.feed(piece, end=False)
    reader.feed(b"", end=True)
    return reader.usage


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise([0, *sorted(places), len(data)])]


CHAT_USAGE: dict[str, Any] = {"prompt_tokens": 97, "total_tokens": 137, "completion_tokens": 40}
CACHED = {"prompt_tokens_details": {"cached_tokens": 64}}
RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 8},
    "output_tokens": 7,
    "total_tokens": 16,
}


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"choices": [], "usage": CHAT_USAGE}, Usage(97, 40)),
        ({"choices": [], "usage": {**CHAT_USAGE, **CACHED}}, Usage(97, 40, 64)),
        ({"choices": [], "usage": {**CHAT_USAGE, "prompt_tokens_details": None}}, Usage(97, 40)),
        ({"output": [], "usage": RESPONSE_USAGE}, Usage(9, 7, 8)),
        ({"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5)),
        ({"choices": [{"usage": {"prompt_tokens": 1}}], "usage": CHAT_USAGE, "z": {"usage": {}}}, Usage(97, 40)),
        ({"choices": [{"message": {"content": '"usage":{"prompt_tokens":1}'}}]}, Usage()),
        ({"usage": None}, Usage()),
        ({"usage": {"prompt_tokens": "many"}}, Usage()),
        ({"error": {"message": "no"}}, Usage()),
        ([], Usage()),
    ],
    ids=lambda value: str(value)[:40],
)
def test_usage_of_a_json_answer(answer: Any, usage: Usage) -> None:
    data = json.dumps(answer).encode()
    assert read_json(data) == usage
    assert read_json(*cut(data, range(1, len(data)))) == usage


@pytest.mark.parametrize(
    "data",
    [b"", b"not JSON", b'{"usage":{"prompt_tokens":5}', gzip.compress(json.dumps({"usage": CHAT_USAGE}).encode())],
    ids=["empty", "text", "truncated", "gzip"],
)
def test_an_answer_that_cannot_be_read_has_no_usage(data: bytes) -> None:
    assert read_json(data) == Usage()
    assert read_events([data]) == Usage()


def test_usage_at_the_end_of_a_long_answer() -> None:
    """Of an answer beyond the bound, the end is searched."""
    filler = {"data": [{"embedding": "x" * 1000}] * 1100}
    data = json.dumps({**filler, "usage": {**CHAT_USAGE, **CACHED}, "kv_transfer_params": {"a": 1}}).encode()
    assert len(data) > RESPONSE_BYTES
    assert read_json(data) == Usage(97, 40, 64)
    assert read_json(*cut(data, range(60_000, len(data), 60_000))) == Usage(97, 40, 64)


@pytest.mark.parametrize(
    "end",
    [
        b'"usage":null,"z":{"prompt_tokens":5}}',
        b'"usage"}',
        b'"usage":{"prompt_tokens":',
        b'"usage":{"prompt_tokens":"x"}}',
        b"}",
    ],
    ids=["null", "text", "truncated", "odd", "absent"],
)
def test_no_usage_at_the_end_of_a_long_answer(end: bytes) -> None:
    assert read_json(b'{"a":"' + b"x" * RESPONSE_BYTES + b'",' + end) == Usage()


def test_what_waits_is_bounded() -> None:
    """Neither a long answer nor a line without end is kept whole."""
    for reader in (JsonUsage(USAGE), EventUsage(USAGE)):
        for _ in range(100):
            reader.feed(b"x" * 65_536, end=False)
        gathered = reader._gathered if isinstance(reader, JsonUsage) else reader._line
        assert len(gathered.take()) <= RESPONSE_BYTES


def test_events_after_a_line_beyond_the_bound_are_read() -> None:
    event = b'data: {"usage":{"prompt_tokens":5}}\n\n'
    pieces = [b"data: ", *[b"x" * 65_536] * 20, b'"usage"\n\n', event]
    assert read_events(pieces) == Usage(5)


def event(data: Any, end: str = "\n", space: str = " ", name: str = "") -> str:
    return f"{name}data:{space}{json.dumps(data, ensure_ascii=False)}{end}{end}"


def stream(end: str, space: str) -> bytes:
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in ("né", "你好", '"usage":{"prompt_tokens":1}')]
    nothing = {**chunks[0], "usage": None}
    first, last = {**chunks[0], "usage": {**CHAT_USAGE, "completion_tokens": 1}}, {"choices": [], "usage": CHAT_USAGE}
    events = [event(data, end, space) for data in (*chunks, nothing, first, last, *chunks)]
    return f": a comment{end}{''.join(events)}data: [DONE]{end}{end}".encode()


@pytest.mark.parametrize("space", [" ", ""], ids=["space", "no space"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_usage_of_an_event_stream_split_anywhere(end: str, space: str) -> None:
    """Usage is found whatever the line ends are, and wherever the stream is split, inside a character too."""
    data = stream(end, space)
    assert read_events(list(map(bytes, zip(data, strict=True)))) == Usage(97, 40)
    assert {read_events(cut(data, [place])) for place in range(len(data) + 1)} == {Usage(97, 40)}


@settings(deadline=None)
@given(st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 700), max_size=20))
def test_usage_of_an_event_stream_in_random_pieces(end: str, places: list[int]) -> None:
    data = stream(end, " ")
    assert read_events(cut(data, [min(place, len(data)) for place in places])) == Usage(97, 40)


@pytest.mark.parametrize(
    ("data", "usage"),
    [
        (event({"usage": CHAT_USAGE}).rstrip("\n"), Usage(97, 40)),
        (event({"usage": CHAT_USAGE}) + event({"usage": {**CHAT_USAGE, **CACHED}}), Usage(97, 40, 64)),
        (event({"usage": {**CHAT_USAGE, **CACHED}}) + event({"usage": {"completion_tokens": 41}}), Usage(97, 41, 64)),
        (event({"usage": CHAT_USAGE}) + 'data: {"usage":null}\n\n', Usage(97, 40)),
        (event({"usage": CHAT_USAGE}) + event({"usage": "odd"}), Usage(97, 40)),
        (event({"usage": CHAT_USAGE}) + 'data: {"usage":\n\n', Usage(97, 40)),
        (
            event({"type": "response.created", "response": {"usage": None}}, name="event: response.created\n")
            + event({"type": "response.completed", "response": {"usage": RESPONSE_USAGE}}, name="event: x\n"),
            Usage(9, 7, 8),
        ),
        (event({"response": {"tools": [{"usage": {"prompt_tokens": 1}}], "usage": RESPONSE_USAGE}}), Usage(9, 7, 8)),
        ("other: " + json.dumps({"usage": CHAT_USAGE}) + "\n\n", Usage()),
        ('data: "usage"\n\n', Usage()),
        ("", Usage()),
    ],
    ids=["no newline", "later", "merged", "null", "odd", "broken", "responses", "nested", "field", "text", "empty"],
)
def test_usage_of_events(data: str, usage: Usage) -> None:
    """The latest report counts, and an earlier one where the latest says nothing."""
    assert read_events([data.encode()]) == usage
    assert read_events([*cut(data.encode(), range(1, len(data))), b""]) == usage


def test_usage_of_a_real_stream() -> None:
    """The capture of vLLM's answer, split at every byte."""
    if not CAPTURE.exists():
        pytest.skip("no capture of a real vLLM: vllm-0.32-stream.txt is not in ../shared/data")
    data = CAPTURE.read_bytes()
    assert {read_events(cut(data, [place])) for place in range(len(data) + 1)} == {Usage(97, 40)}
    assert read_events(cut(data, range(1, len(data)))) == Usage(97, 40)
