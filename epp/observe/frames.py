"""The frames of a decision log's file, plain or gzipped, as far as they can be read.

A frame that is damaged is passed over: the next one that is whole is looked for from there on, wherever it begins,
since its length may be what is damaged. zlib's checksum tells a frame from bytes that only look like one.
"""

import re
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from epp.errors import ConfigError

MAGIC = b"epplog\r\n"
LENGTH = Struct("<I")
LONG = 4096
"""Bytes a message from which on a frame isn't compressed."""

_CHUNK = 2**16
_GZIP = b"\x1f\x8b"
_WBITS_GZIP = 31  # zlib's: a gzip header, and the largest window
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")  # RFC 1950: a window of 32 KiB, any level


class Frame(NamedTuple):
    """Where it begins in the file's content, and its messages as they were encoded."""

    at: int
    messages: list[bytes]


class Lost(NamedTuple):
    """Where something begins that can't be read, and why; what follows it can, if anything does."""

    at: int
    why: str


class _Damaged(Exception):
    """Why a frame can't be read."""


def framed(messages: list[bytes]) -> bytes:
    """A frame of encoded messages."""
    data = b"".join([part for each in messages for part in (LENGTH.pack(len(each)), each)])
    # Long ones are hashes for the most part, which nothing makes shorter.
    packed = zlib.compress(data, 1 if len(data) < LONG * len(messages) else 0)
    return LENGTH.pack(len(packed)) + packed


def is_log(file: Path) -> bool:
    """Whether a file begins as a decision log does, perhaps gzipped; False if it can't be read."""
    try:
        with file.open("rb") as raw:
            return _Content(raw).peek(len(MAGIC)) == MAGIC
    except OSError:
        return False


def frames(file: Path) -> Iterator[Frame | Lost]:
    """The frames of a file, and what is lost between them. Offsets are those of the content, without its gzip.

    Raises:
        ConfigError: the file can't be read, or doesn't begin as a decision log.
    """
    try:
        with file.open("rb") as raw:
            content = _Content(raw)
            if content.peek(len(MAGIC)) != MAGIC:
                raise ConfigError(f"{file}: is no decision log: write one with epp serve --decision-log {file}")
            content.drop(len(MAGIC))
            yield from _frames(content)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}") from error


class _Content:
    """What a file has in it.

    Attributes:
        at: how much of it has been dropped.
        broken: why it ended before its end; None if it didn't.
    """

    def __init__(self, raw: BufferedReader) -> None:
        zipped = raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP
        self._pieces = self._inflated(raw) if zipped else iter(lambda: raw.read(_CHUNK), b"")
        self._held = bytearray()
        self.at = 0
        self.broken: str | None = None

    def peek(self, size: int) -> bytes:
        """So many of the next bytes, or as many as there are."""
        while len(self._held) < size and (piece := next(self._pieces, None)) is not None:
            self._held += piece
        return bytes(self._held[:size])

    def rest(self) -> bytes:
        """All that there is from here on."""
        for piece in self._pieces:
            self._held += piece
        return bytes(self._held)

    def drop(self, size: int) -> None:
        """Goes on after so many bytes."""
        del self._held[:size]
        self.at += size

    def _inflated(self, raw: BufferedReader) -> Iterator[bytes]:
        inflater = zlib.decompressobj(_WBITS_GZIP)
        while read := raw.read(_CHUNK):
            while read.strip(b"\0") if inflater.eof else read:  # further members may follow, or padding
                inflater = zlib.decompressobj(_WBITS_GZIP) if inflater.eof else inflater
                before = inflater.copy()
                try:
                    piece = inflater.decompress(read)
                except zlib.error as error:
                    self.broken = f"its gzip is damaged: {error}"
                    yield from _up_to_damage(before, read)
                    return
                read = inflater.unused_data
                yield piece
        if not inflater.eof:
            self.broken = "its gzip is cut off"


def _up_to_damage(inflater: "zlib._Decompress", read: bytes) -> Iterator[bytes]:
    """What can be had of a piece that can't be inflated as a whole."""
    for byte in read:
        try:
            yield inflater.decompress(bytes([byte]))
        except zlib.error:
            return


def _frames(content: _Content) -> Iterator[Frame | Lost]:
    while head := content.peek(LENGTH.size):
        at = content.at
        size = LENGTH.size + (LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 0)
        try:
            messages = _messages(content.peek(size))
        except _Damaged as error:
            following = _next(content.rest())
            if following is None:
                yield Lost(at, content.broken or str(error))
                return
            yield Lost(at, str(error))
            content.drop(following)
        else:
            yield Frame(at, messages)
            content.drop(size)
    if content.broken:
        yield Lost(content.at, content.broken)


def _messages(data: bytes) -> list[bytes]:
    """The messages of what should be one whole frame."""
    if len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
        raise _Damaged("the frame that begins there is cut off")
    try:
        return _parts(zlib.decompress(data[LENGTH.size :]))
    except zlib.error as error:
        raise _Damaged(f"the frame that begins there is damaged: {error}") from error


def _parts(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        start = at + LENGTH.size
        at = start + LENGTH.unpack_from(data, at)[0] if start <= len(data) else start
        if at > len(data):
            raise _Damaged("a message of the frame that begins there is cut off")
        found.append(data[start:at])
    return found


def _next(rest: bytes) -> int | None:
    """Where the first whole frame begins after the one that can't be read; None if there is no other."""
    for found in _ZLIB.finditer(rest, LENGTH.size + 1):
        at = found.start() - LENGTH.size
        size = LENGTH.size + LENGTH.unpack_from(rest, at)[0]
        try:
            _messages(rest[at : at + size])
        except _Damaged:
            continue
        return at
    return None
