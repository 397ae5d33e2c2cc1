"""What a check has found: a sentence, how bad it is, and what to do."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "broken", "unknown"]
"""unknown: it couldn't be looked at from here."""

_MARKS: dict[State, str] = {"ok": "ok      ", "warning": "warning ", "broken": "BROKEN  ", "unknown": "unknown "}
_COUNTED: dict[State, str] = {"warning": "warnings"}

_SHOWN = 3
"""Findings of one check that all is well with, which the text shows."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: which check, such as "pool.accepted"; docs/doctor.md has all of them.
        subject: the object, such as "Pod llm/vllm-0".
        message: what is so.
        remedy: what to do; "" where nothing is to be done.
    """

    check: str
    state: State
    subject: str
    message: str
    remedy: str = ""


class Findings:
    """Takes findings in the order of the checks."""

    def __init__(self) -> None:
        self._all: list[Finding] = []

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._all)

    def __repr__(self) -> str:
        return f"<Findings: {len(self._all)}, {self.count('broken')} broken>"

    def ok(self, check: str, subject: str, message: str) -> None:
        """All is well."""
        self._all.append(Finding(check, "ok", subject, message))

    def warning(self, check: str, subject: str, message: str, remedy: str) -> None:
        """Requests are answered, but not as well as they could be, or not for long."""
        self._all.append(Finding(check, "warning", subject, message, remedy))

    def broken(self, check: str, subject: str, message: str, remedy: str) -> None:
        """Requests aren't answered, or not by the picker's choice."""
        self._all.append(Finding(check, "broken", subject, message, remedy))

    def unknown(self, check: str, subject: str, message: str, remedy: str) -> None:
        """It couldn't be looked at."""
        self._all.append(Finding(check, "unknown", subject, message, remedy))

    def count(self, state: State) -> int:
        """How many there are of a kind."""
        return sum(1 for each in self._all if each.state == state)

    def as_text(self, width: int | None = None) -> str:
        """A line for each, and the remedy below it; of what is well everywhere, a few.

        Args:
            width: of the terminal, in columns, to which lines are wrapped; None to leave them whole.
        """
        lines: list[str] = []
        well: Counter[str] = Counter()
        for each in self._all:
            well[each.check] += each.state == "ok"
            if each.state == "ok" and well[each.check] > _SHOWN:
                continue
            lines += _wrapped(f"{_MARKS[each.state]}{each.check}: {each.subject}: {each.message}", 10, width)
            lines += _wrapped(f"{'':8}-> {each.remedy}", 11, width) if each.remedy else []
        lines += [f"ok      {check}: and {n - _SHOWN} more" for check, n in well.items() if n > _SHOWN]
        counts = ", ".join(f"{self.count(state)} {_COUNTED.get(state, state)}" for state in _MARKS)
        return "\n".join([*lines, counts])

    def as_json(self, target: str) -> str:
        """For programs."""
        counts: dict[str, Any] = {state: self.count(state) for state in _MARKS}
        return json.dumps(
            {"target": target, "counts": counts, "findings": [asdict(each) for each in self._all]}, indent=2
        )


def _wrapped(line: str, indent: int, width: int | None) -> list[str]:
    if width is None:
        return [line]
    return textwrap.wrap(
        line[8:],
        max(width, 40),
        initial_indent=line[:8],
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
