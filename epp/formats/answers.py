"""Usage in answers: JSON documents and event streams, in pieces split at any byte."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from epp.request import Usage

RESPONSE_BYTES = 2**20
"""The most bytes of a response that are kept; of a longer JSON answer only the end is searched for the usage."""

TAIL_BYTES = 4096
"""The longest report of usage that is looked for at the end of a long answer."""

_json_decoder = json.JSONDecoder()


class Report(Protocol):
    """What an answer says of its usage."""

    def over(self, old: Usage) -> Usage:
        """What this report says, and the older one where it says nothing."""
        ...


class Format(NamedTuple):
    """How an API reports usage.

    Attributes:
        key: of the member that holds it, such as "usage".
        read: the report in a whole answer, or in an event's data; None if there is none, or it can't be read.
        convert: the report from the member's value.
    """

    key: str
    read: Callable[[bytes], Report | None]
    convert: Callable[[Any], Report]

    def at_end(self, tail: bytes) -> Report | None:
        """The report in the last bytes of an answer: the value of its last key of that name."""
        start = tail.rfind(f'"{self.key}"'.encode())
        text = tail[start : start + TAIL_BYTES].decode("utf-8", "replace") if start >= 0 else ""
        try:
            value, _ = _json_decoder.raw_decode(text.partition(":")[2].lstrip())
            return self.convert(value)
        except (ValueError, RecursionError, msgspec.ValidationError):
            return None


class Gathered:
    """Pieces that can't be read yet; of more than `RESPONSE_BYTES` the oldest are dropped, and `cut` says so."""

    __slots__ = ("_pieces", "_size", "cut")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.cut = False

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, data: bytes) -> None:
        """Keeps a piece."""
        self.cut = self.cut or len(data) > RESPONSE_BYTES
        self._pieces.append(data[-RESPONSE_BYTES:])
        self._size += len(self._pieces[-1])
        while self._size > RESPONSE_BYTES:
            self._size -= len(self._pieces.popleft())
            self.cut = True

    def take(self) -> bytes:
        """What has been kept; from now on nothing is."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return data


class JsonUsage:
    """Reads the usage out of a JSON answer when it has ended."""

    __slots__ = ("_format", "_gathered", "usage")

    def __init__(self, form: Format) -> None:
        self.usage = Usage()
        self._format = form
        self._gathered = Gathered()

    def feed(self, data: bytes, *, end: bool) -> None:
        """The next piece of the body; `end` with the last one."""
        self._gathered.add(data)
        if not end:
            return
        read = self._format.at_end if self._gathered.cut else self._format.read
        if found := read(self._gathered.take()):
            self.usage = found.over(self.usage)


class EventUsage:
    """Reads the usage out of an event stream, line by line: every engine writes an event's data as one line."""

    __slots__ = ("_format", "_key", "_line", "_null", "usage")

    def __init__(self, form: Format) -> None:
        self.usage = Usage()
        self._format = form
        self._key = f'"{form.key}"'.encode()
        self._null = self._key + b":null"
        self._line = Gathered()  # the line that hasn't ended

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
        if self._key in lines and lines.count(self._key) > lines.count(self._null):
            self._read(lines)

    def _read(self, lines: bytes) -> None:
        for line in lines.splitlines():
            if line.startswith(b"data:") and self._key in line and (found := self._format.read(line[5:])):
                self.usage = found.over(self.usage)
