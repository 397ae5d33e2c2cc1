"""Which policy routes better: the default against every baseline in `policies/`, replayed on simulated engines.

    python benchmarks/routing.py [--json] [--smoke] [--workloads NAME ...] [--engines N ...] [--loads SHARE ...]
                                 [--policies NAME ...] [--seeds N] [--first-seed N] [--jobs N] [--keep FILE]
                                 [--picture FILE] [--find-capacities]

Five workloads, the Mooncake synthetic trace among them, at shares of the engines' capacity: the highest rate at which
the best baseline's TTFT p90 stays within five times the unloaded one (`epp.replay.capacity`). That takes longer to find
than everything else together; what was found is kept in `capacities.json`, and `--find-capacities` finds it anew. It is
measured at 8 engines, and counts for others by the engine; the trace's is measured at 64, too.

`--json` prints a row for each workload, number of engines, load and policy: the means over the seeds. Each seed is one
draw of the workload, the engines' jitter and the picker's own chance, the same for every policy. `default, rates x2`
and `default, rates /2` are the default told twice and half of the rate that it believes in at first, on equal engines;
a workload `NAME, unequal` runs on engines of which every second one is half as fast, at shares of three quarters of the
capacity; at the fewest engines only. `--keep FILE` appends what has been replayed, a line each, and doesn't replay
again what is there: an interrupted run goes on. It knows configurations and rates, not the code: another code, another
file.

Without `--json`: for each baseline the default's TTFT p90 by its own, as the geometric mean over the cases; and the
cases in which the default is worse than the best baseline or than least-request, that is where the 95 % interval of the
ratio over the seeds (Student's t of its logarithm) lies above 1.03.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log, sqrt
from pathlib import Path

import numpy as np

from epp.replay import Engines, Policy, View
from epp.replay.result import FIGURES, Row, mean_row
from epp.replay.runs import Case, Question, Source, capacities, figures

HERE = Path(__file__).parent
POLICIES = HERE / "policies"
CONFIG = HERE.parent / "config"
TRACE = HERE.parents[1] / "shared" / "data" / "traces" / "mooncake_synthetic.jsonl.gz"
CAPACITIES = HERE / "capacities.json"

WORKLOADS = {
    "mooncake": {8: Source(str(TRACE))},
    "shared-prompts": {
        8: Source("shared-prompts:groups=20,users=10"),
        64: Source("shared-prompts:groups=5,users=10"),
    },
    "chat": {8: Source("chat:requests=480,sessions=240"), 64: Source("chat:requests=90,sessions=90")},
    "agents": {8: Source("agents:requests=90,sessions=30"), 64: Source("agents:requests=24,sessions=24")},
    "unshared": {8: Source("unshared:requests=300"), 64: Source("unshared:requests=60")},
}
"""What is replayed, by the number of engines; the numbers are for each engine.

At 8 engines it is enough for queues and caches to be what they will be. At 64 that would take hours: it is the time
after a start with empty caches.
"""

MEASURED = {"mooncake": (8, 64)}
"""At how many engines the capacity is measured, if not at 8: 64 caches hold the whole trace."""

PROFILE = "llama-8b-h100"
PROFILES = {"chat": "llama-8b-l40s"}
"""The engines of workloads that have others: four times as many people can talk to one H100 before it is full, and it
would take that many more requests until it is."""

DEFAULT, LEAST = "default", "least-request"
BASELINES = {path.stem: path for path in (*sorted(POLICIES.glob("*.yaml")), CONFIG / "llm-d-default.yaml")}
PRIOR = 20_000  # tokens a second, work-ahead-scorer's own
WRONG = {f"{DEFAULT}, rates x2": PRIOR * 2, f"{DEFAULT}, rates /2": PRIOR // 2}
STRONG = ("lmetric", "preble-e2", "dynamo-kv", "sglang-cache-aware", "llm-d-default")
"""Those among which the best baseline is when the capacity is looked for; all others have lost to them everywhere."""

SLOWER = (1.0, 0.5)
UNEQUAL = ", unequal"
WORSE = 1.03
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""The two-sided 95 % quantile of Student's t by the number of seeds."""

Place = tuple[str, int, float]
"""Workload, number of engines, load."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed."""

    workloads: tuple[str, ...]
    engines: tuple[int, ...]
    loads: tuple[float, ...]
    policies: tuple[str, ...]
    seeds: range
    jobs: int
    sources: dict[str, dict[int, Source]]


def policy(name: str) -> Policy:
    """The configuration of that name."""
    default = Policy.of(DEFAULT)
    if name in WRONG:
        told = f"- type: work-ahead-scorer\n  parameters:\n    prefillTokensPerSecond: {WRONG[name]}\n"
        return replace(default, name=name, text=default.text.replace("- type: work-ahead-scorer\n", told))
    return default if name == DEFAULT else Policy.of(f"{name}={BASELINES[name]}")


def places(plan: Plan) -> list[Place]:
    """What there are rows for; unequal engines at 8 of them, if there are others too."""
    few = min(plan.engines)
    every = product(plan.workloads, plan.engines, plan.loads)
    return [place for place in every if place[1] == few or not place[0].endswith(UNEQUAL)]


def source_of(plan: Plan, workload: str, engines: int) -> Source:
    """The requests of a workload for so many engines."""
    sizes = plan.sources[workload.removesuffix(UNEQUAL)]
    return sizes[min(sizes, key=lambda known: abs(log(known / engines)))]


Capacities = dict[str, dict[str, float]]
"""By workload and number of engines: requests a second and engine."""


def measured(plan: Plan, anew: bool) -> Capacities:
    """The capacities; those that are missing are measured, and kept."""
    known: Capacities = json.loads(CAPACITIES.read_text())
    workloads = dict.fromkeys(workload.removesuffix(UNEQUAL) for workload in plan.workloads)
    for workload in workloads if anew else ():
        known.pop(workload, None)
    wanted = [(workload, engines) for workload in workloads for engines in MEASURED.get(workload, (8,))]
    missing = [(workload, engines) for workload, engines in wanted if str(engines) not in known.get(workload, {})]
    strong = tuple(map(policy, STRONG))
    questions = [
        Question(source_of(plan, workload, engines), servers_of(workload, engines), strong, 0, View())
        for workload, engines in missing
    ]
    for (workload, engines), found in zip(missing, capacities(questions, plan.jobs), strict=True):
        known.setdefault(workload, {})[str(engines)] = round(found.rate / engines, 4)
    if missing:
        CAPACITIES.write_text(json.dumps(known, indent=2) + "\n")
    return known


def rate_of(known: Capacities, workload: str, engines: Engines) -> float:
    """What so many engines can take, requests a second."""
    rates = known[workload.removesuffix(UNEQUAL)]
    return engines.total_speed * rates[min(rates, key=lambda count: abs(log(int(count) / engines.count)))]


def servers_of(workload: str, engines: int) -> Engines:
    """So many engines for a workload."""
    speeds = SLOWER if workload.endswith(UNEQUAL) else (1.0,)
    return Engines(engines, PROFILES.get(workload.removesuffix(UNEQUAL), PROFILE), speeds)


def cases(plan: Plan, known: Capacities, place: Place) -> list[Case]:
    """Every replay of a place."""
    workload, engines, load = place
    source, servers = source_of(plan, workload, engines), servers_of(workload, engines)
    rate = load * rate_of(known, workload, servers)
    told = (name for name in plan.policies if name not in WRONG or not workload.endswith(UNEQUAL))
    policies = list(map(policy, told))
    return [Case(source, servers, load, rate, chosen, seed, View()) for chosen, seed in product(policies, plan.seeds)]


Rows = dict[Place, dict[str, list[Row]]]
"""By place and policy, one for each seed."""


class Kept:
    """What has been replayed, in a file of JSON lines, if there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._rows: dict[tuple[str, ...], Row] = {}
        if file is not None and file.exists():
            for line in file.read_text().splitlines():
                key, found = json.loads(line)
                self._rows[tuple(key)] = found

    def figures(self, place: Place, wanted: Sequence[Case], jobs: int) -> list[Row]:
        """A row for each case; replayed if it isn't there."""
        keys = [
            (*map(str, place), case.source.said, str(case.rate), case.policy.text, str(case.seed)) for case in wanted
        ]
        missing = [number for number, key in enumerate(keys) if key not in self._rows]
        for number, found in zip(missing, figures([wanted[number] for number in missing], jobs), strict=True):
            self._rows[keys[number]] = found
        if self._file is not None:
            with self._file.open("a") as out:
                out.writelines(json.dumps((keys[number], self._rows[keys[number]])) + "\n" for number in missing)
        return [self._rows[key] for key in keys]


def run(plan: Plan, known: Capacities, kept: Kept) -> Rows:
    """Replays all of it; says on standard error how far it is."""
    rows: Rows = {}
    start, every = time.monotonic(), places(plan)
    for number, place in enumerate(every):
        wanted = cases(plan, known, place)
        for case, found in zip(wanted, kept.figures(place, wanted, plan.jobs), strict=True):
            rows.setdefault(place, {}).setdefault(case.policy.name, []).append(found | {"workload": place[0]})
        took, cpu = (time.monotonic() - start) / 60, sum(os.times()[:4]) / 60
        print(f"{number + 1} of {len(every)} cases in {took:.1f} min, {cpu:.1f} of CPU: {place}", file=sys.stderr)
    return rows


def ttft(seeds: Iterable[Row]) -> list[float]:
    """The TTFT p90 under each seed, ms."""
    return [float(each["ttft_p90_ms"] or "nan") for each in seeds]


def ratio(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[float, float, float]:
    """Our TTFT p90 by theirs, seed by seed: the geometric mean, and its 95 % interval."""
    logs = np.log(ttft(ours)) - np.log(ttft(theirs))
    mean = float(logs.mean())
    if len(logs) < 2:
        return exp(mean), 0.0, float("inf")
    half = STUDENT.get(len(logs), 2.0) * float(logs.std(ddof=1)) / sqrt(len(logs))
    return exp(mean), exp(mean - half), exp(mean + half)


def best(policies: dict[str, list[Row]]) -> str:
    """The baseline with the lowest TTFT p90."""
    return min(
        (name for name in policies if not name.startswith(DEFAULT)), key=lambda name: np.mean(ttft(policies[name]))
    )


def geometric(rows: Rows, ours: str, theirs: str) -> float:
    """Our TTFT p90 by theirs, as the geometric mean over the places that have both."""
    both = [policies for policies in rows.values() if ours in policies and theirs in policies]
    return exp(float(np.mean([log(ratio(policies[ours], policies[theirs])[0]) for policies in both])))


def lost(rows: Rows, ours: str) -> list[str]:
    """Where we are worse than the best baseline or than least-request, a sentence each."""
    found = []
    for place, policies in rows.items():
        for name in dict.fromkeys((best(policies), LEAST)):
            if ours in policies and name in policies:
                mean, low, high = ratio(policies[ours], policies[name])
                if low > WORSE:
                    workload, engines, load = place
                    where = f"{workload}, {engines} engines, load {load:g}"
                    found.append(f"{where}: {ours} takes {mean:.2f} of {name} ({low:.2f}-{high:.2f})")
    return found


def picture(rows: Rows, file: Path) -> None:
    """Draws each baseline's TTFT p90 by the default's: a dot a case, and the geometric mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({name for policies in rows.values() for name in policies if not name.startswith(DEFAULT)})
    means = {name: 1.0 / geometric(rows, DEFAULT, name) for name in names}
    names.sort(key=lambda name: means[name])
    workloads = list(dict.fromkeys(place[0] for place in rows))
    figure = Figure(figsize=(8.0, 0.38 * len(names) + 1.4), layout="constrained")
    axis = figure.add_subplot()
    for number, workload in enumerate(workloads):
        points = [
            (1.0 / ratio(policies[DEFAULT], policies[name])[0], height + 0.5 * (number / len(workloads) - 0.5))
            for place, policies in rows.items()
            if place[0] == workload
            for height, name in enumerate(names)
        ]
        axis.plot(*zip(*points, strict=True), ".", markersize=5, alpha=0.75, label=workload)
    axis.plot([means[name] for name in names], range(len(names)), "k|", markersize=15, label="geometric mean")
    axis.axvline(1.0, color="0.6", linewidth=1)
    axis.set_xscale("log")
    ticks = (0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlabel("TTFT p90 divided by the default policy's: to the right of 1 the default is faster", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    FigureCanvasAgg(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120, metadata={"Software": None})


def show(rows: Rows) -> None:
    """Prints the cases and what they come to."""
    for (workload, engines, load), policies in rows.items():
        print(f"\n{workload}, {engines} engines, load {load:g}")
        print(
            f"  {'':22}"
            + "".join(f"{name.removesuffix('_ms'):>10}" for name in FIGURES[:6])
            + "   balance   default by it"
        )
        for name, seeds in sorted(policies.items(), key=lambda entry: np.mean(ttft(entry[1]))):
            figures = mean_row(seeds)
            values = "".join(
                f"{figures[key]:10.3g}" if key == "hit_ratio" else f"{figures[key]:10.0f}" for key in FIGURES[:6]
            )
            mean, low, high = ratio(policies[DEFAULT], seeds) if DEFAULT in policies else (1.0, 1.0, 1.0)
            print(f"  {name:22}{values}{figures['max_over_mean_load']:10.2f}   {mean:.2f} ({low:.2f}-{high:.2f})")
    ours = [name for name in (DEFAULT, *WRONG) if any(name in policies for policies in rows.values())]
    names = sorted({name for policies in rows.values() for name in policies} - set(ours))
    print(f"\n{'TTFT p90 by that of, geometric mean':38}" + "".join(f"{name:>22}" for name in ours))
    for name in names:
        print(f"{name:38}" + "".join(f"{geometric(rows, each, name):22.3f}" for each in ours))
    for each in ours:
        print("\n".join(lost(rows, each)) or f"{each} is never worse than the best baseline or {LEAST}")


def plan_of(options: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    everything = (*BASELINES, DEFAULT, *WRONG)
    if options.smoke:
        tiny = {"unshared": {2: Source("unshared:requests=8")}}
        return Plan(("unshared",), (2,), (0.5,), ("random", LEAST, DEFAULT), range(2), 1, tiny)
    names = (*WORKLOADS, *(f"{name}{UNEQUAL}" for name in WORKLOADS if name != "mooncake"))
    workloads = [name for name in names if TRACE.exists() or not name.startswith("mooncake")]
    return Plan(
        tuple(options.workloads or workloads),
        tuple(options.engines),
        tuple(options.loads),
        tuple(options.policies or everything),
        range(options.first_seed, options.first_seed + options.seeds),
        options.jobs,
        WORKLOADS,
    )


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list")
    parser.add_argument("--smoke", action="store_true", help="a few requests: only shows that it works")
    parser.add_argument("--workloads", nargs="*", metavar="NAME", help=f"of {', '.join(WORKLOADS)}; NAME{UNEQUAL}")
    parser.add_argument("--engines", nargs="*", type=int, default=(8, 64))
    parser.add_argument("--loads", nargs="*", type=float, default=(0.5, 0.7, 0.9))
    parser.add_argument("--policies", nargs="*", metavar="NAME", help=f"of {', '.join(BASELINES)}, {DEFAULT}, ...")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=20, help="formulas have been chosen with lower ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="append what was replayed, and don't do it again")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the comparison, a PNG")
    parser.add_argument("--find-capacities", action="store_true", help="measure them anew, and keep them")
    options = parser.parse_args()
    plan = plan_of(options)
    known = {"unshared": {"2": 5.0}} if options.smoke else measured(plan, options.find_capacities)
    if options.find_capacities:
        return
    rows = run(plan, known, Kept(options.keep))
    if options.picture:
        picture(rows, options.picture)
    if options.json:
        print(json.dumps([mean_row(seeds) for policies in rows.values() for seeds in policies.values()], indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
