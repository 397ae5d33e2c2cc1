"""The bytes of a prompt: what an engine's prefix cache depends on, whatever the JSON around it looks like.

Text enters as UTF-8; pictures, sounds and other media as `MEDIA_BYTES` made of their digest, so that different ones
differ; token ids as unsigned 32-bit little-endian integers. Bytes that UTF-8 never has keep the parts apart.
"""

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from sys import byteorder
from typing import Any

import msgspec
from xxhash import xxh3_128_digest

from epp.errors import BadRequest

MEDIA_BYTES = 896
"""Bytes of a picture, a sound or a video in a prompt: 224 tokens, about 640 x 360 pixels at 1,024 pixels a token."""

MAX_TOKENS = 2**31 - 1
"""A larger limit counts as this one."""

MEMO_ENTRIES, MEMO_BYTES = 128, 64 * 1024
"""How many values the memo of canonical JSON holds, and up to which length each: at most 16 MB."""

DIGEST_BYTES = 16
"""Bytes of what tells one picture, sound or video from another."""

TOKEN_BYTES = 4
"""Bytes of a token id in a prompt."""

FEWEST_MEDIA_TOKENS = 5

# None of these bytes occurs in UTF-8, so no text can imitate a boundary.
FIELD, VALUE, MESSAGE, ITEM, PART, MEDIA = (bytes([byte]) for byte in range(0xFF, 0xF9, -1))

BOM = b"\xef\xbb\xbf"

_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)

_TRUE = frozenset({"true", "yes", "on", "t", "y", "1"})  # what vLLM's pydantic reads as true

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder(order="deterministic").encode


def unreadable(body: bytes, error: Exception) -> BadRequest:
    """What the client gets for a body that `error` says can't be decoded.

    Half of a surrogate pair, which is what is left of an emoji that was cut in two, is told by its place.
    """
    lone = lone_surrogate(body)
    if lone is None:
        return BadRequest(f"error unmarshaling request bodyMap: {error}")
    start, escape = lone
    half = f"{escape} at byte {start} is half of a surrogate pair, and no character"
    return BadRequest(f"error unmarshaling request bodyMap: {half}: send both halves, or \\ufffd in its place")


def lone_surrogate(body: bytes) -> tuple[int, str] | None:
    """The first escaped surrogate of a JSON text that has no other half, with its place; None if there is none."""
    high: re.Match[bytes] | None = None
    for match in _ESCAPE.finditer(body):
        unit = int(match[1], 16) if match[1] else 0
        paired = high is not None and high.end() == match.start() and 0xDC00 <= unit <= 0xDFFF
        if high is not None and not paired:
            break
        if not paired and 0xDC00 <= unit <= 0xDFFF:
            high = match
            break
        high = match if 0xD800 <= unit <= 0xDBFF else None
    return None if high is None else (high.start(), high[0].decode())


def canonical(source: bytes) -> bytes:
    """The one form of a JSON value without spaces and with sorted keys; b"" for null and for empty values."""
    return _remembered(source) if len(source) <= MEMO_BYTES else _canonicalised(source)


def _canonicalised(source: bytes) -> bytes:
    value = decode(source)
    return text(value) if value else b""


_remembered = lru_cache(MEMO_ENTRIES)(_canonicalised)  # an agent sends the same tools with every turn


def text(value: Any) -> bytes:
    """A text as UTF-8, nothing for None, the canonical JSON of anything else."""
    if isinstance(value, str):
        return value.encode()
    return b"" if value is None else encode(value)


def media(content: bytes) -> bytes:
    """What stands for a picture, a sound or a video: its digest, at the length that such a thing takes."""
    digest = xxh3_128_digest(content)
    return MEDIA + digest * (MEDIA_BYTES // len(digest))


def media_in(prompt: bytes) -> tuple[bytes, ...]:
    """The digests of the media in a prompt of text, in their order."""
    found: list[bytes] = []
    at = prompt.find(MEDIA)
    while at >= 0:
        found.append(prompt[at + 1 : at + 1 + DIGEST_BYTES])
        at = prompt.find(MEDIA, at + 1 + MEDIA_BYTES)  # a digest may have any bytes
    return tuple(found)


def resized(prompt: bytes, tokens: Sequence[int]) -> bytes:
    """The prompt with so many tokens for each of its media, in their order; 5 at least, for the digest to fit in."""
    out, at = bytearray(), 0
    for count in tokens:
        start = prompt.index(MEDIA, at)
        digest = prompt[start + 1 : start + 1 + DIGEST_BYTES]
        size = max(count, FEWEST_MEDIA_TOKENS) * TOKEN_BYTES
        out += prompt[at:start] + (MEDIA + digest * (size // DIGEST_BYTES + 1))[:size]
        at = start + 1 + MEDIA_BYTES
    return bytes(out + prompt[at:])


def fields(named: Iterable[tuple[str, Any]]) -> list[bytes]:
    """Fields of JSON that are rendered before the first message, as they were sent; empty ones leave no trace."""
    out: list[bytes] = []
    for name, raw in named:
        if raw and (value := canonical(bytes(raw))):
            out += (FIELD, name.encode(), VALUE, value)
    return out


def ids(numbers: Any) -> bytes:
    """Token ids as unsigned 32-bit little-endian integers.

    Raises:
        BadRequest: one isn't.
    """
    try:
        packed = array("I", numbers)
    except (TypeError, OverflowError) as error:
        raise BadRequest(f"invalid token ids: must be integers from 0 to 4294967295: {error}") from error
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def with_media(tokens: bytes, placeholders: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Token ids in which media take the place of the ids that stand for them.

    An engine has the same id for every place of every picture; it tells them apart by what they show.

    Args:
        tokens: as from `ids`.
        placeholders: (offset, length, identity) of each, in tokens; what lies outside of the prompt is left out.
    """
    out = bytearray(tokens)
    for offset, length, identity in placeholders:
        start, stop = offset * TOKEN_BYTES, min((offset + length) * TOKEN_BYTES, len(out))
        if 0 <= start < stop:
            digest = xxh3_128_digest(identity)
            out[start:stop] = (digest * ((stop - start) // len(digest) + 1))[: stop - start]
    return bytes(out)


def flag(value: Any) -> bool:
    """A truth value as vLLM reads one; false for what is none."""
    if value is None or isinstance(value, bool):
        return bool(value)
    return isinstance(value, (str, int)) and str(value).lower() in _TRUE


def limit(*values: Any) -> int | None:
    """The token limit: the first of them that is set; None if it is no number."""
    value = known(*values)
    if isinstance(value, str) and value.isdecimal():
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
        return None
    return int(min(value, MAX_TOKENS))


def known(*values: Any) -> Any:
    """The first that is known."""
    for value in values:
        if value is not None:
            return value
    return None


def string(value: Any) -> str:
    """The text; "" for anything else."""
    return value if isinstance(value, str) else ""


def member(value: Any, name: str) -> Any:
    """A member of an object; None if it is no object, or has no such member."""
    return value.get(name) if isinstance(value, Mapping) else None
