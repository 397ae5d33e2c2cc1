"""The decision log as bytes; docs/decision-log.md has the table.

    file    = MAGIC, frames
    frame   = length of what follows (4 bytes, little-endian), zlib of messages
    message = its length (4 bytes, little-endian), msgpack

An `Opening` begins every file, and begins the names anew where it stands. `Names` are numbered from 0 in the order in
which they come; rows refer to them by number. Messages are arrays whose first element says which one it is; later
versions may append elements, which older readers skip, or raise `FORMAT` if they must not.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import BinaryIO

import msgspec

from epp.errors import ConfigError

MAGIC = b"epplog\r\n"
FORMAT = 1
LENGTH = Struct("<I")
LONG = 4096
"""Bytes a message from which on a frame isn't compressed."""

_GZIP = b"\x1f\x8b"


class _Message(msgspec.Struct, array_like=True, gc=False, eq=False):
    """The base of what is written: an array of its fields."""


class Opening(_Message, tag=0, tag_field="t"):
    """What holds for all rows up to the next opening: see `epp.observe.entries.Entry`."""

    format: int
    version: str
    started: float
    block_tokens: int
    space: int


class Names(_Message, tag=1, tag_field="t"):
    """Names that rows refer to."""

    texts: list[str]


class Stage(_Message):
    """`scores`, `totals`: float32, little-endian, as `epp.observe.entries.Stage` has them."""

    profile: int
    scorers: list[int]
    weights: list[float]
    scores: bytes
    totals: bytes
    pick: list[int]


class Comparison(_Message):
    """See `epp.observe.entries.Comparison`."""

    other: int | None
    agreed: bool
    regret: float | None


class Refusal(_Message):
    """What the client was told."""

    status: int
    code: int
    reason: int | None


class Ended(_Message):
    """See `epp.request.Outcome`; `usage` is prompt, completion and cached tokens."""

    status: int | None
    served_by: int | None
    cause: int | None
    first_byte: float | None
    duration: float | None
    response_bytes: int | None
    streaming: bool | None
    usage: tuple[int | None, int | None, int | None]


class Row(_Message, tag=2, tag_field="t"):
    """One request: see `epp.observe.entries.Entry`. Arrays are little-endian; `fresh` is empty where all are."""

    id: str
    kind: int
    arrived: float
    model: int
    target_model: int
    fairness_id: int
    priority: int
    size: int | None
    prompt_bytes: int
    max_tokens: int | None
    streaming: bool
    chains: list[bytes]
    decided_in: float | None
    candidates: int
    servers: bytes
    fresh: bytes
    ages: bytes
    signals: list[tuple[int, bytes]]
    stages: list[Stage]
    primary: int | None
    sent_to: int | None
    shadow: list[Stage]
    against_shadow: Comparison | None
    against_ours: Comparison | None
    error: Refusal | None
    outcome: Ended


Message = Opening | Names | Row

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def framed(messages: list[bytes]) -> bytes:
    """A frame of encoded messages."""
    data = b"".join([part for each in messages for part in (LENGTH.pack(len(each)), each)])
    # Long ones are hashes for the most part, which nothing makes shorter.
    packed = zlib.compress(data, 1 if len(data) < LONG * len(messages) else 0)
    return LENGTH.pack(len(packed)) + packed


def rotated(file: Path) -> list[Path]:
    """What has been rotated away from a file, `FILE.1` first, which is the youngest."""
    found: list[Path] = []
    while (older := file.with_name(f"{file.name}.{len(found) + 1}")).exists():
        found.append(older)
    return found


def messages(file: Path) -> Iterator[Message]:
    """The messages of a file. One that ends in the middle of a frame is being written, and ends before it.

    Raises:
        ConfigError: the file can't be read, or isn't a decision log that this version understands.
    """
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == _GZIP
            raw.seek(0)
            if zipped:
                with gzip.open(raw) as opened:
                    yield from _messages(file, opened)
            else:
                yield from _messages(file, raw)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error


def _messages(file: Path, stream: BinaryIO | gzip.GzipFile) -> Iterator[Message]:
    if stream.read(len(MAGIC)) != MAGIC:
        raise ConfigError(f"{file}: is no decision log: write one with epp serve --decision-log {file}")
    for frame in _frames(stream):
        try:
            for each in _parts(zlib.decompress(frame)):
                message = _decode(each)
                if isinstance(message, Opening) and message.format > FORMAT:
                    newer = f"is of format {message.format}, written by epp {message.version}"
                    raise ConfigError(
                        f"{file}: {newer}; this version reads formats up to {FORMAT}: read it with a newer one"
                    )
                yield message
        except (zlib.error, msgspec.MsgspecError) as error:
            raise ConfigError(f"{file}: is damaged: {error}") from error


def _frames(stream: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
    while len(head := stream.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        frame = stream.read(length)
        if len(frame) < length:
            return
        yield frame


def _parts(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        yield data[at : at + length]
        at += length
