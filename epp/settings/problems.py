"""What is wrong with a configuration: every problem at once, each with its place, its line and the remedy."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from epp.errors import ConfigError

Path = tuple[str | int, ...]
"""Where something stands in a configuration, such as ("schedulingProfiles", 0, "plugins", 2, "weight")."""

Fault = tuple[Path, str]
"""A place, and what is wrong there."""

BROKEN = "\0"
"""Stands for a name or a type that can't be read, which the report has told of; no text in YAML has this character."""


def within(path: Path, around: Path) -> bool:
    """Whether the path is that place, or one inside it."""
    return path[: len(around)] == around


def place(path: Path) -> str:
    """The path as it is written: `schedulingProfiles[0].plugins[2].weight`; "" for the whole file."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        place: where, such as `plugins[2].type`; "" for the whole file.
        message: what is wrong, what is allowed, and the nearest known name.
        line: in the text, from 1; None where there is none, as for an injected plugin.
    """

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class InvalidConfig(ConfigError):
    """A configuration with errors.

    Attributes:
        origin: the file, or what else the text came from.
        problems: all of them, by line.
    """

    def __init__(self, origin: str, problems: Sequence[Problem]) -> None:
        self.origin = origin
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or 0))
        super().__init__("\n".join(map(self._located, self.problems)))

    def __reduce__(self) -> tuple[type["InvalidConfig"], tuple[str, tuple[Problem, ...]]]:
        """As exceptions that pass between processes have to be copied: by what it was made of."""
        return InvalidConfig, (self.origin, self.problems)

    def _located(self, problem: Problem) -> str:
        return f"{self.origin}:{problem.line}: {problem}" if problem.line else f"{self.origin}: {problem}"


@dataclass(slots=True)
class Report:
    """Collects the errors and warnings of one load.

    Attributes:
        replaced: places whose value is not what the file says, which has been told: further errors there only follow.
        respelt: places that the file has under a misspelt key, each with its place in the file.
    """

    errors: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[tuple[Path, str]] = field(default_factory=list)
    replaced: set[Path] = field(default_factory=set)
    respelt: dict[Path, Path] = field(default_factory=dict)

    def error(self, path: Path, message: str) -> None:
        """Something that makes the configuration unusable."""
        if (path, message) not in self.errors and not any(within(path, place) for place in self.replaced):
            self.errors.append((path, message))

    def written(self, path: Path) -> Path:
        """The place under the keys that the file has, where its lines are."""
        for place, written in self.respelt.items():
            if within(path, place):
                return written + path[len(place) :]
        return path

    def warning(self, path: Path, message: str) -> None:
        """Something that the operator should know."""
        if (path, message) not in self.warnings:
            self.warnings.append((path, message))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like the word, None if none is."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` with the nearest name, or ""."""
    found = nearest(word, known)
    return f'; did you mean "{found}"?' if found else ""


def listed(names: Iterable[str]) -> str:
    """The names as a sentence's list, or "none"."""
    return ", ".join(names) or "none"
