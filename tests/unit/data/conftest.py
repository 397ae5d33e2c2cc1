"""Engines that serve metrics pages, an ear for callbacks that tests wait on, and a pool with a scraper over it."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from epp.data.client import ScrapeOptions
from epp.data.report import Reader
from epp.data.scrape import Scraper
from epp.pool import Candidates, Endpoint, Pool

DATA = Path(__file__).parents[3] / "../shared/data"


@pytest.fixture
def capture() -> Callable[[str], bytes]:
    """The content of a file of the shared data; skips the test where it is absent."""

    def read(name: str) -> bytes:
        file = DATA / name
        if not file.exists():
            pytest.skip(f"needs the shared data: {file.name} is not in ../shared/data")
        return file.read_bytes()

    return read


class Heard:
    """Records what callbacks say; `until` waits for a condition that is looked at whenever one has been called.

    `fault` is raised by `on_scrape` and `on_pool` as long as it is set.
    """

    def __init__(self) -> None:
        self.scrapes: list[tuple[str, float, str | None]] = []
        self.changes: list[tuple[str, str]] = []
        self.errors: list[str] = []
        self.pools: list[tuple[list[str], list[str]]] = []
        self.fault: Exception | None = None
        self._something = asyncio.Event()

    def on_scrape(self, endpoint: Endpoint, seconds: float, error: str | None) -> None:
        self.scrapes.append((endpoint.name, seconds, error))
        self.note()

    def on_change(self, endpoint: Endpoint, state: str) -> None:
        self.changes.append((endpoint.name, state))
        self._something.set()

    def on_error(self, message: str) -> None:
        self.errors.append(message)
        self._something.set()

    def on_pool(self, added: Any, removed: Any) -> None:
        self.pools.append((list(added), list(removed)))
        self.note()

    def note(self) -> None:
        """Something has happened."""
        self._something.set()
        if self.fault is not None:
            raise self.fault

    def scrapes_of(self, name: str) -> list[str | None]:
        return [error for scraped, _, error in self.scrapes if scraped == name]

    async def until(self, condition: Callable[[], bool], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._something.clear()
                await self._something.wait()


@pytest.fixture
def heard() -> Heard:
    return Heard()


class Engine:
    """A server with a metrics page. `gate`, when set to an event, holds every answer back until it is set."""

    def __init__(self, page: bytes = b"", status: int = 200, content_type: str = "text/plain; charset=utf-8") -> None:
        self.page, self.status, self.content_type = page, status, content_type
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.requests: list[web.Request] = []
        self.busy = self.busiest = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"engine-{self.port}", "127.0.0.1", self.port)

    async def start(self, **options: Any) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, **options)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        self.asked.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            return web.Response(body=self.page, status=self.status, headers={"Content-Type": self.content_type})
        finally:
            self.busy -= 1


@pytest.fixture
async def engine() -> AsyncIterator[Callable[..., Awaitable[Engine]]]:
    """Starts engines, and ends them with the test."""
    started: list[Engine] = []

    async def start(*arguments: Any, tls: Any = None, **named: Any) -> Engine:
        server = Engine(*arguments, **named)
        await server.start(**({"ssl_context": tls} if tls else {}))
        started.append(server)
        return server

    yield start
    for server in started:
        if server.gate is not None:
            server.gate.set()
        await server.stop()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses connections and that nobody else can get meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


QUICK = ScrapeOptions(interval=0.005, retry_cap=0.02)
StartEngine = Callable[..., Awaitable[Engine]]


def page(waiting: float = 1, tokens: float = 100, **more: str) -> bytes:
    return (
        f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting {waiting}\nvllm:num_requests_running 2\n"
        f'vllm:kv_cache_usage_perc 0.5\nvllm:cache_config_info{{block_size="16",num_gpu_blocks="10"}} 1\n'
        f"vllm:generation_tokens_total {tokens}\n{more.get('lora', '')}"
    ).encode()


class Setup:
    """A pool with a scraper over it."""

    def __init__(self, heard: Heard) -> None:
        self.heard, self.pool, self.now = heard, Pool(2), time.monotonic
        self.scraper: Scraper | None = None

    async def start(
        self, *engines: Engine | Endpoint, options: ScrapeOptions = QUICK, reader: Reader | None = None
    ) -> Scraper:
        for each in engines:
            self.pool.add(each.endpoint if isinstance(each, Engine) else each)
        self.scraper = Scraper(
            self.pool,
            options,
            now=self.now,
            random=random.Random(7),
            reader=reader,
            on_scrape=self.heard.on_scrape,
            on_change=self.heard.on_change,
        )
        await self.scraper.start()
        return self.scraper

    def slot(self, engine: Engine | Endpoint) -> int:
        endpoint = engine.endpoint if isinstance(engine, Engine) else engine
        return self.pool.slots[endpoint.id]

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.pool, self.pool.all_slots(), self.now())

    async def scraped(self, engine: Engine | Endpoint, times: int = 1) -> str | None:
        """Waits for so many more scrapes of it; the last one's error."""
        name = engine.endpoint.name if isinstance(engine, Engine) else engine.name
        target = len(self.heard.scrapes_of(name)) + times
        await self.heard.until(lambda: len(self.heard.scrapes_of(name)) >= target)
        return self.heard.scrapes_of(name)[target - 1]

    async def changed(self, *changes: tuple[Engine | Endpoint, str]) -> None:
        """Waits until exactly these changes have been told, in this order."""
        wanted = [((e.endpoint if isinstance(e, Engine) else e).name, state) for e, state in changes]
        await self.heard.until(lambda: len(self.heard.changes) >= len(wanted))
        assert self.heard.changes == wanted


@pytest.fixture
async def setup(heard: Heard) -> AsyncIterator[Setup]:
    made = Setup(heard)
    yield made
    if made.scraper is not None:
        await made.scraper.stop()


@pytest.fixture
def refusing(closed_port: int) -> Endpoint:
    return Endpoint("refusing", "127.0.0.1", closed_port)
