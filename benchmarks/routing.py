"""Which policy routes better: the default against every baseline in `policies/`, replayed on simulated engines.

    python benchmarks/routing.py [--json] [--smoke] [--workloads NAME ...] [--engines N ...] [--loads SHARE ...]
                                 [--policies NAME ...] [--seeds N] [--jobs N] [--picture FILE] [--find-capacities]

Five workloads, the Mooncake synthetic trace among them, at shares of the engines' capacity: the highest rate at which
the best baseline's TTFT p90 stays within five times the unloaded one (`epp.replay.capacity`). That takes longer to find
than everything else together; what was found is kept in `capacities.json`, and `--find-capacities` finds it anew.

`--json` prints a row for each workload, number of engines, load and policy: the means over the seeds. Each seed is one
draw of the workload, the engines' jitter and the picker's own chance, the same for every policy. `default, rates x2`
and `default, rates /2` are the default told twice and half of the rate that it believes in at first; a workload
`NAME, unequal` runs on engines of which every second one is half as fast, at shares of three quarters of the capacity.

Without `--json`: for each baseline the default's TTFT p90 by its own, as the geometric mean over the cases; and the
cases in which the default is worse than the best baseline or than least-request, that is where the 95 % interval of the
ratio over the seeds (Student's t of its logarithm) lies above 1.03.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import exp, log, sqrt
from pathlib import Path

import numpy as np

from epp.replay import Engines, Policy, View
from epp.replay.result import FIGURES, Row, mean_row, row
from epp.replay.runs import Case, Question, Source, capacities, replay

HERE = Path(__file__).parent
POLICIES = HERE / "policies"
CONFIG = HERE.parent / "config"
TRACE = HERE.parents[1] / "shared" / "data" / "traces" / "mooncake_synthetic.jsonl.gz"
CAPACITIES = HERE / "capacities.json"

WORKLOADS = {
    "mooncake": {8: str(TRACE), 64: str(TRACE)},
    "shared-prompts": {8: "shared-prompts:groups=20,users=10", 64: "shared-prompts:groups=10,users=10"},
    "chat": {8: "chat:requests=480,sessions=240", 64: "chat:requests=240,sessions=240"},
    "agents": {8: "agents:requests=90,sessions=30", 64: "agents:requests=45,sessions=30"},
    "unshared": {8: "unshared:requests=300", 64: "unshared:requests=150"},
}
"""What is replayed, by the number of engines; the numbers are for each engine.

A session waits for its answers, so that too few of them can never overload an engine, and the capacity would be without
bound; and too few requests are a burst that is over before queues are what they will be.
"""

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
    seeds: int
    jobs: int
    sources: dict[str, dict[int, str]]


def policy(name: str) -> Policy:
    """The configuration of that name."""
    default = Policy.of(DEFAULT)
    if name in WRONG:
        told = f"- type: work-ahead-scorer\n  parameters:\n    prefillTokensPerSecond: {WRONG[name]}\n"
        return replace(default, name=name, text=default.text.replace("- type: work-ahead-scorer\n", told))
    return default if name == DEFAULT else Policy.of(f"{name}={BASELINES[name]}")


def source_of(plan: Plan, workload: str, engines: int) -> Source:
    """The requests of a workload for so many engines."""
    sizes = plan.sources[workload.removesuffix(UNEQUAL)]
    return Source(sizes.get(engines) or sizes[min(sizes, key=lambda known: abs(log(known / engines)))])


def rates(plan: Plan, anew: bool) -> dict[str, float]:
    """The capacity for each workload and number of engines, requests a second; those that are missing are measured."""
    known: dict[str, float] = {} if anew or not CAPACITIES.exists() else json.loads(CAPACITIES.read_text())
    places = [
        (source_of(plan, workload, engines), servers_of(workload, engines))
        for workload, engines in product(plan.workloads, plan.engines)
        if not workload.endswith(UNEQUAL)
    ]
    missing = [place for place in dict.fromkeys(places) if key_of(*place) not in known]
    strong = tuple(map(policy, STRONG))
    questions = [Question(source, engines, strong, 0, View()) for source, engines in missing]
    measured = capacities(questions, plan.jobs) if questions else []
    for place, found in zip(missing, measured, strict=True):
        known[key_of(*place)] = round(found.rate, 4)
    return known


def servers_of(workload: str, engines: int) -> Engines:
    """So many engines for a workload."""
    speeds = SLOWER if workload.endswith(UNEQUAL) else (1.0,)
    return Engines(engines, PROFILES.get(workload.removesuffix(UNEQUAL), PROFILE), speeds)


def key_of(source: Source, engines: Engines) -> str:
    """How a capacity is called in the file."""
    return f"{Path(source.said).name} on {engines.count} {engines.profile}"


def cases(plan: Plan, known: dict[str, float]) -> list[tuple[Place, Case]]:
    """Every replay, with the place of its row."""
    found: list[tuple[Place, Case]] = []
    policies = list(map(policy, plan.policies))
    for workload, engines, load in product(plan.workloads, plan.engines, plan.loads):
        source = source_of(plan, workload, engines)
        servers = servers_of(workload, engines)
        rate = load * known[key_of(source, servers)] * servers.total_speed / engines
        for chosen, seed in product(policies, range(plan.seeds)):
            found.append(((workload, engines, load), Case(source, servers, load, rate, chosen, seed, View())))
    return found


Rows = dict[Place, dict[str, list[Row]]]
"""By place and policy, one for each seed."""


def run(plan: Plan, known: dict[str, float]) -> Rows:
    """Replays all of it."""
    todo = cases(plan, known)
    rows: Rows = {}
    for (place, case), result in zip(todo, replay([case for _, case in todo], plan.jobs), strict=True):
        found = row(result, case.load) | {"workload": place[0]}
        rows.setdefault(place, {}).setdefault(case.policy.name, []).append(found)
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
    ticks = (0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 50)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_xlabel("TTFT p90 by the default's: to the right of 1 the default is faster", fontsize=9)
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
        return Plan(
            ("unshared",), (2,), (0.5,), ("random", LEAST, DEFAULT), 2, 1, {"unshared": {2: "unshared:requests=8"}}
        )
    names = (*WORKLOADS, *(f"{name}{UNEQUAL}" for name in WORKLOADS if name != "mooncake"))
    workloads = [name for name in names if TRACE.exists() or not name.startswith("mooncake")]
    return Plan(
        tuple(options.workloads or workloads),
        tuple(options.engines),
        tuple(options.loads),
        tuple(options.policies or everything),
        options.seeds,
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
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the comparison, a PNG")
    parser.add_argument("--find-capacities", action="store_true", help="measure them anew, and keep them")
    options = parser.parse_args()
    plan = plan_of(options)
    known = (
        {key_of(Source("unshared:requests=8"), servers_of("unshared", 2)): 10.0}
        if options.smoke
        else rates(plan, options.find_capacities)
    )
    if options.find_capacities:
        CAPACITIES.write_text(json.dumps(known, indent=2) + "\n")
        return
    rows = run(plan, known)
    if options.picture:
        picture(rows, options.picture)
    if options.json:
        print(json.dumps([mean_row(seeds) for policies in rows.values() for seeds in policies.values()], indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
