"""OpenAI's requests and answers, for the parsers of every API that carries them; epp_plugins.openai is the manual."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from epp.errors import BadRequest
from epp.formats import text
from epp.formats.answers import Format
from epp.request import Body, Usage

TEXTS = dict.fromkeys(("text", "input_text", "output_text"), "text") | {"refusal": "refusal", "thinking": "thinking"}
"""The member of a part of a message that holds its text, by the part's type."""


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


def _content(content: Any) -> bytes:
    """A message's content; a single part of text is the same as the text itself."""
    if isinstance(content, list):
        return text.PART.join(map(_part, content))
    return text.text(content)


def _part(part: Any) -> bytes:
    if not isinstance(part, dict):
        return text.text(part)
    kind = part.get("type") or "text"
    said = part.get(TEXTS.get(kind)) if isinstance(kind, str) else None
    if isinstance(said, str):
        return said.encode()
    part.pop("cache_control", None)  # a hint that clients move from message to message as a conversation grows
    picture = part.get("image_url")
    if picture is not None:
        # Engines cache by the picture alone: vLLM hashes its pixels, and looks at no detail.
        part.pop("detail", None)
        if isinstance(picture, dict):
            picture.pop("detail", None)
    return text.media(text.encode(part))


def _add_preamble(out: list[bytes], request: _Request) -> None:
    """Adds what is rendered before the first message."""
    preamble = _preamble(request)
    if preamble != _NO_PREAMBLE:
        out += text.fields(zip(_PREAMBLE, preamble, strict=True))


def _add_message(out: list[bytes], role: Any, content: Any) -> None:
    out += (text.MESSAGE, text.text(role), text.VALUE, _content(content))


def _add_items(out: list[bytes], items: Sequence[Any]) -> None:
    """Adds items of the Responses API: messages as in a chat; calls, their results and reasoning as JSON."""
    for item in items:
        if isinstance(item, dict) and "role" in item:
            _add_message(out, item["role"], item.get("content"))
        else:
            out += (text.ITEM, text.text(item))


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
                    out += (text.FIELD, name.encode(), text.VALUE, text.text(value))
    return (b"".join(out),)


def _responses(request: _Request) -> tuple[bytes, ...] | None:
    if not isinstance(request.input, (str, list)):
        return None
    out: list[bytes] = []
    _add_preamble(out, request)
    if request.prompt:
        out += (text.FIELD, b"prompt", text.VALUE, text.text(request.prompt))
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
        return (text.ids(value),)
    return tuple(text.ids(item) if isinstance(item, list) else text.text(item) for item in value)


class Kind(NamedTuple):
    """A format: its name and its necessary field in errors, how its prompts are read, whether it names a model."""

    name: str
    needs: str
    prompts: Callable[[_Request], tuple[bytes, ...] | None]
    model: bool = True

    def invalid(self, detail: str = "") -> BadRequest:
        """The error of a body that lacks its necessary field."""
        return BadRequest(f"invalid {self.name} request: must have {self.needs} field{detail}")


CHAT = Kind("chat completions", "valid messages", _chat)
COMPLETIONS = Kind("completions", "prompt", _completions)
KINDS = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": Kind("embeddings", "input", _embeddings),
    "responses": Kind("responses", "input", _responses),
    "conversations": Kind("conversations", "items", _conversations, model=False),
    "chat/completions/render": CHAT,
    "completions/render": COMPLETIONS,
    "images/generations": Kind("images generations", "prompt", _images),
}


def kind_of(path: str) -> Kind:
    """The format of a path, by its longest suffix of whole segments.

    Raises:
        BadRequest: it is none of OpenAI's.
    """
    segments = path.strip("/").split("/")[-3:]
    for start in range(len(segments)):
        if kind := KINDS.get("/".join(segments[start:])):
            return kind
    raise BadRequest(f"no parser registered matching path suffix for: {path}")


def _has_parts(kind: Kind, fields: _Request) -> bool:
    """Whether there is one prompt, of text, that may have media in it; token ids have any bytes."""
    return kind.prompts in _OF_PARTS or (kind.prompts is _embeddings and fields.input is None)


_OF_PARTS = (_chat, _responses, _conversations)


def body(request: bytes, kind: Kind) -> Body:
    """Reads a request's body.

    Raises:
        BadRequest: it is nothing that an engine could take; the message says why.
    """
    fields, prompts = _read(kind, request)
    model = text.string(fields.model)
    if kind.model and not model:
        raise BadRequest("model not found in request body")
    return Body(
        model=model,
        prompts=prompts,
        media=text.media_in(prompts[0]) if _has_parts(kind, fields) else (),
        cache_salt=text.string(fields.cache_salt),
        stream=text.flag(fields.stream),
        max_tokens=text.limit(fields.max_completion_tokens, fields.max_output_tokens, fields.max_tokens),
    )


def _read(kind: Kind, request: bytes) -> tuple[_Request, tuple[bytes, ...]]:
    try:
        fields = _decode_request(request.removeprefix(text.BOM))
        prompts = kind.prompts(fields)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "`$.messages" in str(error):
            raise kind.invalid(f": {error}") from error
        raise text.unreadable(request, error) from error
    if prompts is None:
        raise kind.invalid()
    return fields, prompts


class _Details(Struct, gc=False):
    cached_tokens: int | None = None


class UsageReport(Struct, gc=False):
    """The `usage` of an answer, with the names of all of OpenAI's formats."""

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
            prompt_tokens=text.known(self.prompt_tokens, self.input_tokens, old.prompt_tokens),
            completion_tokens=text.known(self.completion_tokens, self.output_tokens, old.completion_tokens),
            cached_tokens=text.known(details.cached_tokens, old.cached_tokens),
        )


class _Response(Struct, gc=False):
    usage: UsageReport | None = None


class _Reply(_Response, gc=False):
    response: _Response | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


def usage(reply: bytes) -> UsageReport | None:
    """The usage in an answer or an event; None if there is none or it can't be read."""
    try:
        found = _decode_reply(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.usage or (found.response.usage if found.response else None)


def _converted(value: Any) -> UsageReport:
    return msgspec.convert(value, UsageReport)


USAGE = Format("usage", usage, _converted)
"""`usage` of an answer or an event, or `response.usage` in the Responses API."""


class _Card(Struct):
    id: str


class _Listing(Struct):
    data: list[Raw] = []


_listing = msgspec.json.Decoder(_Listing).decode
_card = msgspec.json.Decoder(_Card).decode


def models(page: bytes) -> Mapping[str, Raw]:
    """The models of a `/v1/models` page: each one's JSON by its name, in their order.

    Raises:
        ValueError: it is no such page.
    """
    return {_card(raw).id: raw for raw in _listing(page).data}
