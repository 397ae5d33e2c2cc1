"""openai-parser: reads requests of OpenAI's API, and the usage out of the answers.

What it does
    Reads model, stream flag, token limit, cache salt and prompts out of the JSON body in one pass. A prompt is all that
    an engine's prefix cache depends on, as bytes in the order in which a chat template renders it: the template and its
    arguments, documents, tools, then each message with its role, content, tool calls and reasoning. Spacing and key
    order of the JSON don't enter, nor do sampling parameters, `user` and the like. A conversation that goes on has the
    bytes of the earlier one as its prefix.

    Text enters as UTF-8; pictures, sounds and other media as `MEDIA_BYTES` made of their digest, so that different ones
    differ; token ids as unsigned 32-bit little-endian integers. Bytes that UTF-8 never has keep the parts apart.

    | Path | Prompt |
    |---|---|
    | `chat/completions`, `chat/completions/render` | `messages` |
    | `completions`, `completions/render` | `prompt`, else `prompt_embeds`: text, texts, token ids, lists of token ids |
    | `embeddings` | `input` (as above), else `messages` |
    | `responses` | `instructions`, then `input`: text or items |
    | `conversations` | `items` |
    | `images/generations` | `prompt` |

    A request that no engine can take is refused with 400: what isn't JSON, lacks its prompt or has no model. What an
    engine may judge in its own way passes: a limit of "5" is 5, one of {} is none, unknown fields are skipped unread.

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body`: `model`, `prompts`, `cache_salt`, `stream`, and `max_tokens` from `max_completion_tokens`,
    `max_output_tokens` or `max_tokens`. `Usage`: prompt, completion and cached tokens from the `usage` of a JSON answer
    or an event stream, or from `response.usage` in the Responses API. An answer with a content encoding such as gzip
    can't be read: its usage stays unknown.

Parameters
    None.

Example:
    plugins:
    - type: openai-parser
    requestHandler:
      parsers:
      - pluginRef: openai-parser

Where it departs from llm-d, and why
    - The errors are llm-d's, and say in addition where the fault is.
    - `conversations` needs no model: OpenAI's format has none there, so llm-d refuses every such request.
    - `embeddings` takes `messages`, and `completions` takes `prompt_embeds`, because vLLM does.
    - The template, its arguments, documents, tool calls and reasoning enter a chat's prompt: the engine renders them,
      so requests that differ in them share no more of its cache.
    - A picture, a sound and a video count as 224 tokens each. llm-d takes 225 for a picture whose size it doesn't know,
      and reads the size out of the picture's data where it can.
    - An answer's usage is found however its events are split over messages.
"""

import json
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from sys import byteorder
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct
from xxhash import xxh3_128_digest

from epp.plugin import BadRequest, Body, ResponseReader, Usage

MEDIA_BYTES = 896
"""Bytes of a picture, a sound or a video in a prompt: 224 tokens, about 640 x 360 pixels at 1,024 pixels a token."""

MAX_TOKENS = 2**31 - 1
"""A larger limit counts as this one."""

RESPONSE_BYTES = 2**20
"""The most bytes of a response that are kept; of a longer JSON answer only the end is searched for the usage."""

MEMO_ENTRIES, MEMO_BYTES = 128, 64 * 1024
"""How many values the memo of canonical JSON holds, and up to which length each: at most 16 MB."""

# None of these bytes occurs in UTF-8, so no text can imitate a boundary.
_FIELD, _VALUE, _MESSAGE, _ITEM, _PART, _MEDIA = (bytes([byte]) for byte in range(0xFF, 0xF9, -1))

_BOM = b"\xef\xbb\xbf"
_TEXTS = dict.fromkeys(("text", "input_text", "output_text"), "text") | {"refusal": "refusal", "thinking": "thinking"}
_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})  # what vLLM's pydantic reads as true

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class _Message(Struct, gc=False):
    """A message of a chat; what isn't listed doesn't enter the prompt."""

    role: Any = None
    content: Any = None
    name: Any = None
    tool_call_id: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class _Request(Struct, gc=False):
    """The fields of all formats. `Any` takes what comes, `Raw` is for what only enters the prompt."""

    model: Any = None
    stream: Any = None
    cache_salt: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    messages: list[_Message] | None = None
    prompt: Any = None
    prompt_embeds: Any = None
    input: Any = None
    items: Any = None
    instructions: Any = None
    chat_template: Raw = Raw()
    chat_template_kwargs: Raw = Raw()
    reasoning_effort: Raw = Raw()
    reasoning: Raw = Raw()
    documents: Raw = Raw()
    tools: Raw = Raw()
    conversation: Raw = Raw()
    previous_response_id: Raw = Raw()


_EXTRAS = _Message.__struct_fields__[2:]
_extras = attrgetter(*_EXTRAS)
_NO_EXTRAS = (None,) * len(_EXTRAS)

_PREAMBLE = _Request.__struct_fields__[_Request.__struct_fields__.index("chat_template") :]
_preamble = attrgetter(*_PREAMBLE)
_NO_PREAMBLE = _preamble(_Request())

_decode_request = msgspec.json.Decoder(_Request).decode


def _canonical(source: bytes) -> bytes:
    """The one form of a JSON value without spaces and with sorted keys; b"" for null and for empty values."""
    return _remembered(source) if len(source) <= MEMO_BYTES else _canonicalised(source)


def _canonicalised(source: bytes) -> bytes:
    value = _decode(source)
    return _text(value) if value else b""


_remembered = lru_cache(MEMO_ENTRIES)(_canonicalised)  # an agent sends the same tools with every turn


def _text(value: Any) -> bytes:
    """A text as UTF-8, nothing for None, the canonical JSON of anything else."""
    if isinstance(value, str):
        return value.encode()
    return b"" if value is None else _encode(value)


def _content(content: Any) -> bytes:
    """A message's content; a single part of text is the same as the text itself."""
    if isinstance(content, list):
        return _PART.join(map(_part, content))
    return _text(content)


def _part(part: Any) -> bytes:
    if not isinstance(part, dict):
        return _text(part)
    kind = part.get("type") or "text"
    text = part.get(_TEXTS.get(kind)) if isinstance(kind, str) else None
    if isinstance(text, str):
        return text.encode()
    part.pop("cache_control", None)  # a hint that clients move from message to message as a conversation grows
    digest = xxh3_128_digest(_encode(part))
    return _MEDIA + digest * (MEDIA_BYTES // len(digest))


def _add_preamble(out: list[bytes], request: _Request) -> None:
    """Adds what is rendered before the first message."""
    preamble = _preamble(request)
    if preamble != _NO_PREAMBLE:
        for name, raw in zip(_PREAMBLE, preamble, strict=True):
            if raw and (value := _canonical(bytes(raw))):
                out += (_FIELD, name.encode(), _VALUE, value)


def _add_message(out: list[bytes], role: Any, content: Any) -> None:
    out += (_MESSAGE, _text(role), _VALUE, _content(content))


def _add_items(out: list[bytes], items: Sequence[Any]) -> None:
    """Adds items of the Responses API: messages as in a chat; calls, their results and reasoning as JSON."""
    for item in items:
        if isinstance(item, dict) and "role" in item:
            _add_message(out, item["role"], item.get("content"))
        else:
            out += (_ITEM, _text(item))


def _chat(request: _Request) -> tuple[bytes, ...] | None:
    if not request.messages:
        return None
    out: list[bytes] = []
    _add_preamble(out, request)
    for message in request.messages:
        _add_message(out, message.role, message.content)
        extras = _extras(message)
        if extras != _NO_EXTRAS:
            for name, value in zip(_EXTRAS, extras, strict=True):
                if value:
                    out += (_FIELD, name.encode(), _VALUE, _text(value))
    return (b"".join(out),)


def _responses(request: _Request) -> tuple[bytes, ...] | None:
    if not isinstance(request.input, (str, list)):
        return None
    out: list[bytes] = []
    _add_preamble(out, request)
    if request.prompt:
        out += (_FIELD, b"prompt", _VALUE, _text(request.prompt))
    if request.instructions:
        _add_message(out, "system", request.instructions)
    if isinstance(request.input, str):
        _add_message(out, "user", request.input)
    else:
        _add_items(out, request.input)
    return (b"".join(out),)


def _conversations(request: _Request) -> tuple[bytes, ...] | None:
    if not isinstance(request.items, list):
        return None
    out: list[bytes] = []
    _add_items(out, request.items)
    return (b"".join(out),)


def _completions(request: _Request) -> tuple[bytes, ...] | None:
    return _prompts(request.prompt_embeds if request.prompt is None else request.prompt)


def _embeddings(request: _Request) -> tuple[bytes, ...] | None:
    return _chat(request) if request.input is None else _prompts(request.input)


def _images(request: _Request) -> tuple[bytes, ...] | None:
    return _prompts(request.prompt) if isinstance(request.prompt, str) else None


def _prompts(value: Any) -> tuple[bytes, ...] | None:
    """A text, texts, token ids or lists of token ids as prompts; None if it is nothing of these."""
    if isinstance(value, str):
        return (value.encode(),)
    if not isinstance(value, list):
        return None
    if value and isinstance(value[0], int):
        return (_ids(value),)
    return tuple(_ids(item) if isinstance(item, list) else _text(item) for item in value)


def _ids(ids: list[Any]) -> bytes:
    try:
        numbers = array("I", ids)
    except (TypeError, OverflowError) as error:
        raise BadRequest(f"invalid token ids: must be integers from 0 to 4294967295: {error}") from error
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


class _Kind(NamedTuple):
    """A format: its name and its necessary field in errors, how its prompts are read, whether it names a model."""

    name: str
    needs: str
    prompts: Callable[[_Request], tuple[bytes, ...] | None]
    model: bool = True

    def invalid(self, detail: str = "") -> BadRequest:
        return BadRequest(f"invalid {self.name} request: must have {self.needs} field{detail}")


_CHAT = _Kind("chat completions", "valid messages", _chat)
_COMPLETIONS = _Kind("completions", "prompt", _completions)
_KINDS = {
    "chat/completions": _CHAT,
    "completions": _COMPLETIONS,
    "embeddings": _Kind("embeddings", "input", _embeddings),
    "responses": _Kind("responses", "input", _responses),
    "conversations": _Kind("conversations", "items", _conversations, model=False),
    "chat/completions/render": _CHAT,
    "completions/render": _COMPLETIONS,
    "images/generations": _Kind("images generations", "prompt", _images),
}


class OpenAIParser:
    """Reads requests of OpenAI's API, and the usage out of the answers."""

    paths: tuple[str, ...] = tuple(_KINDS)

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        kind = _kind(path)
        request, prompts = self._read(kind, body)
        named = isinstance(request.model, str) and request.model != ""
        if kind.model and not named:
            raise BadRequest("model not found in request body")
        return Body(
            model=request.model if named else "",
            prompts=prompts,
            cache_salt=request.cache_salt if isinstance(request.cache_salt, str) else "",
            stream=_flag(request.stream),
            max_tokens=_limit(request),
        )

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        return EventUsage() if streaming else JsonUsage()

    def _read(self, kind: _Kind, body: bytes) -> tuple[_Request, tuple[bytes, ...]]:
        try:
            request = _decode_request(body.removeprefix(_BOM))
            prompts = kind.prompts(request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if "`$.messages" in str(error):
                raise kind.invalid(f": {error}") from error
            raise BadRequest(f"error unmarshaling request bodyMap: {error}") from error
        if prompts is None:
            raise kind.invalid()
        return request, prompts


def _kind(path: str) -> _Kind:
    """By the longest suffix of whole segments."""
    segments = path.strip("/").split("/")[-3:]
    for start in range(len(segments)):
        if kind := _KINDS.get("/".join(segments[start:])):
            return kind
    raise BadRequest(f"no parser registered matching path suffix for: {path}")


def _flag(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    return isinstance(value, (str, int)) and str(value).lower() in _TRUE


def _limit(request: _Request) -> int | None:
    value = _known(request.max_completion_tokens, request.max_output_tokens, request.max_tokens)
    if isinstance(value, str) and value.isdecimal():
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        return None
    return int(min(value, MAX_TOKENS))


def _known(*values: Any) -> Any:
    """The first that is known."""
    for value in values:
        if value is not None:
            return value
    return None


class _Details(Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None

    def over(self, old: Usage) -> Usage:
        """What this report says, and the older one where it says nothing."""
        details = self.prompt_tokens_details or self.input_tokens_details or _Details()
        return Usage(
            prompt_tokens=_known(self.prompt_tokens, self.input_tokens, old.prompt_tokens),
            completion_tokens=_known(self.completion_tokens, self.output_tokens, old.completion_tokens),
            cached_tokens=_known(details.cached_tokens, old.cached_tokens),
        )


class _Response(Struct, gc=False):
    usage: _Usage | None = None


class _Reply(_Response, gc=False):
    response: _Response | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_json_decoder = json.JSONDecoder()


def _usage(reply: bytes) -> _Usage | None:
    """The usage in an answer or an event; None if there is none or it can't be read."""
    try:
        found = _decode_reply(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.usage or (found.response.usage if found.response else None)


def _usage_at_end(tail: bytes) -> _Usage | None:
    """The usage in the last bytes of an answer: the value of its last key "usage"."""
    start = tail.rfind(b'"usage"')
    text = tail[start : start + 4096].decode("utf-8", "replace") if start >= 0 else ""
    try:
        value, _ = _json_decoder.raw_decode(text.partition(":")[2].lstrip())
        return msgspec.convert(value, _Usage)
    except (ValueError, RecursionError, msgspec.ValidationError):
        return None


class _Gathered:
    """Pieces that can't be read yet; of more than `RESPONSE_BYTES` the oldest are dropped, and `cut` says so."""

    __slots__ = ("_pieces", "_size", "cut")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.cut = False

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, data: bytes) -> None:
        self.cut = self.cut or len(data) > RESPONSE_BYTES
        self._pieces.append(data[-RESPONSE_BYTES:])
        self._size += len(self._pieces[-1])
        while self._size > RESPONSE_BYTES:
            self._size -= len(self._pieces.popleft())
            self.cut = True

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return data


class JsonUsage:
    """Reads the usage out of a JSON answer when it has ended."""

    __slots__ = ("_gathered", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self._gathered = _Gathered()

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body; `end` with the last one."""
        self._gathered.add(data)
        if not end:
            return
        read = _usage_at_end if self._gathered.cut else _usage
        if found := read(self._gathered.take()):
            self.usage = found.over(self.usage)


class EventUsage:
    """Reads the usage out of an event stream, line by line: every engine writes an event's data as one line."""

    __slots__ = ("_line", "usage")

    def __init__(self) -> None:
        self.usage = Usage()
        self._line = _Gathered()  # the line that hasn't ended

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body, split anywhere; `end` with the last one."""
        whole = len(data) if end else data.rfind(b"\n") + 1
        if not whole and not end:
            self._line.add(data)
            return
        lines = data[:whole]
        if self._line:
            self._line.add(lines)
            lines = self._line.take()
        if whole < len(data):
            self._line.add(data[whole:])
        if b'"usage"' in lines and lines.count(b'"usage"') > lines.count(b'"usage":null'):
            self._read(lines)

    def _read(self, lines: bytes) -> None:
        for line in lines.splitlines():
            if line.startswith(b"data:") and b'"usage"' in line and (found := _usage(line[5:])):
                self.usage = found.over(self.usage)
