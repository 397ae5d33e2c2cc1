"""A comparison: workloads, numbers of engines, loads and policies, each with each, under several seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from epp.errors import ConfigError
from epp.replay.capacity import Capacity
from epp.replay.options import Engines, View
from epp.replay.policy import Policy
from epp.replay.result import PLACE, WARM_UP, Result, Row
from epp.replay.runs import Case, Question, Source, Told, capacities, replay, rows

OWN_PACE = "own"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is compared.

    Attributes:
        sources: of the workloads.
        engines: one entry for each number of them.
        policies: the configurations, with different names.
        loads: shares of the capacity.
        seeds: of the replays.
        view: what the picker gets to see.
        capacity: requests a second; or "own" for the pace of the workload itself, so that a load of 1 is as it was
            recorded; None to measure it.
    """

    sources: tuple[Source, ...]
    engines: tuple[Engines, ...]
    policies: tuple[Policy, ...]
    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    view: View
    capacity: float | str | None = None

    def __post_init__(self) -> None:
        """Refuses what can't be told apart afterwards.

        Raises:
            ConfigError: two policies have one name.
        """
        names = [policy.name for policy in self.policies]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two configurations are called {', '.join(twice)}: name one with NAME=FILE")

    @property
    def places(self) -> list[tuple[Source, Engines]]:
        """The workloads with the engines."""
        return list(product(self.sources, self.engines))


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """All that was found for one workload on one set of engines.

    Attributes:
        capacity: what loads are shares of; None if it was said.
        ideal_hit_ratio: of the first seed's workload, after the warm-up.
        remarks: of that workload.
        results: by load, then by policy in their order; each with one entry a seed.
    """

    workload: str
    engines: int
    rate: float
    capacity: Capacity | None
    ideal_hit_ratio: float
    remarks: tuple[str, ...]
    results: dict[float, dict[str, list[Result]]]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a comparison has shown: the rows of `report.json`, and what they come from."""

    plan: Plan
    rows: list[Row]
    panels: list[Panel]

    @property
    def remarks(self) -> list[str]:
        """What whoever reads the figures should know, a sentence each."""
        found: dict[str, None] = {}
        for panel in self.panels:
            found |= dict.fromkeys(panel.remarks)
            for result in _all(panel):
                if result.refused:
                    which = f"{result.workload}, {result.engines} engines, {result.policy}"
                    found[f"{which}: {result.refused} requests were refused, and are in no figure."] = None
                for fault, count in result.faults.items():
                    found[f"{result.policy}: the plugin {fault}, {count} times: it was left out there."] = None
                found |= dict.fromkeys(f"{result.policy}: {warning}" for warning in result.warnings)
        return list(found)

    def best(self, row: Row) -> bool:
        """Whether no policy has a lower TTFT p90 in this case."""
        case = [each for each in self.rows if all(each[key] == row[key] for key in PLACE[:3])]
        values = [value for each in case if isinstance(value := each["ttft_p90_ms"], float)]
        return bool(values) and row["ttft_p90_ms"] == min(values)


def _all(panel: Panel) -> list[Result]:
    return [result for policies in panel.results.values() for seeds in policies.values() for result in seeds]


def measure(plan: Plan, jobs: int, told: Told) -> list[Capacity]:
    """The capacity of each place; in the order of the plan's places.

    Raises:
        ConfigError: see `capacity`.
    """
    seed = plan.seeds[0]
    return capacities(
        [Question(source, engines, plan.policies, seed, plan.view) for source, engines in plan.places], jobs, told
    )


def cases(plan: Plan, measured: Sequence[Capacity]) -> list[Case]:
    """Every replay of the plan: by place, load, policy and seed; `measured` is empty if the capacity was said."""
    found = []
    for index, (source, engines) in enumerate(plan.places):
        rate = _capacity(plan, source, engines, measured[index] if measured else None)
        for load, policy, seed in product(plan.loads, plan.policies, plan.seeds):
            found.append(Case(source, engines, load, load * rate, policy, seed, plan.view))
    return found


def _capacity(plan: Plan, source: Source, engines: Engines, measured: Capacity | None) -> float:
    if measured is not None:
        return measured.rate
    if isinstance(plan.capacity, float):
        return plan.capacity
    return source.open(engines.count, plan.seeds[0]).rate


def run(
    plan: Plan, jobs: int, measuring: Told = lambda _: None, replaying: Callable[[int], Told] = lambda _: lambda _: None
) -> Report:
    """The whole comparison.

    Args:
        plan: what is compared.
        jobs: how many processes take part.
        measuring: hears how many requests the search for the capacity has replayed.
        replaying: given the number of requests that the replays have in all, gives what hears how many are done.

    Raises:
        ConfigError: a configuration, a workload or the engines can't be used.
    """
    measured = measure(plan, jobs, measuring) if plan.capacity is None else []
    todo = cases(plan, measured)
    total = sum(len(case.source.open(case.engines.count, case.seed)) for case in todo)
    results = replay(todo, jobs, replaying(total))
    return Report(plan, rows(todo, results), _panels(plan, measured, todo, results))


def _panels(plan: Plan, measured: Sequence[Capacity], todo: Sequence[Case], results: Sequence[Result]) -> list[Panel]:
    panels = []
    for index, (source, engines) in enumerate(plan.places):
        found: dict[float, dict[str, list[Result]]] = {}
        rate = 0.0
        for case, result in zip(todo, results, strict=True):
            if case.source is source and case.engines is engines:
                found.setdefault(case.load, {}).setdefault(case.policy.name, []).append(result)
                rate = case.rate / case.load
        opened = source.open(engines.count, plan.seeds[0])
        known = measured[index] if measured else None
        ideal = opened.texts.ideal_hit_ratio(WARM_UP)
        panels.append(Panel(opened.name, engines.count, rate, known, ideal, opened.remarks, found))
    return panels
