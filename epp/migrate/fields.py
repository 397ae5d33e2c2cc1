"""Reads the fields of one Kubernetes object and collects what is wrong with it, each with its place."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from epp.migrate.documents import Mapping, Scalar, Sequence

Value = Mapping | Sequence | Scalar


@dataclass(slots=True)
class Report:
    """What is to be said.

    Attributes:
        problems: why nothing can be made of it, each with place and remedy.
        notes: what changes, or has to be done besides.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Fields:
    """A mapping inside an object, and where it is.

    A field that is missing or wrong is reported and read as None; one whose value is null is absent, as it is for
    Kubernetes.

    Args:
        value: the mapping.
        file: for messages.
        about: the object, for messages.
        path: of the mapping in the object, "" for the object itself.
        report: takes what is wrong.
    """

    def __init__(self, value: Mapping, file: str, about: str, path: str, report: Report) -> None:
        self._value = value
        self._file = file
        self._about = about
        self._path = path
        self._report = report
        self._read: set[str] = set()

    def problem(self, key: str, message: str) -> None:
        """Reports what is wrong with a field."""
        self._report.problems.append(self._message(key, message))

    def note(self, key: str, message: str, line: int = 0) -> None:
        """Reports what should be known of a field; its line is found by its key, unless the key is a longer path."""
        self._report.notes.append(self._message(key, message, line))

    def text(self, key: str, *, required: bool = False) -> Scalar | None:
        """A text."""
        value = self._scalar(key, required=required)
        if value is not None and (value.style is None and value.tag != "tag:yaml.org,2002:str"):
            self.problem(key, f'must be text: put "{value}" in quotes')
            return None
        return value

    def number(self, key: str, least: int, most: int, *, required: bool = False) -> Scalar | None:
        """A whole number."""
        value = self._scalar(key, required=required)
        if value is None:
            return None
        if value.style is not None or not value.isdecimal() or not least <= int(value) <= most:
            self.problem(key, f"must be a number from {least} to {most}, not {_shown(value)}")
            return None
        return value

    def choice(self, key: str, allowed: Iterable[str]) -> Scalar | None:
        """One of a few words."""
        value = self.text(key)
        if value is not None and value not in (words := list(allowed)):
            self.problem(key, f"{value!r} is none of {', '.join(words)}{_nearest(value, words)}")
            return None
        return value

    @contextmanager
    def mapping(self, key: str, *, required: bool = False) -> Iterator["Fields | None"]:
        """A mapping, to be read inside the `with`; what it has besides is reported at the end."""
        value = self._get(key, required=required)
        if value is None:
            yield None
        elif not isinstance(value, Mapping):
            self.problem(key, f"must be a mapping, not {_shown(value)}")
            yield None
        else:
            inner = Fields(value, self._file, self._about, self._under(key), self._report)
            yield inner
            inner.finish()

    def items(self, key: str) -> Iterator["Fields"]:
        """The mappings of a list; what each has besides is reported."""
        value = self._get(key, required=False)
        if value is not None and not isinstance(value, Sequence):
            self.problem(key, f"must be a list, not {_shown(value)}")
            return
        for index, item in enumerate(value or ()):
            if not isinstance(item, Mapping):
                self.problem(f"{key}[{index}]", f"must be a mapping, not {_shown(item)}")
                continue
            inner = Fields(item, self._file, self._about, self._under(f"{key}[{index}]"), self._report)
            yield inner
            inner.finish()

    def labels(self) -> Mapping:
        """The mapping itself, whose values are texts."""
        found = Mapping(line=self._value.line)
        for key in self._value:
            value = self.text(key)
            if value is not None:
                found[key] = value
            elif not self.has(key):
                self.problem(key, f'has no value: give it one ("" for an empty one), or leave {key} out')
        return found

    def rest(self, without: Iterable[str]) -> Mapping:
        """The mapping as it is, but for some fields; whatever it has counts as read."""
        left_out = set(without)
        self.skip(*self._value)
        return Mapping((pair for pair in self._value.items() if pair[0] not in left_out), self._value.line)

    def skip(self, *keys: str) -> None:
        """Counts fields as read."""
        self._read.update(str(key) for key in keys)

    def keys(self) -> list[str]:
        """The fields that are there."""
        return [str(key) for key in self._value]

    def inner(self, key: str) -> "Fields | None":
        """A mapping that may be something else as well; None if it is."""
        value = self._value.get(key)
        if not isinstance(value, Mapping):
            return None
        self.skip(key)
        return Fields(value, self._file, self._about, self._under(key), self._report)

    def has(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self._get(key, required=False) is not None

    def finish(self) -> None:
        """Reports the fields that nobody has asked for: they would be lost."""
        for key in self._value:
            if key not in self._read:
                hint = _nearest(key, sorted(self._read)) or f"; known here: {', '.join(sorted(self._read))}"
                self.problem(key, f"unknown field, which would be lost{hint}")

    def _get(self, key: str, *, required: bool) -> Value | None:
        self._read.add(str(key))
        value: Value | None = self._value.get(key)
        if value is None or (isinstance(value, Scalar) and value.null):
            if required:
                self.problem(key, "is missing")
            return None
        return value

    def _scalar(self, key: str, *, required: bool) -> Scalar | None:
        value = self._get(key, required=required)
        if value is not None and not isinstance(value, Scalar):
            self.problem(key, f"must be one value, not {_shown(value)}")
            return None
        return value

    def _under(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else str(key)

    def _message(self, key: str, message: str, line: int = 0) -> str:
        found = self._value.get(key.partition("[")[0])
        line = line or getattr(found, "line", 0) or self._value.line
        path = self._under(key) if key else self._path
        return f"{self._file}:{line}: {self._about}: {path + ': ' if path else ''}{message}"


def _shown(value: Value) -> str:
    if isinstance(value, Scalar):
        return repr(str(value))
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _nearest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
