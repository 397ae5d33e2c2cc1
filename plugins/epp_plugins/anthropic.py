"""anthropic-parser: reads requests of Anthropic's Messages API, and the usage out of the answers.

What it does
    Reads model, stream flag, token limit, cache salt and the prompt out of the JSON body. The prompt is what an
    engine's prefix cache depends on, in the order in which a chat template renders it: tools, system, then each
    message with its role and blocks. Spacing and key order of the JSON don't enter, nor do sampling parameters,
    `metadata` and `cache_control`. System blocks that begin with `x-anthropic-billing-header` change with every
    request and are dropped, as engines do. Pictures and documents enter by their digest.

    | Path | Prompt |
    |---|---|
    | `messages` | `tools`, `system`, `messages` |
    | `messages/count_tokens` | none: nothing is generated or cached, so load alone decides |

Reads
    The request's path and body, and the response's body if the body mode shows it.

Writes
    `Body`: `model`, `prompts`, `cache_salt`, `stream`, `max_tokens`. `Usage`: `input_tokens`, `output_tokens` and
    `cache_read_input_tokens` of a JSON answer, or of `message_start` and `message_delta` in an event stream; a later
    number that isn't 0 replaces an earlier one.

Parameters
    None.

Example:
    plugins:
    - type: anthropic-parser
    requestHandler:
      parsers:
      - pluginRef: anthropic-parser

Where it departs from llm-d, and why
    - The model of `messages/count_tokens` is read: it can be rewritten, and goes to an engine that serves it.
    - Key order and spacing of tools and of a tool's input don't enter the prompt: the engine parses them.
    - Blocks of unknown types enter as their JSON; llm-d drops them.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from epp.plugin import BadRequest, Body, ResponseReader, Usage, formats

text = formats.text

COUNT = "messages/count_tokens"
BILLING = "x-anthropic-billing-header"
_MEDIA = frozenset({"image", "document"})


class _Message(Struct, gc=False):
    role: Any = None
    content: Any = None


class _Request(Struct, gc=False):
    model: Any = None
    stream: Any = None
    cache_salt: Any = None
    max_tokens: Any = None
    system: Any = None
    messages: list[_Message] | None = None
    tools: Raw = Raw()


_decode_request = msgspec.json.Decoder(_Request).decode


class AnthropicParser:
    """Reads requests of Anthropic's Messages API, and the usage out of the answers."""

    paths: tuple[str, ...] = ("messages", COUNT)
    model_paths = (("model",), ("message", "model"))

    def parse(self, path: str, headers: Mapping[str, str], body: bytes) -> Body:
        """Reads a request; BadRequest says what no engine could take."""
        try:
            request = _decode_request(body.removeprefix(text.BOM))
            counts = path.strip("/").endswith(COUNT)
            prompts = () if counts else (_prompt(request),)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise text.unreadable(body, error) from error
        if not request.messages:
            raise BadRequest("invalid messages request: must have valid messages field")
        model = text.string(request.model)
        if not model:
            raise BadRequest("model not found in request body")
        salt, stream = text.string(request.cache_salt), text.flag(request.stream)
        media = text.media_in(prompts[0]) if prompts else ()
        return Body(model, prompts, salt, stream, text.limit(request.max_tokens), media)

    def response(self, *, streaming: bool) -> ResponseReader:
        """A reader of a response's usage."""
        reader = formats.answers.EventUsage if streaming else formats.answers.JsonUsage
        return reader(USAGE)


def _prompt(request: _Request) -> bytes:
    out = text.fields((("tools", request.tools),))
    system = _without_billing(request.system)
    if system:
        out += (text.MESSAGE, b"system", text.VALUE, _content(system))
    for message in request.messages or ():
        out += (text.MESSAGE, text.text(message.role), text.VALUE, _content(message.content))
    return b"".join(out)


def _without_billing(system: Any) -> Any:
    if not isinstance(system, list):
        return system
    return [block for block in system if not text.string(text.member(block, "text")).startswith(BILLING)]


def _content(content: Any) -> bytes:
    """A message's content; a single block of text is the same as the text itself."""
    if isinstance(content, list):
        return text.PART.join(map(_block, content))
    return text.text(content)


def _block(block: Any) -> bytes:
    if not isinstance(block, dict):
        return text.text(block)
    kind = block.pop("type", None)
    block.pop("cache_control", None)  # a hint that clients move from message to message as a conversation grows
    if kind in ("text", "thinking") and isinstance(block.get(kind), str):
        return text.text(block[kind])
    if isinstance(kind, str) and kind in _MEDIA:
        return text.media(text.text(kind) + text.encode(block))
    if kind == "tool_result":
        result = _content(block.pop("content", None))
        return b"".join((text.ITEM, b"tool_result", text.VALUE, text.encode(block), text.VALUE, result))
    return b"".join((text.ITEM, text.text(kind), text.VALUE, text.encode(block)))


class UsageReport(Struct, gc=False):
    """The `usage` of an answer or of an event."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None

    def over(self, old: Usage) -> Usage:
        """What this report says, and the older one where it says nothing or 0."""
        return Usage(
            self.input_tokens or _or(old.prompt_tokens, self.input_tokens),
            self.output_tokens or _or(old.completion_tokens, self.output_tokens),
            self.cache_read_input_tokens or _or(old.cached_tokens, self.cache_read_input_tokens),
        )


def _or(old: int | None, new: int | None) -> int | None:
    return new if old is None else old


class _Started(Struct, gc=False):
    usage: UsageReport | None = None


class _Reply(Struct, gc=False):
    usage: UsageReport | None = None
    message: _Started | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode


def usage(reply: bytes) -> UsageReport | None:
    """The usage in an answer or an event; None if there is none or it can't be read."""
    try:
        found = _decode_reply(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found.usage or (found.message.usage if found.message else None)


def _converted(value: Any) -> UsageReport:
    return msgspec.convert(value, UsageReport)


USAGE = formats.answers.Format("usage", usage, _converted)
