"""Scrapes every endpoint's metrics on a schedule of its own, and writes what they say into the pool.

Each endpoint has one timer or one running scrape, never both. Its next scrape is due one period after the last began,
give or take a tenth so that the pool's scrapes don't fall into step; the period is `interval`, stretched where the
whole pool would cost more than `budget` scrapes a second (at the defaults 50 ms up to 10 endpoints, 0.5 s at 100, 5 s
at 1,000). A failed scrape is tried again after a pause that doubles up to `retry_cap`.

What a scrape said is fresh until the next one is overdue, and stale at once when a scrape fails. Who may be picked is
judged by `Health`.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from epp.data.client import MetricsClient, ScrapeError, ScrapeOptions
from epp.data.health import Health, OnChange
from epp.data.report import Marks, Reader, Report, restarted
from epp.formats.exposition import ExpositionError
from epp.keys import ACTIVE_MODELS, WAITING_MODELS
from epp.pool import Endpoint, Pool

OnScrape = Callable[[Endpoint, float, str | None], None]

_JITTER = 0.1
_SPREAD = 0.5  # seconds over which the first scrapes of endpoints that come together are spread
_NO_METRICS = "the page has no metric of any known engine"


def period_of(options: ScrapeOptions, endpoints: int) -> float:
    """Seconds between two scrapes of one endpoint of so many."""
    return max(options.interval, endpoints / options.budget)


def until_next(period: float, seconds: float, random: random.Random, *, first: bool) -> float:
    """The pause after an endpoint's scrape that took so long. The second one comes at any time within a period."""
    share = random.random() if first else random.uniform(1 - _JITTER, 1 + _JITTER)
    return max(period * share - seconds, period / 4)


def enter(pool: Pool, slot: int, report: Report, *, now: float, fresh_until: float) -> None:
    """Enters what a scrape at `now` said; see `Pool.write`."""
    pool.write(slot, report.values, now=now, fresh_until=fresh_until)
    pool.write_set(slot, ACTIVE_MODELS, report.active)
    pool.write_set(slot, WAITING_MODELS, report.waiting)


async def _closed_after(client: MetricsClient, tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Closes the client once these scrapes, which may use it, have ended."""
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


@dataclass(slots=True, eq=False)
class _Target:
    """One endpoint under one generation of its slot: its timer or its running scrape, and what is remembered of it.

    `misses` are failed scrapes in a row; `again` asks for a scrape as soon as the running one has ended; `suspect` is
    set when a request was refused at a port other than the one that is scraped.
    """

    endpoint: Endpoint
    slot: int
    generation: int
    url: str
    port: int
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    marks: Marks = field(default_factory=dict)
    misses: int = 0
    tried: bool = False
    again: bool = False
    suspect: bool = False


class Scraper:
    """Keeps the pool's columns up to date.

    Args:
        pool: whose endpoints are scraped, whoever adds and removes them.
        options: see `ScrapeOptions`.
        now: the injected monotonic clock, seconds.
        random: for jitter.
        reader: of the pages; None for the known engines.
        on_scrape: hears of every scrape: the endpoint, how many seconds it took, and the error or None.
        on_change: hears of an endpoint that goes "out", comes "in" or has "restarted".
    """

    def __init__(
        self,
        pool: Pool,
        options: ScrapeOptions,
        *,
        now: Callable[[], float],
        random: random.Random,
        reader: Reader | None = None,
        on_scrape: OnScrape = lambda *_: None,
        on_change: OnChange = lambda *_: None,
    ) -> None:
        self._pool = pool
        self._options = options
        self._now = now
        self._random = random
        self._reader = reader or Reader()
        self._on_scrape = on_scrape
        self._on_change = on_change
        self._health = Health(pool, options.failures, on_change)
        self._targets: dict[int, _Target] = {}
        self._outdated = True
        self._client: MetricsClient | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Scraper: {len(self._targets)} endpoints every {self.period:g} s, {self._health!r}>"

    @property
    def period(self) -> float:
        """Seconds between two scrapes of one endpoint."""
        return period_of(self._options, len(self._targets))

    async def start(self) -> None:
        """Begins to scrape whoever is in the pool, now and later.

        Raises:
            ConfigError: see `MetricsClient`.
        """
        self._client = MetricsClient(self._options)
        self._pool.listen(self._membership)
        self._outdated = True
        self._refresh()

    def follow(self, options: ScrapeOptions, reader: Reader) -> None:
        """Scrapes in another way from now on; what is known stays until a scrape says otherwise.

        A no-op unless it has been started.

        Raises:
            ConfigError: see `MetricsClient`; all stays as it was.
        """
        if self._client is None:
            return
        client, self._client = self._client, MetricsClient(options)
        self._options, self._reader = options, reader
        under_way = [target.task for target in self._targets.values() if target.task is not None]
        closing = asyncio.get_running_loop().create_task(_closed_after(client, under_way))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        for target in self._targets.values():
            target.marks = {}
            target.url, target.port = self._place(target.endpoint)
            self._hurry(target, self._spread())

    async def stop(self) -> None:
        """Ends every scrape and closes the connections; nothing is written to the pool afterwards."""
        self._pool.unlisten(self._membership)
        client, self._client = self._client, None
        tasks = [target.task for target in self._targets.values() if target.task is not None]
        for target in self._targets.values():
            self._cancel(target)
        self._targets.clear()
        await asyncio.gather(*tasks, *self._closing, return_exceptions=True)
        if client is not None:
            await client.close()

    def connection_failed(self, hostport: str) -> None:
        """A request was refused by the endpoint at `ip:port`: counts as a failure, and asks for a scrape at once."""
        target = self._target_at(hostport)
        if target is not None:
            target.suspect = target.port != target.endpoint.port
            self._health.failed(target.slot, reachable=False)
            self._hurry(target)

    def suspected(self, hostport: str) -> None:
        """A request got a 503 from the endpoint at `ip:port`, or from Envoy in its place: asks for a scrape at once."""
        target = self._target_at(hostport)
        if target is not None:
            self._hurry(target)

    # --- who is scraped

    def _membership(self) -> None:
        if not self._outdated:
            self._outdated = True
            asyncio.get_running_loop().call_soon(self._refresh)

    def _refresh(self) -> None:
        """Follows the pool's membership; called before anything is concluded about an endpoint."""
        if not self._outdated or self._client is None:
            return
        self._outdated = False
        for target in list(self._targets.values()):
            if not self._in_pool(target):
                self._drop(target)
        for slot in self._pool.slots.values():
            endpoint = self._pool.endpoints[slot]
            if endpoint is None:
                continue
            if slot in self._targets:
                self._targets[slot].endpoint = endpoint
            else:
                self._take(endpoint, slot)
        self._health.joined()

    def _in_pool(self, target: _Target) -> bool:
        return self._pool.generations[target.slot] == target.generation

    def _take(self, endpoint: Endpoint, slot: int) -> None:
        url, port = self._place(endpoint)
        target = self._targets[slot] = _Target(endpoint, slot, self._pool.generations[slot], url, port)
        self._plan(target, self._spread())

    def _place(self, endpoint: Endpoint) -> tuple[str, int]:
        """The address of its metrics page, and the port of that."""
        port = endpoint.metrics_port or self._options.port or endpoint.port
        return f"{self._options.scheme}://{endpoint.metrics_host}:{port}{self._options.path}", port

    def _drop(self, target: _Target) -> None:
        self._cancel(target)
        del self._targets[target.slot]
        self._health.forget(target.slot)

    def _cancel(self, target: _Target) -> None:
        if target.timer is not None:
            target.timer.cancel()
        if target.task is not None:
            target.task.cancel()

    def _target_at(self, hostport: str) -> _Target | None:
        self._refresh()
        slot = self._pool.slot_at(hostport)
        return None if slot is None else self._targets.get(slot)

    # --- when

    def _plan(self, target: _Target, delay: float) -> None:
        target.timer = asyncio.get_running_loop().call_later(delay, self._begin, target)

    def _begin(self, target: _Target) -> None:
        target.timer = None
        target.task = asyncio.get_running_loop().create_task(self._scrape(target))

    def _hurry(self, target: _Target, delay: float = 0.0) -> None:
        if target.task is not None:
            target.again = True
        elif target.timer is not None:
            target.timer.cancel()
            self._plan(target, delay)

    def _spread(self) -> float:
        """A pause before a scrape that isn't to come at the same time as all others."""
        return self._random.uniform(0, min(self.period, _SPREAD))

    def _until_next(self, target: _Target, seconds: float) -> float:
        return until_next(self.period, seconds, self._random, first=not target.tried)

    def _until_retry(self, target: _Target) -> float:
        pause = self._options.interval * 2.0 ** min(target.misses - 1, 30)
        return min(pause, self._options.retry_cap) * self._random.uniform(1 - _JITTER, 1 + _JITTER)

    # --- one scrape

    async def _scrape(self, target: _Target) -> None:
        """One scrape, and the plan for the next; the root of its task."""
        started = self._now()
        target.again = False
        reader = self._reader
        try:
            page = await self._fetch(target)
            report = reader.read(page, target.endpoint.labels)
            fault: Exception | None = None
        except Exception as error:  # noqa: BLE001 (the root of a task; on_scrape counts it)
            fault = error
        self._refresh()
        if self._targets.get(target.slot) is not target:
            return
        if reader is not self._reader:  # the page is another one by now
            target.task = None
            self._plan(target, 0.0)
            return
        seconds = self._now() - started
        delay = self._options.retry_cap
        try:
            if fault is None:
                delay, problem = self._worked(target, report, seconds)
            else:
                delay, problem = self._failed(target, fault)
            self._on_scrape(target.endpoint, seconds, problem)
        finally:  # a callback that raises ends this task, not the schedule
            target.tried, target.task = True, None
            self._plan(target, 0.0 if target.again else delay)

    async def _fetch(self, target: _Target) -> bytes:
        assert self._client is not None  # noqa: S101 (there are no tasks before start and after stop)
        if target.suspect:
            await self._client.connect(target.endpoint.address, target.endpoint.port)
            target.suspect = False
        return await self._client.page(target.url)

    def _worked(self, target: _Target, report: Report, seconds: float) -> tuple[float, str | None]:
        target.misses = 0
        self._health.worked(target.slot)
        delay = self._until_next(target, seconds)
        if not report.engine:
            self._pool.stale(target.slot)
            return delay, _NO_METRICS
        if restarted(target.marks, report.marks):
            target.marks = {}
            self._pool.restarted(target.slot)
            self._on_change(target.endpoint, "restarted")
        target.marks = {**target.marks, **report.marks}
        now = self._now()
        enter(self._pool, target.slot, report, now=now, fresh_until=now + delay + self._options.timeout)
        return delay, None

    def _failed(self, target: _Target, fault: Exception) -> tuple[float, str]:
        target.misses += 1
        self._pool.stale(target.slot)
        reachable = fault.reachable if isinstance(fault, ScrapeError) else isinstance(fault, ExpositionError) or None
        if reachable is not None:
            self._health.failed(target.slot, reachable=reachable)
        known = isinstance(fault, ScrapeError | ExpositionError)
        return self._until_retry(target), str(fault) if known else f"{type(fault).__name__}: {fault}"
