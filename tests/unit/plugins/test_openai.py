"""The OpenAI parser: what it reads, what a prompt's bytes depend on, what it refuses."""

import json
import struct
from bisect import bisect_left
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from epp_plugins.openai import OpenAIParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from epp.formats.text import MAX_TOKENS, MEDIA_BYTES
from epp.plugin import BadRequest, Body, Parser

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
CONVERSATIONS = "/v1/conversations"
IMAGES = "/v1/images/generations"
PATHS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, CONVERSATIONS, IMAGES)

USER = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def read(path: str, body: bytes) -> Body:
    return OpenAIParser().parse(path, {}, body)


def parse(path: str, **fields: Any) -> Body:
    return read(path, json.dumps({"model": "m", **fields}).encode())


def chat(*messages: Any, **fields: Any) -> bytes:
    """The bytes of a chat's one prompt."""
    (prompt,) = parse(CHAT, messages=messages, **fields).prompts
    return prompt


def refusal(path: str, body: bytes) -> str:
    with pytest.raises(BadRequest) as raised:
        read(path, body)
    return raised.value.message


def test_it_is_a_parser() -> None:
    assert isinstance(OpenAIParser(), Parser)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, {"messages": [USER]}),
        ("/chat/completions/", {"messages": [USER]}),
        ("/v1/chat/completions/render", {"messages": [USER]}),
        ("/team/a/v1/completions", {"prompt": "hello"}),
        ("completions/render", {"prompt": "hello"}),
        (EMBEDDINGS, {"input": "hello"}),
        (RESPONSES, {"input": "hello"}),
        (CONVERSATIONS, {"items": [USER]}),
        (IMAGES, {"prompt": "hello"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_path_has_its_prompt(path: str, field: dict[str, Any]) -> None:
    """Every path that the parser claims finds its prompt in the field of its format, and in no other."""
    body = parse(path, **field)
    assert body.model == "m"
    assert [b"hello" in prompt for prompt in body.prompts] == [True]
    with pytest.raises(BadRequest, match="must have"):
        parse(path, other="hello")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/xcompletions", "/completions/other", "/", ""])
def test_other_paths_are_not_its_own(path: str) -> None:
    """A path counts by whole segments."""
    assert refusal(path, b"{}") == f"no parser registered matching path suffix for: {path}"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, b'{"model":"m"}', "invalid chat completions request: must have valid messages field"),
        (CHAT, b'{"model":"m","messages":[]}', "invalid chat completions request: must have valid messages field"),
        (CHAT, b'{"model":"m","messages":"x"}', "valid messages field: Expected `array | null`, got `str` - at `$.mes"),
        (CHAT, b'{"model":"m","messages":[1]}', "valid messages field: Expected `object`, got `int` - at `$.messages["),
        (COMPLETIONS, b'{"model":"m"}', "invalid completions request: must have prompt field"),
        (COMPLETIONS, b'{"model":"m","prompt":{}}', "invalid completions request: must have prompt field"),
        (COMPLETIONS, b'{"model":"m","prompt":[-1]}', "invalid token ids: must be integers from 0 to 4294967295"),
        (COMPLETIONS, b'{"model":"m","prompt":[4294967296]}', "invalid token ids"),
        (COMPLETIONS, b'{"model":"m","prompt":[1,"a"]}', "invalid token ids"),
        (COMPLETIONS, b'{"model":"m","prompt":[[1,2.5]]}', "invalid token ids"),
        (EMBEDDINGS, b'{"model":"m"}', "invalid embeddings request: must have input field"),
        (RESPONSES, b'{"model":"m","input":1}', "invalid responses request: must have input field"),
        (CONVERSATIONS, b'{"model":"m","items":{}}', "invalid conversations request: must have items field"),
        (IMAGES, b'{"model":"m","prompt":["a"]}', "invalid images generations request: must have prompt field"),
        (COMPLETIONS, b'{"prompt":"x"}', "model not found in request body"),
        (COMPLETIONS, b'{"model":"","prompt":"x"}', "model not found in request body"),
        (COMPLETIONS, b'{"model":null,"prompt":"x"}', "model not found in request body"),
        (COMPLETIONS, b'{"model":["m"],"prompt":"x"}', "model not found in request body"),
        (CHAT, b"", "error unmarshaling request bodyMap: Input data was truncated"),
        (CHAT, b"[]", "error unmarshaling request bodyMap: Expected `object`, got `array`"),
        (CHAT, b'"text"', "error unmarshaling request bodyMap: Expected `object`, got `str`"),
        (CHAT, b'{"model":"m","messages":[{"role":"user"', "error unmarshaling request bodyMap: Input data was trunca"),
        (CHAT, b'{"model":"m"} x', "error unmarshaling request bodyMap: JSON is malformed: trailing characters"),
        (
            CHAT,
            b'{"model":"m","temperature":NaN}',
            "error unmarshaling request bodyMap: JSON is malformed: invalid character",
        ),
        (CHAT, b'{"model":"m","tools":[1e999],"messages":[{}]}', "error unmarshaling request bodyMap: Number out of"),
        (CHAT, b'{"model":"m","tools":["\xff"],"messages":[{}]}', "error unmarshaling request bodyMap: 'utf-8' codec"),
        (CHAT, b'{"model":"m","messages":[{"content":"\xff"}]}', "error unmarshaling request bodyMap: 'utf-8' codec"),
        (CHAT, b'{"model":"m","messages":[{"content":"\\ud800"}]}', "error unmarshaling request bodyMap: "),
        (CHAT, b'{"model":' + b"[" * 99_999 + b"]" * 99_999 + b"}", "bodyMap: maximum recursion depth exceeded"),
        (CHAT, b'{"x":' + b'{"x":' * 99_999 + b"1" + b"}" * 100_000, "bodyMap: maximum recursion depth exceeded"),
    ],
)
def test_what_no_engine_can_take_is_refused(path: str, body: bytes, message: str) -> None:
    """The error says what is wrong, in llm-d's words, and where."""
    assert message in refusal(path, body)


def refuses_nesting(depth: int) -> bool:
    nested = b"[" * depth + b"]" * depth
    try:
        read(CHAT, b'{"model":"m","messages":[{"content":' + nested + b'}],"tools":' + nested + b"}")
    except BadRequest:
        return True
    return False


def test_nesting_at_the_edge_of_the_recursion_limit() -> None:
    """Skipping, decoding and encoding again run out of stack at different depths: it is a bad request at each."""
    edge = bisect_left(range(100_000), True, key=refuses_nesting)
    assert 100 < edge < 100_000
    assert all(refuses_nesting(depth) for depth in range(edge, edge + 100))


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": None}, None),
        ({"max_tokens": "5"}, 5),
        ({"max_tokens": "9" * 5000}, MAX_TOKENS),
        ({"max_tokens": 5.0}, 5),
        ({"max_tokens": 10**30}, MAX_TOKENS),
        ({"max_tokens": -1}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": {"a": [1]}}, None),
        ({"max_completion_tokens": 3, "max_tokens": 7}, 3),
        ({"max_output_tokens": 9}, 9),
    ],
    ids=str,
)
def test_token_limit(fields: dict[str, Any], limit: int | None) -> None:
    """The limit is read as an engine would, and an odd one is the engine's to refuse."""
    assert parse(CHAT, messages=[USER], **fields).max_tokens == limit


@pytest.mark.parametrize(
    ("value", "stream"),
    [
        *[(True, True), (False, False), (None, False), ("yes", True), ("True", True), ("no", False), (1, True)],
        *[(0, False), ([], False), ([1], False), ({"a": 1}, False)],
    ],
    ids=repr,
)
def test_stream_flag(value: Any, stream: bool) -> None:
    """The flag is read as vLLM's pydantic does; what it refuses is no stream."""
    assert parse(CHAT, messages=[USER], stream=value).stream is stream


@pytest.mark.parametrize(("value", "salt"), [("a", "a"), ("", ""), (None, ""), (5, "")], ids=repr)
def test_cache_salt(value: Any, salt: str) -> None:
    assert parse(CHAT, messages=[USER], cache_salt=value).cache_salt == salt


def test_of_equal_keys_the_last_counts() -> None:
    body = read(COMPLETIONS, b'{"model":"a","model":"b","prompt":"x","prompt":"y"}')
    assert (body.model, body.prompts) == ("b", (b"y",))


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(COMPLETIONS, b'\xef\xbb\xbf{"model":"m","prompt":"x"}').prompts == (b"x",)


def test_conversations_need_no_model() -> None:
    assert read(CONVERSATIONS, b'{"items":[]}').model == ""


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("", (b"",)),
        ("héllo", ("héllo".encode(),)),
        (["a", "b"], (b"a", b"b")),
        ([], ()),
        ([1, 2, 4294967295], (struct.pack("<3I", 1, 2, 4294967295),)),
        ([[1, 2], [], [3]], (struct.pack("<2I", 1, 2), b"", struct.pack("<I", 3))),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("path", "field"), [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_prompts(path: str, field: str, prompt: Any, prompts: tuple[bytes, ...]) -> None:
    """A text, texts, token ids (four bytes each) and lists of token ids."""
    assert parse(path, **{field: prompt}).prompts == prompts


def test_what_vllm_takes_instead_of_a_prompt() -> None:
    assert parse(COMPLETIONS, prompt_embeds=["AA==", "BB=="]).prompts == (b"AA==", b"BB==")
    assert parse(EMBEDDINGS, messages=[USER]).prompts == (chat(USER),)


SAME = {
    "text part": (chat(USER), chat({"role": "user", "content": [{"type": "text", "text": "hello"}]})),
    "untyped part": (chat(USER), chat({"role": "user", "content": [{"text": "hello"}]})),
    "string part": (chat(USER), chat({"role": "user", "content": ["hello"]})),
    "sampling": (chat(USER), chat(USER, user="u", temperature=0.5, seed=1, n=2, metadata={"a": "b"}, max_tokens=5)),
    "tail": (chat(USER), chat(USER, add_generation_prompt=False)),
    "empty": (chat(USER), chat({**USER, "tool_calls": [], "name": None}, tools=[], documents=None, chat_template="")),
    "unknown": (chat(USER), chat({**USER, "annotations": [1]}, unknown={"a": 1})),
    "input": (*parse(RESPONSES, input="hello").prompts, *parse(RESPONSES, input=[USER]).prompts),
    "output": (
        *parse(RESPONSES, input=[{"role": "assistant", "content": "a"}]).prompts,
        *parse(
            RESPONSES,
            input=[
                {"type": "message", "id": "1", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
            ],
        ).prompts,
    ),
    "cache control": (
        chat({"role": "user", "content": [IMAGE]}),
        chat({"role": "user", "content": [{**IMAGE, "cache_control": {"type": "ephemeral"}}]}),
    ),
}


@pytest.mark.parametrize(("left", "right"), SAME.values(), ids=SAME)
def test_same_prompt(left: bytes, right: bytes) -> None:
    """What an engine renders alike, or what doesn't concern its prefix cache, has the same bytes."""
    assert left == right


def differing() -> dict[str, Sequence[bytes]]:
    def media(**part: Any) -> bytes:
        return chat({"role": "user", "content": [part]})

    def responses(**fields: Any) -> bytes:
        return parse(RESPONSES, **{"input": "hello", **fields}).prompts[0]

    return {
        "roles": [chat({**USER, "role": role}) for role in ("user", "system", "assistant", "")],
        "texts": [chat({**USER, "content": text}) for text in ("a", "b", "", "ab", "a b")],
        "parts": [chat({**USER, "content": parts}) for parts in (["a", "b"], ["ab"], ["a\nb"], ["", "ab"])],
        "boundaries": [
            chat(USER, USER),
            chat({**USER, "content": "hellouserhello"}),
            chat({**USER, "content": "hello"}),
        ],
        "images": [media(type="image_url", image_url={"url": f"data:image/png;base64,{n}"}) for n in "ABC"],
        "sounds": [media(type="input_audio", input_audio={"data": n, "format": "wav"}) for n in "AB"],
        "unknown parts": [media(type="new", new=n) for n in range(3)],
        "an image is no text": [media(**IMAGE), chat({**USER, "content": json.dumps(IMAGE)})],
        "tools": [chat(USER), chat(USER, tools=[TOOL]), chat(USER, tools=[TOOL, TOOL])],
        "template": [chat(USER), chat(USER, chat_template="a"), chat(USER, chat_template="b")],
        "template arguments": [chat(USER), chat(USER, chat_template_kwargs={"enable_thinking": False})],
        "effort": [chat(USER), chat(USER, reasoning_effort="low"), chat(USER, reasoning_effort="high")],
        "documents": [chat(USER, documents=[{"text": n}]) for n in "ab"],
        "tool calls": [chat(USER), chat({**USER, "tool_calls": [CALL]}), chat({**USER, "tool_calls": [CALL, CALL]})],
        "tool results": [chat({**USER, "tool_call_id": n}) for n in "ab"],
        "names": [chat(USER), chat({**USER, "name": "hello"}), chat({**USER, "content": "hellonamehello"})],
        "reasoning": [chat({**USER, "reasoning_content": n}) for n in "ab"] + [chat({**USER, "reasoning": "a"})],
        "instructions": [responses(), responses(instructions="a"), responses(instructions="b")],
        "response tools": [responses(), responses(tools=[TOOL])],
        "earlier responses": [responses(), responses(previous_response_id="a"), responses(conversation={"id": "a"})],
        "items": [responses(input=[{"type": "function_call_output", "output": n}]) for n in "ab"]
        + [responses(input=[])],
        "response prompt": [responses(), responses(prompt={"id": "a"}), responses(prompt={"id": "b"})],
    }


@pytest.mark.parametrize("prompts", differing().values(), ids=differing())
def test_different_prompts(prompts: Sequence[bytes]) -> None:
    """What an engine renders differently has different bytes."""
    assert len(set(prompts)) == len(prompts)


def test_models_and_salts_part_bodies() -> None:
    """They are no part of a prompt, since they part whole caches."""
    one, other = parse(CHAT, messages=[USER]), parse(CHAT, messages=[USER], model="other", cache_salt="salt")
    assert one.prompts == other.prompts
    assert (one.model, one.cache_salt) == ("m", "")
    assert (other.model, other.cache_salt) == ("other", "salt")


def test_media_count_as_tokens() -> None:
    """A picture has about the length of its tokens, however long its data is."""
    short, long = (
        len(chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}))
        for url in ("https://example.org/a.png", "data:image/png;base64," + "A" * 100_000)
    )
    assert short == long == len(chat({"role": "user", "content": ""})) + 1 + MEDIA_BYTES


def test_long_tools_are_read_like_short_ones() -> None:
    """The memo of canonical JSON changes no result: neither beyond its bound nor at the second time."""
    tools = [{**TOOL, "function": {"name": "look", "description": "x" * length}} for length in (10, 100_000)]
    for tool in tools:
        prompt = chat(USER, tools=[tool])
        assert prompt == chat(USER, tools=[dict(reversed(tool.items()))])
        assert prompt != chat(USER, tools=[{**tool, "type": "other"}])


texts = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda url, detail: {"type": "image_url", "image_url": {"url": url, "detail": detail}}, texts, texts),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, texts),
    st.dictionaries(texts, values, max_size=3),
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | texts | st.lists(parts)},
    optional={"tool_calls": st.lists(values, max_size=2), "name": texts, "reasoning_content": texts, "extra": values},
)
bodies = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(messages, min_size=1, max_size=5)},
    optional={
        "tools": st.lists(values, max_size=3),
        "documents": st.lists(values, max_size=3),
        "chat_template": texts,
        "stream": st.booleans(),
        "max_tokens": st.integers(0, 1000),
        "cache_salt": texts,
        "temperature": st.floats(0, 2),
        "metadata": values,
    },
)


def scramble(value: Any, random: Random) -> str:
    """The same JSON with other spaces, key order and escapes."""

    def space() -> str:
        return random.choice(["", "", " ", "\n\t", "\r\n  "])

    if isinstance(value, dict):
        items = random.sample(list(value.items()), len(value))
        inner = ",".join(f"{space()}{scramble(k, random)}{space()}:{scramble(v, random)}" for k, v in items)
        return f"{space()}{{{inner}{space()}}}{space()}"
    if isinstance(value, list):
        return f"{space()}[{','.join(scramble(item, random) for item in value)}{space()}]"
    return f"{space()}{json.dumps(value, ensure_ascii=random.random() < 0.5)}{space()}"


@settings(deadline=None)
@given(bodies, st.integers(0, 2**32))
def test_spacing_key_order_and_escapes_do_not_matter(body: dict[str, Any], seed: int) -> None:
    """However a client writes its JSON, the same request is read."""
    one, other = (read(CHAT, text.encode()) for text in (json.dumps(body), scramble(body, Random(seed))))
    for name in Body.__slots__:
        assert getattr(one, name) == getattr(other, name), name


@settings(deadline=None)
@given(bodies, st.lists(messages, max_size=3))
def test_a_conversation_that_goes_on_keeps_its_prefix(body: dict[str, Any], more: list[Any]) -> None:
    """The bytes of a conversation are a prefix of those of the same conversation with further messages."""
    longer = {**body, "messages": body["messages"] + more}
    one, other = (read(CHAT, json.dumps(fields).encode()).prompts[0] for fields in (body, longer))
    assert other.startswith(one)
    assert (one == other) == (not more)


@settings(deadline=None)
@given(st.lists(messages.filter(lambda m: m["role"] != "tool"), min_size=1), st.lists(messages))
def test_responses_keep_their_prefix_too(items: list[Any], more: list[Any]) -> None:
    one, other = (parse(RESPONSES, input=sequence, instructions="i").prompts[0] for sequence in (items, items + more))
    assert other.startswith(one)


plain = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), min_size=1, max_size=4)


@settings(deadline=None)
@given(plain, plain)
def test_different_chats_have_different_bytes(left: list[tuple[str, str]], right: list[tuple[str, str]]) -> None:
    """No text can imitate the boundary of a message."""
    one, other = (chat(*({"role": role, "content": text} for role, text in pairs)) for pairs in (left, right))
    assert (one == other) == (left == right)


def check_read_or_refused(path: str, body: bytes) -> None:
    try:
        prompts = read(path, body).prompts
    except BadRequest:
        return
    assert all(isinstance(prompt, bytes) for prompt in prompts)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PATHS),
    st.binary(max_size=50) | st.dictionaries(texts, values).map(lambda v: json.dumps(v).encode()),
)
@example(CHAT, b'{"model":"m","messages":[{"content":[{"type":["text"]},{"type":{}},null,1,[]],"role":[1]}]}')
@example(RESPONSES, b'{"model":"m","input":[null,1,"a",[],{},{"role":{},"content":{"a":[1]}}]}')
@example(COMPLETIONS, b'{"model":"m","prompt":[null,{},"a",[true,1]]}')
def test_a_body_is_read_or_refused(path: str, body: bytes) -> None:
    """Nothing but BadRequest comes out of it."""
    check_read_or_refused(path, body)


@settings(deadline=None)
@given(st.sampled_from(PATHS), st.data())
def test_odd_values_of_known_fields_are_read_or_refused(path: str, data: st.DataObject) -> None:
    """As above, with the fields that the parser looks at."""
    names = [
        "messages",
        "prompt",
        "input",
        "items",
        "tools",
        "instructions",
        "reasoning",
        "stream",
        "max_tokens",
        "model",
    ]
    fields = data.draw(st.dictionaries(st.sampled_from(names), values | st.lists(parts) | st.lists(messages)))
    check_read_or_refused(path, json.dumps({"model": "m", **fields}).encode())
