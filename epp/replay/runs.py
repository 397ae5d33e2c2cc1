"""Many replays at once: every case under every policy and seed, spread over processes."""

import multiprocessing
import signal
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from epp.replay.capacity import Capacity, capacity
from epp.replay.options import DEFAULT_PROFILE, Engines, View
from epp.replay.policy import Policy
from epp.replay.result import Result, Row, mean_row, row
from epp.replay.simulate import simulate
from epp.replay.sources import workload
from epp.replay.workload import Workload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

POLL = 0.1
"""Seconds between two looks at how far the processes are."""

Told = Callable[[int], None]
"""Hears now and then how many requests have been replayed altogether."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a workload comes from; see `sources.workload`."""

    said: str
    limit: int | None = None
    profile: str = DEFAULT_PROFILE

    def open(self, engines: int, seed: int) -> Workload:
        """The workload."""
        return _opened(self, engines, seed)


@lru_cache(maxsize=8)
def _opened(source: Source, engines: int, seed: int) -> Workload:
    return workload(source.said, engines, seed, source.limit, source.profile)


class Task(Protocol[T_co]):
    """Something that a process can do on its own."""

    def run(self, count: Callable[[int], None]) -> T_co:
        """Does it; `count` hears of requests that have been replayed."""
        ...


@dataclass(frozen=True, slots=True)
class Case:
    """One replay that is to be done: `load` is `rate` as a share of the capacity."""

    source: Source
    engines: Engines
    load: float
    rate: float
    policy: Policy
    seed: int
    view: View

    def run(self, count: Callable[[int], None]) -> Result:
        """Does it."""
        opened = self.source.open(self.engines.count, self.seed)
        return simulate(self.policy, opened, self.engines, self.rate, self.seed, view=self.view, tick=count)


@dataclass(frozen=True, slots=True)
class Question:
    """A capacity that is to be measured."""

    source: Source
    engines: Engines
    policies: tuple[Policy, ...]
    seed: int
    view: View

    def run(self, count: Callable[[int], None]) -> Capacity:
        """Measures it."""
        opened = self.source.open(self.engines.count, self.seed)
        return capacity(self.policies, opened, self.engines, self.seed, view=self.view, told=count)


def replay(cases: Sequence[Case], jobs: int, told: Told = lambda _: None) -> list[Result]:
    """Does the replays; the results in the order of the cases, the same for any number of jobs.

    Args:
        cases: what is to be done.
        jobs: how many processes do it; with 1 it is this one.
        told: see `Told`.

    Raises:
        ConfigError: see `simulate`.
    """
    return _spread(cases, jobs, told)


def figures(cases: Sequence[Case], jobs: int, told: Told = lambda _: None) -> list[Row]:
    """A row for each case, without what it comes from: thousands of replays fit into memory.

    Raises:
        ConfigError: see `simulate`.
    """
    return _spread([_Figures(case) for case in cases], jobs, told)


@dataclass(frozen=True, slots=True)
class _Figures:
    """A case of which only the row is wanted."""

    case: Case

    def run(self, count: Callable[[int], None]) -> Row:
        """Does it."""
        return row(self.case.run(count), self.case.load)


def capacities(questions: Sequence[Question], jobs: int, told: Told = lambda _: None) -> list[Capacity]:
    """Measures capacities; in the order of the questions.

    Raises:
        ConfigError: see `capacity`.
    """
    return _spread(questions, jobs, told)


def rows(cases: Sequence[Case], results: Sequence[Result]) -> list[Row]:
    """The report's rows: one for each case, the mean over its seeds, in the order of the cases."""
    found: dict[Hashable, list[Row]] = {}
    for case, result in zip(cases, results, strict=True):
        place = (case.source, case.engines, case.load, case.policy.name)
        found.setdefault(place, []).append(row(result, case.load))
    return [mean_row(seeds) for seeds in found.values()]


# --- the processes

_counter: Any = None
"""In a child: the requests that all of them have replayed."""


def _begin(counter: Any) -> None:
    global _counter  # noqa: PLW0603 (what a process pool hands to its children comes this way)
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is the parent who says that it was interrupted


def _count(requests: int) -> None:
    with _counter.get_lock():
        _counter.value += requests


def _in_child(task: "Task[T]") -> T:
    return task.run(_count)


def _spread(tasks: Sequence["Task[T]"], jobs: int, told: Callable[[int], None]) -> list[T]:
    """The results of the tasks, in their order; `told` hears how many requests have been replayed."""
    if jobs == 1 or len(tasks) <= 1:
        return _here(tasks, told)
    context = multiprocessing.get_context("spawn")
    counter, others = context.Value("q", 0), multiprocessing.active_children()
    executor = ProcessPoolExecutor(min(jobs, len(tasks)), context, _begin, (counter,))
    try:
        futures = [executor.submit(_in_child, task) for task in tasks]
        left = set(futures)
        while left:
            ended, left = wait(left, POLL, FIRST_EXCEPTION)
            told(counter.value)
            for future in ended:
                future.result()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        raise
    executor.shutdown()
    return [future.result() for future in futures]


def _here(tasks: Sequence["Task[T]"], told: Callable[[int], None]) -> list[T]:
    done = 0

    def add(requests: int) -> None:
        nonlocal done
        done += requests
        told(done)

    return [task.run(add) for task in tasks]
