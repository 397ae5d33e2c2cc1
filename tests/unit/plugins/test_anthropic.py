"""The Anthropic parser: what it reads, what a prompt's bytes depend on, what it refuses, the usage of answers."""

import json
from itertools import pairwise
from typing import Any

import pytest
from epp_plugins.anthropic import AnthropicParser
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.plugin import BadRequest, Body, Usage

PATH = "/v1/messages"
USER = {"role": "user", "content": "hello"}
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
BILLING = {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=00001;"}


def parse(path: str = PATH, **fields: Any) -> Body:
    return AnthropicParser().parse(path, {}, json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def prompt(**fields: Any) -> bytes:
    (found,) = parse(**fields).prompts
    return found


def test_what_is_read() -> None:
    """Model, stream flag, token limit and cache salt stand beside the prompt."""
    body = parse(stream=True, max_tokens=100, cache_salt="s")
    assert (body.model, body.stream, body.max_tokens, body.cache_salt) == ("m", True, 100, "s")
    assert b"hello" in body.prompts[0]


def test_counting_tokens_has_no_prompt() -> None:
    """Nothing is cached or generated; its model still says who may serve it."""
    body = parse("/v1/messages/count_tokens")
    assert (body.model, body.prompts) == ("m", ())


SAME = {
    "metadata": {"metadata": {"user_id": "u"}},
    "sampling": {"temperature": 0.5, "max_tokens": 7, "stop_sequences": ["x"]},
    "one block": {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
    "cache control": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello", "cache_control": {"type": "e"}}]}]
    },
    "billing": {"system": [BILLING]},
    "empty system": {"system": ""},
    "no tools": {"tools": []},
}


@pytest.mark.parametrize("fields", SAME.values(), ids=SAME)
def test_what_leaves_the_prompt_alone(fields: dict[str, Any]) -> None:
    assert prompt(**fields) == prompt()


def said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


OTHER = {
    "text": said({"type": "text", "text": "hallo"}),
    "role": {"messages": [{"role": "assistant", "content": "hello"}]},
    "system": {"system": "Be brief."},
    "tools": {"tools": [TOOL]},
    "other tools": {"tools": [{**TOOL, "description": "Looks twice."}]},
    "image": said({"type": "text", "text": "hello"}, PNG),
    "other image": said({"type": "text", "text": "hello"}, {**PNG, "source": {**PNG["source"], "data": "AAAB"}}),
    "image by url": said({"type": "text", "text": "hello"}, {"type": "image", "source": {"type": "url", "url": "u"}}),
    "tool use": said({"type": "tool_use", "id": "1", "name": "look", "input": {"a": 1}}),
    "other input": said({"type": "tool_use", "id": "1", "name": "look", "input": {"a": 2}}),
    "tool result": said({"type": "tool_result", "tool_use_id": "1", "content": "found"}),
    "result of image": said({"type": "tool_result", "tool_use_id": "1", "content": [PNG]}),
    "thinking": said({"type": "thinking", "thinking": "hm", "signature": "s"}),
    "two messages": {"messages": [USER, USER]},
}


def test_what_changes_the_prompt() -> None:
    """Each of these requests has a prompt of its own."""
    prompts = {name: prompt(**fields) for name, fields in OTHER.items()} | {"plain": prompt()}
    assert len(set(prompts.values())) == len(prompts)


def test_order_and_spacing_leave_the_prompt_alone() -> None:
    """The JSON around what the engine reads doesn't matter, in tools and tool inputs neither."""
    fields = {"model": "m", "tools": [TOOL], "messages": OTHER["tool use"]["messages"], "system": "s"}
    reversed_tool = {"tools": [dict(reversed(TOOL.items()))]}
    plain = AnthropicParser().parse(PATH, {}, json.dumps(fields).encode())
    other = dict(reversed((fields | reversed_tool).items()))
    spaced = AnthropicParser().parse(PATH, {}, json.dumps(other, indent=3).encode())
    assert spaced.prompts == plain.prompts


def test_a_conversation_that_goes_on_begins_as_it_did() -> None:
    turns = [USER, {"role": "assistant", "content": [{"type": "text", "text": "hi"}]}, {"role": "user", "content": "?"}]
    first = prompt(messages=turns[:1], system="s", tools=[TOOL])
    assert prompt(messages=turns, system="s", tools=[TOOL]).startswith(first)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "error unmarshaling"),
        (b"[]", "error unmarshaling"),
        (b'{"model":"m"}', "must have valid messages"),
        (b'{"model":"m","messages":[]}', "must have valid messages"),
        (b'{"model":"m","messages":["x"]}', "error unmarshaling"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "model not found"),
        (b'{"model":1,"messages":[{"role":"user","content":"x"}]}', "model not found"),
        (b"\xff", "error unmarshaling"),
    ],
    ids=["cut off", "list", "no messages", "empty", "text", "no model", "odd model", "no UTF-8"],
)
def test_what_no_engine_could_take(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        AnthropicParser().parse(PATH, {}, body)


STREAM = b"".join(
    b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode())
    for event in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 20, "cache_read_input_tokens": 16}}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": '"usage":{"input_tokens":1}'}},
        {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 0, "output_tokens": 7}},
        {"type": "message_stop"},
    )
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
@settings(deadline=None)
def test_usage_of_an_event_stream_split_anywhere(places: list[int]) -> None:
    """The start tells of the prompt, the last delta of what was generated."""
    reader = AnthropicParser().response(streaming=True)
    for start, end in pairwise([0, *sorted(places), len(STREAM)]):
        reader.feed(STREAM[start:end], end=end == len(STREAM))
    assert reader.usage == Usage(20, 7, 16)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"usage": {"input_tokens": 5, "output_tokens": 6}}, Usage(5, 6)),
        ({"usage": {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": 0}}, Usage(5, 6, 0)),
        ({"input_tokens": 5}, Usage()),
        ({"usage": "odd"}, Usage()),
    ],
    ids=["plain", "cached", "count", "odd"],
)
def test_usage_of_an_answer(answer: Any, usage: Usage) -> None:
    reader = AnthropicParser().response(streaming=False)
    reader.feed(json.dumps(answer).encode(), end=True)
    assert reader.usage == usage
