"""``epp replay``: a trace or a generated workload under several configurations, on simulated engines."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epp.cli.arguments import count, number, positive
from epp.data.client import ScrapeOptions
from epp.engine.profiles import PROFILES
from epp.errors import ConfigError, EppError

if TYPE_CHECKING:
    from epp.replay.study import Plan, Report

INTERRUPTED = 130
WIDTH = 120
"""Of the table where it isn't shown on a terminal."""

_ABOUT = """Replays requests under several configurations, in virtual time: the decisions are made by the picker's own
code and plugins, the engines are simulated. Writes a table, report.json, plots and one HTML page with all of it. See
docs/replay.md."""


def main(arguments: list[str]) -> int:
    """Runs the comparison; returns 0 when it is done, 1 if it can't be, 2 for wrong usage, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes are ended too
    try:
        return _run(options)
    except ModuleNotFoundError as error:
        print(f"epp replay: {error}; pip install 'endpoint-picker[replay]'", file=sys.stderr)
    except EppError as error:
        print(f"epp replay: {error}", file=sys.stderr)
    except BrokenExecutor:
        print("epp replay: one of its processes was killed, for want of memory? --jobs 1 needs less", file=sys.stderr)
    except KeyboardInterrupt:
        print("epp replay: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("epp replay", description=_ABOUT)
    add = parser.add_argument
    kinds = "a decision log, a trace in Mooncake's format, or a generated workload, see --list"
    add("traces", nargs="+", metavar="TRACE", help=kinds)
    add("--list", action=_List, help="print the generated workloads with their numbers, and exit")
    add(
        *("--config", "-c"),
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a configuration to compare, several times; without any, and as FILE, `default` is the built-in one",
    )
    add("--out", type=Path, default=Path("replay"), metavar="DIR", help="where the report is written (%(default)s)")
    add("--no-plots", action="store_true", help="report.json and the page without plots")
    add("--load", type=_numbers, default=(0.5, 0.8, 1.0), metavar="X,...", help="shares of the capacity (0.5,0.8,1.0)")
    add(
        "--capacity",
        type=_capacity,
        metavar="RATE",
        help="requests a second that a load of 1 is; `own` for the workload's own pace (measured, see docs/replay.md)",
    )
    _add_engines(parser)
    _add_view(parser)
    add("--seed", type=int, default=0, metavar="N", help="the first seed (%(default)s)")
    add("--seeds", type=count, default=1, metavar="N", help="how many seeds; the figures are their means (%(default)s)")
    add("--limit", type=count, metavar="N", help="only the first N requests of each workload")
    add("--jobs", type=count, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    return parser


def _add_engines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("engines").add_argument
    add("--engines", type=_counts, default=(8,), metavar="N,...", help="how many simulated engines (8)")
    add("--profile", default="llama-8b-h100", choices=list(PROFILES), help="of the engines (%(default)s)")
    add("--speeds", type=_numbers, default=(1.0,), metavar="X,...", help="factors given to the engines in turn (1)")
    add("--jitter", type=_share, default=0.05, metavar="X", help="standard deviation of a step's time (%(default)s)")
    add("--block-size", type=count, metavar="TOKENS", help="of the KV cache; larger ones are faster (the profile's)")


def _add_view(parser: argparse.ArgumentParser) -> None:
    usual = ScrapeOptions()
    add = parser.add_argument_group("what the picker sees").add_argument
    add("--no-scrapes", action="store_true", help="never a metrics page")
    add(
        "--scrape-interval",
        type=positive,
        default=usual.interval,
        metavar="SECONDS",
        help=f"between two scrapes of an engine (%(default)s, stretched to {usual.budget:g} scrapes a second in all)",
    )
    shown = "of a response beside its end: bodies, as in Envoy's full duplex; headers, as in the standalone mode; none"
    add("--responses", choices=["bodies", "headers", "none"], default="bodies", help=f"{shown} (%(default)s)")


class _List(argparse.Action):
    """`--list`: needs no trace."""

    def __init__(self, option_strings: list[str], dest: str, **others: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **others)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from epp.replay.generated import listing

        print(listing())
        parser.exit()


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from epp.replay.output import write
    from epp.replay.study import run
    from epp.replay.table import show

    if not options.no_plots and find_spec("matplotlib") is None:
        raise ConfigError("plots need matplotlib: pip install 'endpoint-picker[replay]', or say --no-plots")
    plan = _plan(options)
    opened = [source.open(engines.count, plan.seeds[0]) for source, engines in plan.places]  # before it takes time
    for remark in dict.fromkeys(remark for workload in opened for remark in workload.remarks):
        print(f"epp replay: {remark}", file=sys.stderr)
    report = _with_progress(lambda measuring, replaying: run(plan, options.jobs, measuring, replaying))
    files = write(report, options.out, plots=not options.no_plots)
    show(report, Console(width=None if sys.stdout.isatty() else WIDTH))
    print(f"{len(files)} files in {options.out}: {files[0].name}, {files[1].name}" + (", plots" if files[2:] else ""))
    return 0


def _with_progress(work: Callable[..., "Report"]) -> "Report":
    """Does the work, with a bar on the error output if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with ExitStack() as stack:
        progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        stack.enter_context(progress)
        search = progress.add_task("requests of the search for the capacity", total=None, visible=False)

        def measuring(done: int) -> None:
            progress.update(search, completed=done, visible=True)

        def replaying(total: int) -> Callable[[int], None]:
            progress.update(search, visible=False)
            task = progress.add_task("requests replayed", total=total)
            return lambda done: progress.update(task, completed=done)

        return work(measuring, replaying)


def _plan(options: argparse.Namespace) -> "Plan":
    from epp.replay.options import Engines, View
    from epp.replay.policy import Policy
    from epp.replay.runs import Source
    from epp.replay.study import Plan

    return Plan(
        sources=tuple(Source(said, options.limit, options.profile) for said in options.traces),
        engines=tuple(
            Engines(count, options.profile, options.speeds, options.jitter, options.block_size)
            for count in options.engines
        ),
        policies=tuple(Policy.of(said) for said in options.config or ["default"]),
        loads=options.load,
        seeds=tuple(range(options.seed, options.seed + options.seeds)),
        view=View(
            scrapes=not options.no_scrapes,
            scrape=ScrapeOptions(interval=options.scrape_interval),
            responses=options.responses,
        ),
        capacity=options.capacity,
    )


# --- arguments


def _share(text: str) -> float:
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to below 1")
    return value


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}: numbers above 0 are due, with commas between them") from None


def _counts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(count(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}: whole numbers are due, with commas between them") from None
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"{text} names one twice")
    return found


def _capacity(text: str) -> float | str:
    from epp.replay.study import OWN_PACE

    try:
        return text if text == OWN_PACE else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}: requests a second are due, or {OWN_PACE!r}") from None
