"""What the demo shows while it runs: a live table in a terminal, one line a second elsewhere."""

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from epp.demo.watch import Choice, Row, Snapshot

_LINE_EVERY = 1.0
_WIDEST = 40  # columns that no narrow terminal takes from a cell


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass is; `elapsed` in seconds."""

    title: str
    elapsed: float
    sent: int
    answered: int
    failed: int

    def __str__(self) -> str:
        counts = f"{self.sent} sent, {self.answered} answered, {self.failed} failed"
        return f"{self.title} {self.elapsed:5.1f} s  {counts}"


class Display(Protocol):
    """Shows the state of a pass again and again; a context manager."""

    def __enter__(self) -> Self:
        """Takes the screen."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives it back, with the last state on it."""

    def show(self, progress: Progress, snapshot: Snapshot) -> None:
        """Shows the state at this moment."""


def display(console: Console) -> Display:
    """The one that fits the console."""
    return LiveTable(console) if console.is_terminal else Lines(console)


class LiveTable:
    """Replaces what it showed before."""

    def __init__(self, console: Console) -> None:
        """Shows nothing yet."""
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, progress: Progress, snapshot: Snapshot) -> None:
        """Draws both tables anew."""
        self._live.update(Group(endpoints(progress, snapshot), decisions(snapshot)), refresh=True)


class Lines:
    """Prints a line, at most one a second, and at the end the last decisions."""

    def __init__(self, console: Console) -> None:
        """Prints nothing yet."""
        self._console = console
        self._next = 0.0
        self._choices: tuple[Choice, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Prints what the live table has on the screen all the time."""
        for choice in self._choices:
            where = choice.destination or choice.error
            parts = f"  = {_parts(choice)}" if choice.parts else ""
            self._print(f"decision {choice.request_id[:8]} to {where}  {_totals(choice)}{parts}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def show(self, progress: Progress, snapshot: Snapshot) -> None:
        """Prints the state, unless the last line is too fresh."""
        self._choices = snapshot.choices
        if progress.elapsed < self._next:
            return
        self._next = progress.elapsed + _LINE_EVERY
        self._print("  ".join([f"{progress}", *map(_short, snapshot.rows)]))


def _short(row: Row) -> str:
    return (
        f"| {_port(row.address)} waiting {_whole(row.waiting)} running {_whole(row.running)} "
        f"KV {_percent(row.kv_usage)} in flight {_whole(row.inflight)} hits {_percent(row.hit_ratio)} "
        f"requests {_whole(row.requests)}"
    )


def endpoints(progress: Progress, snapshot: Snapshot) -> Table:
    """A row an endpoint."""
    table = Table(title=str(progress), title_justify="left", expand=False)
    table.add_column("endpoint", no_wrap=True)
    for head in ("waiting", "running", "KV use", "in\nflight", "prefix\nhits", "requests"):
        table.add_column(head, justify="right")
    for row in snapshot.rows:
        numbers = (row.waiting, row.running), (row.inflight,)
        table.add_row(
            row.address,
            *map(_whole, numbers[0]),
            _percent(row.kv_usage),
            *map(_whole, numbers[1]),
            _percent(row.hit_ratio),
            _whole(row.requests),
        )
    return table


def decisions(snapshot: Snapshot) -> Table:
    """A row for each of the last decisions: the totals of all candidates, and what made up the highest.

    Where the terminal is narrow, it is the last column that is cut.
    """
    table = Table(title="last decisions", title_justify="left", expand=False, box=SIMPLE_HEAD)
    rows = [
        (choice.request_id[:8], _port(choice.destination) or choice.error, _totals(choice), _parts(choice))
        for choice in snapshot.choices
    ]
    for column, head in enumerate(("request", "sent to", "total scores", "of which")):
        widest = max([len(head), *[len(row[column]) for row in rows]])
        table.add_column(head, no_wrap=True, min_width=None if head == "of which" else min(widest, _WIDEST))
    for row in rows:
        table.add_row(*row)
    return table


def _port(address: str) -> str:
    """How the tables name an endpoint of this machine; nothing for none."""
    return f":{address.rpartition(':')[2]}" if address else ""


def _totals(choice: Choice) -> str:
    best = sorted(choice.totals.items(), key=lambda item: (-item[1], item[0]))
    return "  ".join(f"{_port(address)} {total:.2f}" for address, total in best)


def _parts(choice: Choice) -> str:
    return " + ".join(f"{value:.2f} {_nickname(name)}" for name, value in choice.parts.items())


def _nickname(scorer: str) -> str:
    """As short as a terminal of 80 columns needs it: `kv` for kv-cache-utilization-scorer."""
    return scorer.removesuffix("-scorer").removesuffix("-utilization").removesuffix("-cache")


def _whole(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"
