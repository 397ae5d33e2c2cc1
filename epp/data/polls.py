"""Fetches the pages that a configuration names beside the engines' metrics, and enters what extractors make of them.

Each page of each endpoint is fetched once an interval, in a task of its own: one that hangs delays nobody else. What a
page said counts until the next fetch; after a failed one it isn't known.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from epp.data.client import MetricsClient, ScrapeOptions, check
from epp.data.configured import page_options
from epp.keys import Key
from epp.pool import Endpoint, Pool
from epp.sources import Page, PageReader, Poll

INTERVAL = 1.0
"""Seconds between two fetches of one page, where it doesn't say."""

BUDGET = 50.0
"""Fetches a second of one kind of page at most: the interval is stretched to endpoints / BUDGET."""

OnFault = Callable[[Poll, PageReader | None, Endpoint, str], None]
"""Hears of a poll, the reader that failed or None, the endpoint, and the reason."""


@dataclass(slots=True, eq=False)
class _Round:
    """One kind of page: what it is, its client, the task that begins the fetches, and those under way by slot."""

    poll: Poll
    options: ScrapeOptions
    client: MetricsClient
    task: "asyncio.Task[None] | None" = None
    fetches: "dict[int, asyncio.Task[None]]" = field(default_factory=dict)


class Polls:
    """Keeps the columns of polled pages up to date.

    Args:
        pool: whose endpoints are asked, whoever adds and removes them.
        on_fault: hears of what could not be had, or not be read.
    """

    def __init__(self, pool: Pool, on_fault: OnFault = lambda *_: None) -> None:
        self._pool = pool
        self._on_fault = on_fault
        self._rounds: list[_Round] = []
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Polls: {', '.join(each.poll.name for each in self._rounds) or 'none'}>"

    def follow(self, polls: Sequence[Poll]) -> None:
        """Fetches these pages from now on, and no others; what others have given isn't known any more.

        Raises:
            ConfigError: a certificate can't be loaded; all stays as it was.
        """
        options = [page_options(poll.page, INTERVAL) for poll in polls]
        for each_options in options:
            check(each_options)
        rounds = [_Round(poll, each, MetricsClient(each)) for poll, each in zip(polls, options, strict=True)]
        before, self._rounds = self._rounds, rounds
        for each in before:
            closing = asyncio.get_running_loop().create_task(self._end(each))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        for each in rounds:
            each.task = asyncio.get_running_loop().create_task(self._run(each))

    async def stop(self) -> None:
        """Ends every fetch and closes the connections."""
        self.follow(())
        await asyncio.gather(*self._closing)

    async def _end(self, each: _Round) -> None:
        tasks = [task for task in (each.task, *each.fetches.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await each.client.close()
        if each.poll.name not in {other.poll.name for other in self._rounds}:
            for slot in self._pool.slots.values():
                self._enter(each.poll, slot, [{} for _ in each.poll.readers])

    async def _run(self, each: _Round) -> None:
        while True:
            slots = list(self._pool.slots.values())
            each.fetches = {slot: task for slot, task in each.fetches.items() if not task.done()}
            for slot in slots:
                if slot not in each.fetches:
                    each.fetches[slot] = asyncio.get_running_loop().create_task(self._fetch(each, slot))
            await asyncio.sleep(max(each.options.interval, len(slots) / BUDGET))

    async def _fetch(self, each: _Round, slot: int) -> None:
        endpoint, generation = self._pool.endpoints[slot], self._pool.generations[slot]
        if endpoint is None:
            return
        values: list[Mapping[Key, float]] = [{} for _ in each.poll.readers]
        try:
            page = await each.client.page(_url(endpoint, each.options, each.poll.page))
        except Exception as error:  # noqa: BLE001 (the root of a task; it is told)
            self._on_fault(each.poll, None, endpoint, str(error))
        else:
            values = [self._read(each.poll, reader, endpoint, page) for reader in each.poll.readers]
        if self._pool.generations[slot] == generation:
            self._enter(each.poll, slot, values)

    def _read(self, poll: Poll, reader: PageReader, endpoint: Endpoint, page: bytes) -> Mapping[Key, float]:
        try:
            return {key: _number(key, value) for key, value in reader.columns(endpoint, page).items()}
        except Exception as error:  # noqa: BLE001 (somebody else's plugin may raise anything; it is told)
            self._on_fault(poll, reader, endpoint, f"{type(error).__name__}: {error}")
            return {}

    def _enter(self, poll: Poll, slot: int, values: Sequence[Mapping[Key, float]]) -> None:
        for reader, columns in zip(poll.readers, values, strict=True):
            self._pool.write_polled(slot, columns, f"{poll.name}/{reader.name}")


def _number(key: Key, value: float) -> float:
    if not isinstance(key, Key) or key.scope != "pool":
        raise TypeError(f"a column of the pool is due, not {key!r}")
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _url(endpoint: Endpoint, options: ScrapeOptions, page: Page) -> str:
    port = options.port or endpoint.metrics_port or endpoint.port
    host = endpoint.node_host if page.at_node else endpoint.metrics_host
    return f"{options.scheme}://{host}:{port}{options.path}"
