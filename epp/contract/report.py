"""Runs the checks over one plugin, and says what came of it."""

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from epp.contract.cases import Case, cases, fleet
from epp.contract.checks import CHECKS, Broken, Check
from epp.contract.subject import Subject, UnknownType
from epp.errors import ConfigError
from epp.testing import candidates, request

DEFAULT_CASES = 200
BUDGET_US = 50.0
"""What a plugin may take for 100 endpoints without a remark."""

TIME_BUDGET_US = 5000.0
"""What a call may take before it is an overrun, as long as `--plugin-time-budget` says nothing else."""

_CALLS, _SECONDS = 200, 1.0
_TIMED = {"score": "scorer", "keep": "filter", "produce": "producer", "screen": "screener", "deny": "admitter"}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check; `detail` is "" where it holds, a remark is no failure."""

    sentence: str
    detail: str = ""
    remark: bool = False

    @property
    def broken(self) -> bool:
        """Whether the sentence isn't true."""
        return bool(self.detail) and not self.remark

    def __str__(self) -> str:
        label = "BROKEN" if self.broken else "note" if self.remark else "ok"
        detail = "".join(f"\n            {line}" for line in self.detail.splitlines())
        return f"  {label:6}  {self.sentence}{detail}"


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all checks of one plugin."""

    title: str
    results: tuple[Result, ...]

    @property
    def broken(self) -> tuple[Result, ...]:
        """Those that fail."""
        return tuple(result for result in self.results if result.broken)

    def raise_if_broken(self) -> None:
        """For a test.

        Raises:
            Broken: with the whole report, if a check fails.
        """
        if self.broken:
            raise Broken(str(self))

    def __str__(self) -> str:
        end = f"{len(self.broken)} of {len(self.results)} broken" if self.broken else "the contract is kept"
        return "\n".join([self.title, *map(str, self.results), end])


def check(
    type_name: str, parameters: Mapping[str, Any] | None = None, *, count: int = DEFAULT_CASES, seed: int = 0
) -> Report:
    """Checks a plugin.

    Args:
        type_name: its type, or its file: `my_scorer.py`, `my_scorer.py:MyScorer`.
        parameters: as a configuration has them; None for those of its manual's example.
        count: how many random cases each check gets.
        seed: of these.
    """
    loads = "it loads, alone in a configuration"
    try:
        subject = Subject.load(type_name, parameters)
    except UnknownType:
        return Report(type_name, (Result(loads, f'"{type_name}" is no known type, and no file that ends in .py'),))
    except ConfigError as error:
        return Report(type_name, (Result(loads, str(error)),))
    kinds = subject.found.kinds
    results = [Result(loads)]
    due = [each for each in CHECKS if each.kind in kinds]
    # Each begins with an instance that has seen nothing.
    results += [_run(each, Subject.load(type_name, parameters), cases(count, seed)) for each in due]
    results += _manual(subject)
    if not any(result.broken for result in results):
        results += _cost(type_name, parameters)
    return Report(f"{type_name}: {subject.found.cls.__name__} ({', '.join(kinds)})", tuple(results))


def _run(each: Check, subject: Subject, given: Iterable[Case]) -> Result:
    for case in given:
        try:
            each.run(subject, case)
        except Broken as error:
            return Result(each.sentence, f"{error}\nfor {case}")
        except Exception as error:  # noqa: BLE001 (a plugin may raise anything)
            return Result(each.sentence, f"{_where(error)}\nfor {case}")
    return Result(each.sentence)


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "epp/contract" not in frame.filename and "epp/schedule" not in frame.filename]
    last = (own or frames)[-1]
    return f"it raises {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno}: {last.line})"


def _manual(subject: Subject) -> Iterable[Result]:
    if not subject.found.summary:
        sentence = "the class says in a sentence what it does"
        yield Result(sentence, "it has no docstring; `epp plugins` shows its first line", remark=True)


def _cost(type_name: str, parameters: Mapping[str, Any] | None) -> Iterable[Result]:
    pool = fleet(100)
    subject, sent = Subject.load(type_name, parameters, pool), request("word " * 200)
    c = subject.produce(sent, candidates(of=pool))
    for method, kind in _TIMED.items():
        function = getattr(subject.plugin, method, None)
        if not callable(function):
            continue
        micros = _best(partial(function, sent, c)) * 1e6
        sentence = f"{'an' if kind == 'admitter' else 'a'} {kind}'s call takes {micros:.0f} us with 100 endpoints"
        if micros > TIME_BUDGET_US and not getattr(subject.plugin, "mandatory", False):
            yield Result(sentence, f"more than its budget of {TIME_BUDGET_US:.0f} us: it would be left out")
            continue
        slow = f"more than {BUDGET_US:.0f} us: a line of numpy takes some 5; a loop over endpoints is slow"
        yield Result(sentence, slow if micros > BUDGET_US else "", remark=micros > BUDGET_US)


def _best(function: Any) -> float:
    """Seconds of the quickest of many calls: what the machine does besides only ever adds."""
    best, spent = float("inf"), 0.0
    for _ in range(_CALLS):
        start = perf_counter()
        function()
        took = perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent > _SECONDS:
            break
    return best
