"""When simulated engines are scraped, and what the picker has heard of it when it decides.

Most scrapes are followed by another one before anybody decides anything. When they come depends on chance alone, so
none of them is an event of the replay: one is gone into when a decision sees it, or just before its engine changes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from itertools import count
from random import Random
from typing import NamedTuple

from epp.data.report import Found
from epp.data.scrape import until_next
from epp.engine.virtual import VirtualEngine
from epp.replay.scrapes import Pages, Reading


class Heard(NamedTuple):
    """The picker has heard at that time what an endpoint's page has said; it counts as current for so many seconds."""

    endpoint: int
    at: float
    found: Found
    fresh_for: float


@dataclass(slots=True, eq=False)
class _Scrape:
    """When the engine has said how it is, how much later the picker hears it, and what it was, once gone into."""

    taken: float
    late: float
    fresh_for: float = 0.0
    reading: Reading | None = None


@dataclass(slots=True, eq=False)
class _Scraped:
    """An engine's last scrape that was heard since somebody asked, and the one on its way.

    `times` are those of all scrapes since the engine has changed that nobody has gone into.
    """

    engine: VirtualEngine
    heard: _Scrape | None = None
    underway: _Scrape | None = None
    times: list[float] = field(default_factory=list)


class Scraper:
    """Scrapes each engine at its own times; before the first request comes all of them have been scraped.

    Args:
        pages: of the engines.
        engines: all of them, idle, in the order of their numbers. Whoever changes one calls `settle` before.
        period: seconds between two scrapes of an engine.
        timeout: seconds after which the next scrape is overdue.
        delay: see `View.scrape_delay`.
        random: of the times, and of nothing else.
    """

    def __init__(
        self,
        pages: Pages,
        engines: Sequence[VirtualEngine],
        period: float,
        timeout: float,
        delay: tuple[float, float],
        random: Random,
    ) -> None:
        self._pages, self._period, self._timeout, self._delay, self._random = pages, period, timeout, delay, random
        self._scraped = [_Scraped(engine) for engine in engines]
        self._order = count()
        # What comes next at each engine: its scrape, or that the picker hears of it.
        self._next: list[tuple[float, int, int]] = []
        for index, scraped in enumerate(self._scraped):
            wait = until_next(period, 0.0, random, first=True)
            scraped.heard = _Scrape(0.0, 0.0, wait + timeout, pages.read(scraped.engine, 0.0))
            self._next.append((wait, next(self._order), index))
        heapify(self._next)

    def heard(self, now: float) -> Iterator[Heard]:
        """What the picker has heard last of each engine, as far as that is new since this was asked before."""
        self._run(now)
        for index, scraped in enumerate(self._scraped):
            if scraped.heard is not None:
                self._go_into(scraped)
                scrape, scraped.heard = scraped.heard, None
                assert scrape.reading is not None  # noqa: S101 (all that are known have been gone into)
                found = self._pages.found(scraped.engine, scrape.reading)
                yield Heard(index, scrape.taken + scrape.late, found, scrape.fresh_for)

    def settle(self, index: int, now: float) -> None:
        """The engine is about to change: goes into those of its scrapes that somebody may yet ask for."""
        self._run(now)
        self._go_into(self._scraped[index])

    def _run(self, now: float) -> None:
        """Lets the time of the scrapes pass."""
        coming = self._next
        while coming[0][0] <= now:
            at, _, index = coming[0]
            scraped = self._scraped[index]
            if scraped.underway is None:
                least, more = self._delay
                late = least + self._random.expovariate(1 / more) if more else least
                scraped.underway = _Scrape(at, late)
                scraped.times.append(at)
                due = at + late
            else:
                scrape, scraped.underway = scraped.underway, None
                wait = until_next(self._period, scrape.late, self._random, first=False)
                scrape.fresh_for = wait + self._timeout
                scraped.heard = scrape
                due = at + wait
            heapreplace(coming, (due, next(self._order), index))

    def _go_into(self, scraped: _Scraped) -> None:
        """Reads of the engine, which hasn't changed since, what the scrapes have said that may yet be asked for."""
        wanted = {scrape.taken: scrape for scrape in (scraped.heard, scraped.underway) if scrape is not None}
        for at in scraped.times:
            if at in wanted:
                wanted[at].reading = self._pages.read(scraped.engine, at)
            else:
                scraped.engine.count(at)
        scraped.times.clear()
