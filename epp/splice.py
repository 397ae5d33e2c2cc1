"""Replaces the name of a model in JSON as bytes: everything around it stays as it is, byte for byte.

A scanner follows the JSON's structure; text that merely looks like the member is never taken for it. `replaced` is for
a whole document that has been parsed before, `Renamer` for an answer in pieces split at any byte.
"""

import json
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

Path = tuple[str, ...]

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_MEMBER = re.compile(rb'[\s,]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:\s*+', re.DOTALL)
_BRACKET = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[^,}\]\s]*+")
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?\s*+\{")

LONGEST_KEY = 256
"""Bytes of a key that are looked at; a longer one is no place of a model's name."""


def quoted(text: str) -> bytes:
    """A text as JSON."""
    return json.dumps(text, ensure_ascii=False).encode()


def spans(document: bytes, name: str) -> list[tuple[int, int]]:
    """Where the values of that member of the outermost object begin and end; [] if there is none.

    Args:
        document: valid JSON in UTF-8; of anything else the result is some part of it.
        name: of the member. JSON allows it twice; then readers take the last.
    """
    opening = _OPENING.match(document)
    found: list[tuple[int, int]] = []
    place = opening.end() if opening else len(document)
    while member := _MEMBER.match(document, place):
        start, place = member.end(), _value_end(document, member.end())
        if _is(member[1], name):
            found.append((start, place))
    return found


def _is(key: bytes, name: str) -> bool:
    return key[1:-1] == name.encode() or (b"\\" in key and _unquoted(key) == name)


def _unquoted(string: bytes) -> Any:
    try:
        return json.loads(string)
    except ValueError:
        return None


def _value_end(document: bytes, start: int) -> int:
    first = document[start : start + 1]
    if first == b'"':
        return _string_end(document, start)
    if first not in (b"{", b"["):
        scalar = _SCALAR.match(document, start)
        return scalar.end() if scalar else len(document)
    depth, place = 0, start
    while token := _BRACKET.search(document, place):
        place = token.end()
        if token[0] == b'"':
            place = _string_end(document, token.start())
            continue
        depth += 1 if token[0] in b"{[" else -1
        if not depth:
            return place
    return len(document)


def _string_end(document: bytes, start: int) -> int:
    """Behind the text that begins there. Most have no escaped quote, and finding a byte is a hundred times faster."""
    quote = document.find(b'"', start + 1)
    if quote > 0 and document[quote - 1] != ord("\\"):
        return quote + 1
    string = _STRING.match(document, start)
    return string.end() if string else len(document)


def replaced(document: bytes, name: str, value: str) -> bytes:
    """The document with that value for the member of the outermost object, wherever it stands there; added if nowhere.

    Raises:
        ValueError: the document is no object.
    """
    opening = _OPENING.match(document)
    if opening is None:
        raise ValueError("the document is no JSON object")
    new, places = quoted(value), spans(document, name)
    if not places:
        comma = b"" if document[opening.end() :].lstrip().startswith(b"}") else b","
        return b"".join((document[: opening.end()], quoted(name), b":", new, comma, document[opening.end() :]))
    parts: list[bytes] = []
    done = 0
    for start, end in places:
        parts += (document[done:start], new)
        done = end
    return b"".join((*parts, document[done:]))


class _State(Enum):
    """What the next byte of an answer belongs to."""

    LINE = auto()  # an event stream's line, which has just begun
    REST = auto()  # the rest of such a line, in which there is nothing to look for
    ROOT = auto()  # what stands before the document
    MEMBERS = auto()  # an object on the way to the name, between its members
    KEY = auto()  # a key of such an object
    COLON = auto()  # what stands between a key and its value
    VALUE = auto()  # a value that is about to begin
    NAME = auto()  # the text that may be the name: held back until it has ended
    STRING = auto()  # another text
    NESTED = auto()  # an object or a list that isn't on the way to the name
    DONE = auto()  # a document in which there is nothing more to look for


_QUOTE = re.compile(rb'["\\]')
_LINE_END = re.compile(rb"[\r\n]++")
_MARK = re.compile(rb'["}]')
_SPACE = frozenset(b" \t\r\n")
_BEFORE = _SPACE | frozenset(b"\xef\xbb\xbf")
_DATA = b"data:"


class Renamer:
    """Gives a response the model's name that the client knows.

    The name is looked for at `paths` of a JSON document, or of the data of each event, and replaced where it is `old`.
    Nothing is held back but a text at such a place that has not ended yet, and no more of it than the name is long.

    Args:
        paths: such as `(("model",), ("response", "model"))`.
        old: the name that the engine knows.
        new: the name to put in its place.
        events: whether the response is an event stream.
    """

    __slots__ = (
        "_begins",
        "_depth",
        "_escaped",
        "_events",
        "_found",
        "_held",
        "_instead",
        "_key",
        "_longest",
        "_new",
        "_old",
        "_out",
        "_path",
        "_paths",
        "_prefix",
        "_state",
        "_then",
    )

    def __init__(self, paths: Sequence[Path], old: str, new: str, *, events: bool) -> None:
        self._paths = frozenset(paths)
        self._begins = frozenset(path[:length] for path in paths for length in range(1, len(path)))
        self._old, self._new = old, quoted(new)
        self._longest = 12 * len(old) + 2  # each character may be written as two escapes of six bytes
        self._events = events
        self._state = _State.LINE if events else _State.ROOT
        self._path: Path = ()
        self._key = bytearray()
        self._held = bytearray()
        self._out: list[bytes] = []
        self._depth = 0
        self._escaped = False
        self._then = _State.MEMBERS
        self._found: tuple[int, int] | None = None  # up to where in the data, and in the output, the name has been seen
        self._prefix = self._instead = b""

    def __repr__(self) -> str:
        return f"<Renamer of {self._old!r}: {self._state.name} at {self._path}>"

    def feed(self, data: bytes, *, end: bool = False) -> bytes:
        """The next piece of the response as it goes on to the client; `end` gives what was held back."""
        if self._events:
            self._lines(data)
        else:
            self._steps(data)
        if end and self._held:
            self._release()
        if len(self._out) == 1:
            return self._out.pop()
        joined = b"".join(self._out)
        self._out.clear()
        return joined

    def _steps(self, data: bytes) -> None:
        place = 0
        while place < len(data):
            place = _STEPS[self._state](self, data, place)

    def _lines(self, data: bytes) -> None:
        """Takes an event stream line by line: in JSON a line's end stands in no text, so it ends whatever has begun."""
        place = 0
        for found in _LINE_END.finditer(data):
            self._line(data[place : found.start()])
            if self._held:
                self._release()
            self._out.append(found[0])
            self._state, self._escaped = _State.LINE, False
            self._key.clear()
            place = found.end()
        self._line(data[place:])

    def _line(self, data: bytes) -> None:
        """Takes a line, or a part of one. A stream's events begin alike up to the name: only one has to be scanned."""
        if self._state is not _State.LINE or self._key:
            self._steps(data)
        elif self._prefix and data.startswith(self._prefix):
            self._out += (self._instead, data[len(self._prefix) :])
            self._state = _State.REST
        else:
            before, found = len(self._out), self._seen(data)
            if found is not None:
                end, after = found
                self._prefix, self._instead = data[:end], b"".join(self._out[before:after])

    def _seen(self, data: bytes) -> tuple[int, int] | None:
        """Takes a line that begins here; up to where the name has been seen in it, and in the output, if it has."""
        self._found = None
        self._steps(data)
        return self._found

    def _pass(self, data: bytes, start: int, end: int) -> int:
        self._out.append(data[start:end])
        return end

    def _release(self) -> None:
        self._out.append(bytes(self._held))
        self._held.clear()

    # --- one step each: takes the data from a place on, says up to where it has come

    def on_line(self, data: bytes, start: int) -> int:
        """The beginning of a line: an event's data, or nothing of interest."""
        wanted = _DATA[len(self._key) :]
        piece = data[start : start + len(wanted)]
        if not wanted.startswith(piece):
            self._key.clear()
            self._state = _State.REST
            return start
        self._key += piece
        if len(self._key) == len(_DATA):
            self._key.clear()
            self._state = _State.ROOT
        return self._pass(data, start, start + len(piece))

    def on_rest(self, data: bytes, start: int) -> int:
        """The rest of a line."""
        return self._pass(data, start, len(data))

    def on_root(self, data: bytes, start: int) -> int:
        """What stands before the document."""
        end = start
        while end < len(data) and data[end] in _BEFORE:
            end += 1
        if end < len(data):
            if data[end] == ord("{"):
                self._state, self._path = _State.MEMBERS, ()
                end += 1
            else:
                self._finish()
        return self._pass(data, start, end)

    def on_members(self, data: bytes, start: int) -> int:
        """Up to the next key, or to the end of the object; numbers and the like are passed over here."""
        found = _MARK.search(data, start)
        if found is None:
            return self._pass(data, start, len(data))
        if found[0] == b'"':
            self._state = _State.KEY
            self._key.clear()
        elif self._path:
            self._path = self._path[:-1]
        else:
            self._finish()
        return self._pass(data, start, found.end())

    def on_key(self, data: bytes, start: int) -> int:
        """A key; it passes at once, and is remembered."""
        end, closed = self._string(data, start)
        self._key += data[start : end - closed][: LONGEST_KEY - len(self._key)]
        if closed:
            self._state = _State.COLON
        return self._pass(data, start, end)

    def on_colon(self, data: bytes, start: int) -> int:
        """Up to the colon."""
        end = data.find(b":", start) + 1
        if end:
            self._state = _State.VALUE
        return self._pass(data, start, end or len(data))

    def on_value(self, data: bytes, start: int) -> int:
        """The first byte of a value says what to do with it."""
        end = start
        while end < len(data) and data[end] in _SPACE:
            end += 1
        if end == len(data):
            return self._pass(data, start, end)
        path, first = (*self._path, str(_unquoted(b'"%s"' % self._key))), data[end]
        self._pass(data, start, end)
        if first == ord('"') and path in self._paths:
            self._state = _State.NAME
            self._held += b'"'
            return end + 1
        if first == ord('"'):
            self._state, self._then = _State.STRING, _State.MEMBERS
        elif first == ord("{") and path in self._begins:
            self._state, self._path = _State.MEMBERS, path
        elif first in b"{[":
            self._state, self._depth = _State.NESTED, 1
        else:
            self._state = _State.MEMBERS
            return end
        return self._pass(data, end, end + 1)

    def on_name(self, data: bytes, start: int) -> int:
        """A text at a place of the name: replaced if it is the old one."""
        end, closed = self._string(data, start)
        self._held += data[start:end]
        if closed:
            if _unquoted(bytes(self._held)) == self._old:
                self._held[:] = self._new
                self._finish()
                self._found = end, len(self._out) + 1
            else:
                self._state = _State.MEMBERS
            self._release()
        elif len(self._held) > self._longest:
            self._state, self._then = _State.STRING, _State.MEMBERS
            self._release()
        return end

    def on_string(self, data: bytes, start: int) -> int:
        """A text elsewhere."""
        end, closed = self._string(data, start)
        if closed:
            self._state = self._then
        return self._pass(data, start, end)

    def on_nested(self, data: bytes, start: int) -> int:
        """An object or a list in which there is nothing to look for."""
        for found in _BRACKET.finditer(data, start):
            mark = found[0]
            if mark == b'"':
                self._state, self._then = _State.STRING, _State.NESTED
                return self._pass(data, start, found.end())
            self._depth += 1 if mark in b"{[" else -1
            if not self._depth:
                self._state = _State.MEMBERS
                return self._pass(data, start, found.end())
        return self._pass(data, start, len(data))

    def on_done(self, data: bytes, start: int) -> int:
        """What comes after it."""
        return self._pass(data, start, len(data))

    def _string(self, data: bytes, start: int) -> tuple[int, bool]:
        """Where a text ends, behind its quote, and whether it does; an escape may be split over pieces."""
        if self._escaped:
            self._escaped = False
            start += 1
        while found := _QUOTE.search(data, start):
            if found[0] == b'"':
                return found.end(), True
            start = found.end() + 1
            self._escaped = start > len(data)
        return len(data), False

    def _finish(self) -> None:
        self._state = _State.REST if self._events else _State.DONE


_STEPS = {state: getattr(Renamer, f"on_{state.name.lower()}") for state in _State}
