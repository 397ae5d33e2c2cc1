"""Which models each engine serves: its `/v1/models`, asked rarely, into the pool's set `SERVED_MODELS`.

An engine that doesn't say, or not yet, has no members in that set; one that does has `REPORTED` beside its models. What
an engine said stays until it says otherwise, restarts or leaves.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from epp.data.client import MetricsClient, ScrapeError, ScrapeOptions
from epp.formats.openai import models
from epp.keys import REPORTED, SERVED_MODELS
from epp.pool import Endpoint, Pool

INTERVAL = 10.0
"""Seconds between two looks at one engine; stretched so that the pool is asked `BUDGET` times a second at most."""

RETRY = 1.0
"""Seconds until an engine is asked again that has just come or restarted and hasn't answered."""

BUDGET = 20.0
AT_ONCE = 16


@dataclass(slots=True)
class _Known:
    """What is known of one slot under one generation; `due` is when it is asked again."""

    generation: int
    due: float = 0.0
    cards: Mapping[str, msgspec.Raw] = field(default_factory=dict)


class Models:
    """Keeps the pool's set of served models up to date.

    Args:
        pool: whose endpoints are asked, whoever adds and removes them.
        options: how pages are fetched, path and interval included; the port is the one that requests are served at
            unless another one is named.
        read: what an engine says of its models, by name, out of its page; raises ValueError if it is no such page.
        now: the injected monotonic clock, seconds.
        on_fault: hears of an endpoint that gives no page, and why.
    """

    def __init__(
        self,
        pool: Pool,
        options: ScrapeOptions,
        *,
        now: Callable[[], float],
        read: Callable[[bytes], Mapping[str, msgspec.Raw]] = models,
        on_fault: Callable[[Endpoint, str], None] = lambda *_: None,
    ) -> None:
        self._pool = pool
        self._options = options
        self._now = now
        self._read = read
        self._on_fault = on_fault
        self._known: dict[int, _Known] = {}
        self._limit = asyncio.Semaphore(AT_ONCE)
        self._client: MetricsClient | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Models of {len(self._known)} endpoints>"

    async def start(self, patience: float = 1.0) -> None:
        """Begins to ask, and waits that many seconds at most for the first answers.

        Raises:
            ConfigError: see `MetricsClient`.
        """
        self._client = MetricsClient(self._options)
        first = asyncio.create_task(self.look())
        await asyncio.wait([first], timeout=patience)
        self._task = asyncio.create_task(self._go_on(first))

    def follow(self, options: ScrapeOptions, read: Callable[[bytes], Mapping[str, msgspec.Raw]]) -> None:
        """Asks in another way from now on: at once, if the page is another one. A no-op unless it has been started.

        Raises:
            ConfigError: see `MetricsClient`; all stays as it was.
        """
        if self._client is None:
            return
        if options != self._options:
            client, self._client = self._client, MetricsClient(options)
            self._options = options
            closing = asyncio.get_running_loop().create_task(client.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            for known in self._known.values():
                known.due = 0.0
        self._read = read

    async def stop(self) -> None:
        """Ends the asking; what is known stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        client, self._client = self._client, None
        await asyncio.gather(*self._closing)
        if client is not None:
            await client.close()

    async def _go_on(self, first: "asyncio.Task[None]") -> None:
        try:
            await first
            while True:
                await asyncio.sleep(RETRY)
                await self.look()
        finally:
            first.cancel()

    async def look(self) -> None:
        """Asks every endpoint that is due."""
        slots = self._pool.slots.values()
        self._known = {slot: self._of(slot) for slot in slots}
        now = self._now()
        due = [slot for slot, known in self._known.items() if known.due <= now]
        await asyncio.gather(*[self._ask(slot, self._known[slot]) for slot in due])

    def _of(self, slot: int) -> _Known:
        known, generation = self._known.get(slot), self._pool.generations[slot]
        if known is None or known.generation != generation:
            return _Known(generation)
        if known.cards and not self._pool.members(slot, SERVED_MODELS):
            known.due = 0.0  # it has restarted
        return known

    async def _ask(self, slot: int, known: _Known) -> None:
        endpoint, client = self._pool.endpoints[slot], self._client
        if endpoint is None or client is None:
            return
        try:
            async with self._limit:
                page = await client.page(self._url(endpoint))
            found = self._read(page)
        except Exception as error:  # noqa: BLE001 (reading may be somebody else's plugin; it is told)
            if client is not self._client:
                return  # the page is another one by now: it is due
            known.due = self._now() + (RETRY if not known.cards else self._interval)
            known_fault = isinstance(error, ScrapeError | ValueError)
            self._on_fault(endpoint, str(error) if known_fault else f"{type(error).__name__}: {error}")
            return
        if self._pool.generations[slot] == known.generation:
            known.cards, known.due = found, self._now() + self._interval
            self._pool.write_set(slot, SERVED_MODELS, (REPORTED, *found))

    def _url(self, endpoint: Endpoint) -> str:
        options = self._options
        return f"{options.scheme}://{endpoint.host}:{options.port or endpoint.port}{options.path}"

    @property
    def _interval(self) -> float:
        return max(self._options.interval, len(self._known) / BUDGET)

    def cards(self) -> Mapping[str, msgspec.Raw]:
        """What engines in play say of their models, by name: of several engines the first."""
        union: dict[str, msgspec.Raw] = {}
        for slot, known in self._known.items():
            if self._pool.eligible[slot] and self._pool.generations[slot] == known.generation:
                for name, card in known.cards.items():
                    union.setdefault(name, card)
        return union
