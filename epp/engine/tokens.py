"""Text to pseudo tokens and back: four bytes of UTF-8 are one token, so no vocabulary is needed.

A prompt's pieces (each message of a chat, each part of a message) start at a token of their own, as with a real chat
template's special tokens. Two prompts that share a prefix of text therefore share the prefix of tokens, and an answer
that comes back as a message of the next turn has the tokens it was generated with.
"""

import math
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import xxhash

TOKEN_BYTES = 4
IMAGE_TOKENS = 256

# UTF-8 has no byte 0xFF, so these are never the token of a text.
_MARKER = 0xFFFFFF00
END = _MARKER
_ROLES = {"system": _MARKER + 1, "user": _MARKER + 2, "assistant": _MARKER + 3, "tool": _MARKER + 4}
_OTHER_ROLE = _MARKER + 5
_TOOLS = _MARKER + 6
_MEDIA = _MARKER + 7

_WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man new now old see two "
    "way who boy did its let put say she too use dad mom run sun cup map red big sea sky tea ten top win yes ask bad "
    "box car dog eat far few fun got"
)
_ANSWER = [int.from_bytes(f" {word}".encode(), sys.byteorder) for word in _WORDS.split()]


def text_tokens(text: str) -> "array[int]":
    """The tokens of a text, the last one padded with zero bytes."""
    data = text.encode("utf-8", "surrogatepass")
    return array("I", data + bytes(-len(data) % TOKEN_BYTES))


def chat_tokens(messages: Iterable[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> "array[int]":
    """The tokens of a chat: tools first, then role, content and end of each message, then the assistant's role.

    Args:
        messages: OpenAI messages; ``content`` is a string, a list of parts, or absent.
        tools: OpenAI tools; they count as their JSON text.
    """
    tokens = array("I")
    if tools:
        tokens.append(_TOOLS)
        tokens += text_tokens(_json(tools))
    for message in messages:
        tokens += _role_tokens(str(message.get("role", "user")))
        tokens += _content_tokens(message.get("content"))
        if message.get("tool_calls"):
            tokens += text_tokens(_json(message["tool_calls"]))
        tokens.append(END)
    tokens.append(_ROLES["assistant"])
    return tokens


def _role_tokens(role: str) -> "array[int]":
    if role in _ROLES:
        return array("I", [_ROLES[role]])
    return array("I", [_OTHER_ROLE]) + text_tokens(role)


def _content_tokens(content: Any) -> "array[int]":
    if content is None:
        return array("I")
    if isinstance(content, str):
        return text_tokens(content)
    tokens = array("I")
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        tokens += text_tokens(text) if isinstance(text, str) else _media_tokens(part)
    return tokens


def _media_tokens(part: Any) -> "array[int]":
    """A picture or a sound: always ``IMAGE_TOKENS`` tokens, equal for equal content."""
    digest = xxhash.xxh32_intdigest(msgspec.json.encode(part)) & 0x7FFFFFFF
    return array("I", [_MEDIA]) + array("I", [digest]) * (IMAGE_TOKENS - 1)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def answer_token(seed: int, position: int) -> int:
    """The token at a position of an answer, a short English word with a space before it."""
    mixed = (seed + position * 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    return _ANSWER[mixed >> 32 & 63]


def answer_length(seed: int, mean: float) -> int:
    """How long an answer gets if nothing cuts it, in tokens with the end token; geometric with the given mean."""
    uniform = xxhash.xxh3_64_intdigest(seed.to_bytes(8, "little")) / 2**64
    return 1 + int(math.log1p(-uniform) / math.log1p(-1 / mean)) if mean > 1 else 1


def token_text(token: int) -> bytes:
    """The UTF-8 of an answer's token; nothing for the end of a message. It never needs escaping in JSON."""
    return b"" if token == END else token.to_bytes(TOKEN_BYTES, sys.byteorder)
