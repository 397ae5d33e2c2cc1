import asyncio
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from epp.data.client import ScrapeOptions
from epp.data.report import Reader, Report
from epp.data.scrape import Scraper
from epp.errors import ConfigError
from epp.keys import (
    ACTIVE_LORAS,
    ACTIVE_MODELS,
    CACHE_BLOCK_SIZE,
    INFLIGHT_REQUESTS,
    KV_USAGE,
    RUNNING,
    WAITING,
    WAITING_MODELS,
)
from epp.pool import Candidates, Endpoint, Pool

from .conftest import Engine, Heard

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


# --- values


async def test_values_arrive(setup: Setup, engine: StartEngine) -> None:
    """What the page says is in the pool's columns and sets, and is fresh."""
    lora = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 9\n'
    server = await engine(page(waiting=3, lora=lora))
    scraper = await setup.start(server)
    assert await scraper.wait_first(10)
    slot, c = setup.slot(server), setup.candidates
    found = {key: c[key][0] for key in (WAITING, RUNNING, KV_USAGE, CACHE_BLOCK_SIZE, ACTIVE_LORAS)}
    assert found == {WAITING: 3, RUNNING: 2, KV_USAGE: 0.5, CACHE_BLOCK_SIZE: 16, ACTIVE_LORAS: 2}
    assert setup.pool.members(slot, ACTIVE_MODELS) == {"a", "b"}
    assert setup.pool.members(slot, WAITING_MODELS) == {"c"}
    assert c.fresh.all()
    assert c.ages[0] < 10


async def test_a_capture(setup: Setup, engine: StartEngine, capture: Callable[[str], bytes]) -> None:
    """A real vLLM's page, over HTTP, into the pool."""
    server = await engine(capture("vllm-0.32-metrics-loaded.txt"), content_type="text/plain; version=0.0.4")
    scraper = await setup.start(server)
    assert await scraper.wait_first(10)
    assert setup.candidates[CACHE_BLOCK_SIZE][0] == 32
    assert setup.candidates[WAITING][0] == 0


async def test_values_follow(setup: Setup, engine: StartEngine) -> None:
    """Scrapes go on, over one connection, uncompressed."""
    server = await engine(page(waiting=1))
    await setup.start(server)
    await setup.scraped(server)
    server.page = page(waiting=8)
    await setup.scraped(server, 3)
    assert setup.candidates[WAITING][0] == 8
    assert len({request.transport for request in server.requests}) == 1
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}
    assert {request.path for request in server.requests} == {"/metrics"}


async def test_what_the_page_leaves_out_is_missing(setup: Setup, engine: StartEngine) -> None:
    """A metric that vanishes turns NaN; adapters that vanish are gone."""
    lora = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a",waiting_lora_adapters=""} 9\n'
    server = await engine(page(lora=lora))
    await setup.start(server)
    await setup.scraped(server)
    server.page = b"vllm:num_requests_running 2\n"
    await setup.scraped(server, 3)
    c = setup.candidates
    assert (str(c[WAITING][0]), c[RUNNING][0], c[CACHE_BLOCK_SIZE][0]) == ("nan", 2, 16)
    assert not c.has(ACTIVE_MODELS, "a").any()


async def test_where_the_page_is(setup: Setup, engine: StartEngine) -> None:
    """Path and port can be set; an endpoint's own metrics port goes first."""
    one, other = await engine(page(waiting=1)), await engine(page(waiting=2))
    a = Endpoint("a", "127.0.0.1", 1)
    b = Endpoint("b", "127.0.0.1", 2, metrics_port=other.port)
    scraper = await setup.start(a, b, options=replace(QUICK, port=one.port, path="/prometheus/metrics"))
    assert await scraper.wait_first(10)
    assert list(setup.candidates[WAITING]) == [1, 2]
    assert one.requests[0].path == "/prometheus/metrics"


async def test_ipv6(setup: Setup, heard: Heard) -> None:
    """An IPv6 address is put in brackets."""
    with socket.socket(socket.AF_INET6) as bound:
        try:
            bound.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no ::1")
        endpoint = Endpoint("six", "::1", bound.getsockname()[1])
        await setup.start(endpoint)
        assert "can't connect" in str(await setup.scraped(endpoint))


# --- what goes wrong

UNSCRAPABLE: dict[str, tuple[dict[str, Any], str]] = {
    "HTTP 500": ({"page": page(), "status": 500}, "HTTP status 500"),
    "HTML": ({"page": b"<!DOCTYPE html><html>vLLM</html>", "content_type": "text/html"}, "the page is HTML"),
    "empty": ({"page": b""}, "the page is empty"),
    "JSON": ({"page": b"[]", "content_type": "application/json"}, "trtllm-serve has its metrics at"),
    "huge": ({"page": page() * 1000}, "longer than 100000 bytes"),
    "damaged": ({"page": b"vllm:num_requests_waiting many\n"}, "damaged at b'many'"),
}


@pytest.mark.parametrize(("answer", "message"), UNSCRAPABLE.values(), ids=UNSCRAPABLE.keys())
async def test_unscrapable(setup: Setup, engine: StartEngine, answer: dict[str, Any], message: str) -> None:
    """An endpoint whose page can't be used is stale at once, and out after three times, for others are there."""
    good, bad = await engine(page()), await engine(page(waiting=5))
    options = replace(QUICK, max_bytes=100_000)
    scraper = await setup.start(good, bad, options=options)
    assert await scraper.wait_first(10)
    bad.page, bad.status = answer["page"], answer.get("status", 200)
    await setup.heard.until(lambda: any(error is not None for error in setup.heard.scrapes_of(bad.endpoint.name)))
    error = setup.heard.scrapes_of(bad.endpoint.name)[-1]
    assert message in str(error)
    assert list(setup.candidates.fresh) == [True, False]
    assert setup.pool.eligible[setup.slot(bad)]
    await setup.changed((bad, "out"))
    assert list(setup.pool.eligible[setup.pool.all_slots()]) == [True, False]
    assert [error is None for error in setup.heard.scrapes_of(bad.endpoint.name)][-3:] == [False] * 3
    bad.page, bad.status = page(waiting=6), 200
    await setup.changed((bad, "out"), (bad, "in"))
    assert setup.pool.eligible[setup.slot(bad)]
    await setup.scraped(bad)
    assert list(setup.candidates[WAITING]) == [1, 6]


async def test_slow(setup: Setup, engine: StartEngine) -> None:
    """An endpoint that takes too long is unscrapable: alone it stays eligible, with another one it is out."""
    slow = await engine(page())
    slow.gate = asyncio.Event()
    scraper = await setup.start(slow, options=replace(QUICK, timeout=0.05))
    await setup.changed((slow, "out"))
    assert setup.heard.scrapes[0][2] == "no answer within 0.05 s"
    assert setup.pool.eligible[setup.slot(slow)]
    good = await engine(page())
    setup.pool.add(good.endpoint)
    await setup.scraped(good)
    assert [bool(setup.pool.eligible[setup.slot(each)]) for each in (slow, good)] == [False, True]
    slow.gate.set()
    await setup.changed((slow, "out"), (slow, "in"))
    assert "1 endpoints" not in repr(scraper)
    assert "0 of 2 out" in repr(scraper)


async def test_refusing(setup: Setup, refusing: Endpoint) -> None:
    """An endpoint that refuses connections is out, even if nobody else is there."""
    await setup.start(refusing)
    assert setup.pool.eligible[setup.slot(refusing)]
    await setup.changed((refusing, "out"))
    assert not setup.pool.eligible[setup.slot(refusing)]
    assert setup.heard.scrapes[0][2] == "can't connect: Connection refused"


async def test_one_that_hangs_up(setup: Setup) -> None:
    """A server that takes the connection and closes it, or doesn't speak HTTP, is reachable."""
    answers = iter([b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:num"])

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(answers, b""))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        endpoint = Endpoint("rude", "127.0.0.1", server.sockets[0].getsockname()[1])
        await setup.start(endpoint)
        await setup.changed((endpoint, "out"))
        assert all(str(error).startswith("no page: ") for error in setup.heard.scrapes_of("rude"))
        assert setup.pool.eligible[setup.slot(endpoint)]
        assert setup.scraper is not None
        await setup.scraper.stop()


class Faulty(Reader):
    """A reader that raises while `faulty` is set."""

    faulty = False

    def read(self, page: bytes, labels: Mapping[str, str]) -> Report:
        if self.faulty:
            raise RuntimeError("a fault")
        return super().read(page, labels)


async def test_a_fault_of_ours_is_nobodys_failure(setup: Setup, engine: StartEngine) -> None:
    """A fault in the reader says nothing of the endpoint: stale, but not out."""
    server = await engine(page())
    reader = Faulty()
    await setup.start(server, reader=reader)
    await setup.scraped(server)
    reader.faulty = True
    await setup.heard.until(lambda: setup.heard.scrapes[-1][2] is not None)
    assert await setup.scraped(server, 5) == "RuntimeError: a fault"
    assert not setup.candidates.fresh.any()
    assert setup.heard.changes == []
    reader.faulty = False
    await setup.heard.until(lambda: setup.heard.scrapes[-1][2] is None)


async def test_an_exposition_of_nobody_known(setup: Setup, engine: StartEngine) -> None:
    """The server is well, and says nothing: its values are unknown, an error is told, and it may serve."""
    good, other = await engine(page()), await engine(page())
    await setup.start(good, other)
    await setup.scraped(other)
    other.page = b"# HELP up up\nup 1\n"
    assert await setup.scraped(other, 5) == "the page has no metric of any known engine"
    assert list(setup.candidates.fresh) == [True, False]
    assert setup.heard.changes == []


async def test_an_empty_exposition(setup: Setup, engine: StartEngine) -> None:
    """Before its first request a server may declare an exposition and have no sample: that is no failure either."""
    good = await engine(page())
    fresh = await engine(b"", content_type="text/plain; version=0.0.4; charset=utf-8")
    await setup.start(good, fresh)
    assert await setup.scraped(fresh, 5) == "the page has no metric of any known engine"
    assert setup.heard.changes == []


async def test_everybody_out(setup: Setup, engine: StartEngine, refusing: Endpoint) -> None:
    """If nobody's metrics can be had, those that can be reached serve, and those that can't don't."""
    broken = await engine(b"<html>")
    await setup.start(broken, refusing)
    await setup.heard.until(lambda: len(setup.heard.changes) == 2)
    assert sorted(setup.heard.changes) == sorted([(broken.endpoint.name, "out"), ("refusing", "out")])
    assert [bool(setup.pool.eligible[setup.slot(each)]) for each in (broken, refusing)] == [True, False]


# --- freshness


async def test_fresh_until_the_next_scrape_is_overdue(setup: Setup, engine: StartEngine) -> None:
    """What a scrape said counts until the next one is due plus the time it may take."""
    server = await engine(page())
    clock = setup.now()
    setup.now = lambda: clock
    await setup.start(server, options=ScrapeOptions(interval=20.0, timeout=3.0))
    await setup.scraped(server)
    slot = setup.slot(server)
    assert setup.pool.updated[slot] == clock
    # The second scrape falls anywhere within a period, and never sooner than a quarter of it.
    assert 20.0 / 4 + 3.0 <= setup.pool.fresh_until[slot] - clock <= 20.0 + 3.0


async def test_a_missed_scrape_is_stale(setup: Setup, engine: StartEngine) -> None:
    """An endpoint whose scheduled scrape doesn't come back is stale when it is overdue, before the scrape fails."""
    server = await engine(page())
    await setup.start(server, options=replace(QUICK, timeout=5.0))
    await setup.scraped(server)
    server.gate = asyncio.Event()
    server.asked.clear()
    await server.asked.wait()
    assert setup.candidates.fresh.all()
    late = setup.pool.fresh_until[setup.slot(server)] + 0.001
    assert not Candidates(setup.pool, setup.pool.all_slots(), late).fresh.any()


# --- restarts


async def test_a_restart(setup: Setup, engine: StartEngine) -> None:
    """A counter that falls voids what is known, before the new values are written; what is in flight stays."""
    server = await engine(page(waiting=9, tokens=100))
    told: list[tuple[int, float]] = []

    class Index:
        def forget(self, slot: int) -> None:
            told.append((slot, float(setup.pool.column(WAITING)[slot])))

    setup.pool.watch(Index())
    await setup.start(server)
    await setup.scraped(server)
    slot = setup.slot(server)
    setup.pool.charge(slot, 1, 10)
    server.page = page(waiting=1, tokens=5)
    await setup.changed((server, "restarted"))
    await setup.scraped(server, 3)
    assert len(told) == 1
    assert told[0][0] == slot
    assert str(told[0][1]) == "nan"
    assert setup.candidates[WAITING][0] == 1
    assert setup.pool.column(INFLIGHT_REQUESTS)[slot] == 1
    assert setup.heard.changes == [(server.endpoint.name, "restarted")]


async def test_a_restart_after_a_page_without_counters(setup: Setup, engine: StartEngine) -> None:
    """An engine that shows no counter before its first request is found out by its first one."""
    server = await engine(page(tokens=100))
    await setup.start(server)
    await setup.scraped(server)
    server.page = b"vllm:num_requests_running 0\n"
    await setup.scraped(server, 3)
    assert setup.heard.changes == []
    server.page = page(tokens=5)
    await setup.changed((server, "restarted"))


async def test_a_restart_is_told_once(setup: Setup, engine: StartEngine) -> None:
    """What the counters were before a restart is forgotten with it, also those that come back late."""
    late = 'vllm:prompt_tokens_total{{model_name="late"}} {}\n'
    server = await engine(page(tokens=100) + late.format(100).encode())
    await setup.start(server)
    await setup.scraped(server)
    server.page = page(tokens=5)
    await setup.changed((server, "restarted"))
    server.page = page(tokens=6) + late.format(1).encode()
    await setup.scraped(server, 3)
    assert setup.heard.changes == [(server.endpoint.name, "restarted")]


async def test_a_server_that_dies_and_comes_back(setup: Setup, engine: StartEngine) -> None:
    """Out while it is gone, in and known as restarted when it is back on the same port."""
    server = await engine(page(tokens=100))
    scraper = await setup.start(server)
    await setup.scraped(server)
    await server.stop()
    await setup.changed((server, "out"))
    assert not setup.pool.eligible[setup.slot(server)]
    server.page = page(tokens=0)
    await server.start()
    await setup.changed((server, "out"), (server, "in"), (server, "restarted"))
    assert setup.pool.eligible[setup.slot(server)]
    assert [target.misses for target in scraper._targets.values()] == [0]  # its next failure is tried again soon


# --- what the requests see


async def test_a_refused_request_takes_a_dead_endpoint_out_at_once(setup: Setup, engine: StartEngine) -> None:
    """At the defaults, within a fraction of a second, even if the next scrape is seconds away."""
    server = await engine(page())
    scraper = await setup.start(server, options=ScrapeOptions(budget=0.1))
    await setup.scraped(server, 1)
    await server.stop()
    began = time.monotonic()
    scraper.connection_failed(server.endpoint.hostport)
    await setup.changed((server, "out"))
    assert time.monotonic() - began < 0.9
    assert scraper.period == 10.0


async def test_a_dead_endpoint_is_out_without_a_request_too(setup: Setup, engine: StartEngine) -> None:
    """At the defaults, by its scrapes alone."""
    server = await engine(page())
    await setup.start(server, options=ScrapeOptions())
    await setup.scraped(server)
    await server.stop()
    began = time.monotonic()
    await setup.changed((server, "out"))
    assert time.monotonic() - began < 0.9


async def test_three_refused_requests_in_a_row(setup: Setup, engine: StartEngine) -> None:
    """Refused requests count like failed scrapes; a scrape that works clears them."""
    server = await engine(page())
    scraper = await setup.start(server, options=ScrapeOptions(budget=0.01))
    await setup.scraped(server)
    for _ in range(3):
        scraper.connection_failed(server.endpoint.hostport)
    assert not setup.pool.eligible[setup.slot(server)]
    await setup.changed((server, "out"), (server, "in"))
    scraper.connection_failed("127.0.0.1:1")
    scraper.connection_worked("127.0.0.1:1")


async def test_a_request_that_got_through(setup: Setup, refusing: Endpoint) -> None:
    """It has an unreachable endpoint looked at before its next try is due."""
    scraper = await setup.start(refusing, options=replace(QUICK, interval=0.001, retry_cap=1000.0))
    scraper._options = replace(scraper._options, interval=1000.0)
    await setup.scraped(refusing)
    for _ in range(2):
        scraper.connection_failed(refusing.hostport)
        await setup.scraped(refusing)
    assert setup.heard.changes == [("refusing", "out")]
    tried = len(setup.heard.scrapes)
    scraper.connection_worked(refusing.hostport)
    await setup.heard.until(lambda: len(setup.heard.scrapes) == tried + 1)


async def test_a_serving_port_that_refuses_beside_metrics_that_work(
    setup: Setup, engine: StartEngine, closed_port: int
) -> None:
    """Where metrics have a port of their own, the refused port is looked at too before the endpoint counts as well."""
    server = await engine(page())
    endpoint = Endpoint("sidecar", "127.0.0.1", closed_port, metrics_port=server.port)
    scraper = await setup.start(endpoint)
    await setup.scraped(endpoint)
    scraper.connection_failed(endpoint.hostport)
    await setup.changed((endpoint, "out"))
    assert not setup.pool.eligible[setup.slot(endpoint)]


async def test_a_serving_port_that_works_again(setup: Setup, engine: StartEngine) -> None:
    """Once the serving port has taken a connection, the metrics alone count again."""
    server = await engine(page())
    connections: list[asyncio.StreamWriter] = []

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.close()

    serving = await asyncio.start_server(take, "127.0.0.1", 0)
    async with serving:
        endpoint = Endpoint("sidecar", "127.0.0.1", serving.sockets[0].getsockname()[1], metrics_port=server.port)
        scraper = await setup.start(endpoint)
        await setup.scraped(endpoint)
        for _ in range(3):
            scraper.connection_failed(endpoint.hostport)
        await setup.changed((endpoint, "out"), (endpoint, "in"))
        looked = len(connections)
        await setup.scraped(endpoint, 5)
        assert 1 <= looked == len(connections)


async def test_a_503_asks_for_a_scrape_and_is_no_failure(setup: Setup, engine: StartEngine) -> None:
    """However many there are, only scrapes judge."""
    server = await engine(page())
    scraper = await setup.start(server, options=ScrapeOptions(budget=0.01))
    await setup.scraped(server)
    for _ in range(10):
        scraper.suspected(server.endpoint.hostport)
    assert setup.pool.eligible[setup.slot(server)]
    assert await setup.scraped(server) is None
    scraper.suspected("127.0.0.1:1")
    assert setup.heard.changes == []


# --- the schedule


async def test_never_two_at_a_time(setup: Setup, engine: StartEngine) -> None:
    """However often a scrape is asked for while one runs, it is one more, and after it."""
    server = await engine(page())
    server.gate = asyncio.Event()
    scraper = await setup.start(server, options=ScrapeOptions(budget=0.01, failures=10_000))
    await server.asked.wait()
    for _ in range(100):
        scraper.connection_failed(server.endpoint.hostport)
    server.gate.set()
    await setup.scraped(server, 2)
    assert server.busiest == 1
    assert len(server.requests) == 2


@pytest.mark.parametrize(("count", "period"), [(1, 0.05), (10, 0.05), (100, 0.5), (1000, 5.0)])
async def test_period(setup: Setup, closed_port: int, count: int, period: float) -> None:
    """50 ms as long as the pool costs no more than 200 scrapes a second, and stretched beyond; 1,000 are tried soon."""
    endpoints = [Endpoint(f"e{number}", "127.0.0.1", closed_port) for number in range(count)]
    scraper = await setup.start(*endpoints, options=ScrapeOptions())
    assert scraper.period == period
    assert await scraper.wait_first(30)
    assert len({name for name, _, _ in setup.heard.scrapes}) == count


async def test_pauses(setup: Setup) -> None:
    """The pause after a failure doubles up to the cap, give or take a tenth."""
    scraper = await setup.start(Endpoint("a", "127.0.0.1", 1), options=ScrapeOptions())
    (target,) = scraper._targets.values()
    expected = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    pauses = []
    for misses in range(1, 10):
        target.misses = misses
        pauses.append([scraper._until_retry(target) for _ in range(100)])
    for base, drawn in zip(expected, pauses, strict=True):
        assert base * 0.9 <= min(drawn) < base < max(drawn) <= base * 1.1
    target.misses = 10**6
    assert scraper._until_retry(target) <= 5.5


async def test_the_next_scrape_is_due_a_period_after_the_last_began(setup: Setup) -> None:
    """Give or take a tenth; after a slow one there is still a pause; the second one comes at any time."""
    scraper = await setup.start(Endpoint("a", "127.0.0.1", 1), options=ScrapeOptions(interval=1.0))
    (target,) = scraper._targets.values()
    second = [scraper._until_next(target, 0.0) for _ in range(200)]
    target.tried = True
    later = [scraper._until_next(target, 0.3) for _ in range(200)]
    assert 0.25 <= min(second) < 0.3
    assert 0.9 < max(second) <= 1.0
    assert 0.6 <= min(later) < 0.65
    assert 0.75 < max(later) <= 0.8
    assert scraper._until_next(target, 5.0) == 0.25


# --- who is in the pool


async def test_endpoints_come_and_go(setup: Setup, engine: StartEngine) -> None:
    """A new endpoint is scraped, eligible meanwhile; one that left is not scraped any more."""
    first, second = await engine(page(waiting=1)), await engine(page(waiting=2))
    await setup.start(first)
    await setup.scraped(first)
    setup.pool.add(second.endpoint)
    assert setup.pool.eligible[setup.slot(second)]
    await setup.scraped(second)
    setup.pool.remove(first.endpoint.id)
    await setup.scraped(second)
    asked = len(first.requests)
    await setup.scraped(second, 10)
    assert len(first.requests) == asked
    assert list(setup.candidates[WAITING]) == [2]


async def test_an_old_scrape_never_reaches_a_reused_slot(setup: Setup, engine: StartEngine, refusing: Endpoint) -> None:
    """A scrape that is under way as its endpoint leaves leaves no trace; the slot's next one starts from nothing."""
    old = await engine(page(waiting=77))
    old.gate = asyncio.Event()
    await setup.start(old)
    await old.asked.wait()
    slot = setup.slot(old)
    setup.pool.remove(old.endpoint.id)
    setup.pool.add(refusing)
    assert setup.slot(refusing) == slot
    old.gate.set()
    await setup.scraped(refusing, 2)
    assert str(setup.pool.column(WAITING)[slot]) == "nan"
    assert str(setup.pool.updated[slot]) == "nan"
    assert setup.heard.scrapes_of(old.endpoint.name) == []


async def test_an_answer_in_the_instant_of_a_change(setup: Setup, engine: StartEngine, refusing: Endpoint) -> None:
    """Even if the scraper hasn't been told yet, the slot's generation says that the answer is another's."""
    old = await engine(page(waiting=77))

    class Swapping(Reader):
        """The endpoint is replaced between the last byte of its page and what comes of it."""

        def read(self, page: bytes, labels: Mapping[str, str]) -> Report:
            setup.pool.remove(old.endpoint.id)
            setup.pool.add(refusing)
            return super().read(page, labels)

    await setup.start(old, reader=Swapping())
    slot = setup.slot(old)
    await setup.scraped(refusing)
    assert setup.slot(refusing) == slot
    assert str(setup.pool.column(WAITING)[slot]) == "nan"
    assert setup.heard.scrapes_of(old.endpoint.name) == []


async def test_the_health_of_a_reused_slot(setup: Setup, engine: StartEngine, refusing: Endpoint) -> None:
    """An endpoint in the slot of one that was out is eligible, and the old one's failures are not its own."""
    await setup.start(refusing, options=replace(QUICK, interval=0.001))
    await setup.changed((refusing, "out"))
    slot = setup.slot(refusing)
    server = await engine(page())
    setup.pool.remove(refusing.id)
    setup.pool.add(server.endpoint)
    assert setup.slot(server) == slot
    assert setup.scraper is not None
    setup.scraper.connection_failed(server.endpoint.hostport)
    assert setup.pool.eligible[slot]
    assert await setup.scraped(server) is None


async def test_labels_that_change(setup: Setup, engine: StartEngine) -> None:
    """An endpoint whose labels change keeps its slot, and its page is read as the new labels say."""
    server = await engine(page() + b"sglang:num_queue_reqs 42\n")
    await setup.start(server)
    await setup.scraped(server)
    setup.pool.add(replace(server.endpoint, labels={"llm-d.ai/engine-type": "sglang"}))
    await setup.scraped(server, 2)
    assert setup.candidates[WAITING][0] == 42


async def test_an_endpoint_that_is_renamed(setup: Setup, engine: StartEngine) -> None:
    """It goes on in its slot under the new name."""
    server = await engine(page())
    await setup.start(server)
    await setup.scraped(server)
    renamed = replace(server.endpoint, name="renamed")
    setup.pool.rename(server.endpoint.id, renamed)
    assert await setup.scraped(renamed, 2) is None
    assert setup.candidates.fresh.all()


# --- start and stop


async def test_wait_first_gives_up(setup: Setup, engine: StartEngine) -> None:
    """It waits so long and no longer, and for those that came in the meantime too."""
    server = await engine(page())
    scraper = await setup.start(server)
    assert await scraper.wait_first(10)
    stuck = await engine(page())
    stuck.gate = asyncio.Event()
    setup.pool.add(stuck.endpoint)
    assert not await scraper.wait_first(0.01)
    stuck.gate.set()
    assert await scraper.wait_first(10)


async def test_wait_first_of_nobody(setup: Setup) -> None:
    """An empty pool has been tried."""
    scraper = await setup.start()
    assert await scraper.wait_first(0)


async def test_stop_ends_everything(setup: Setup, engine: StartEngine) -> None:
    """No task, no timer and no connection is left; nothing is written afterwards."""
    server, stuck = await engine(page()), await engine(page())
    stuck.gate = asyncio.Event()
    scraper = await setup.start(server, stuck, options=replace(QUICK, timeout=1000.0))
    await setup.scraped(server)
    await stuck.asked.wait()
    before = asyncio.all_tasks()
    scrapes = [task for task in before if "Scraper" in repr(task.get_coro())]
    assert scrapes
    async with asyncio.timeout(10):
        await scraper.stop()
    assert all(task.done() for task in scrapes)
    asked = len(server.requests)
    setup.pool.add(Endpoint("late", "127.0.0.1", server.port))
    scraper.connection_failed(server.endpoint.hostport)
    stuck.gate.set()
    other = Setup(setup.heard)
    await other.start(stuck)
    await other.scraped(stuck, 10)
    assert other.scraper is not None
    await other.scraper.stop()
    assert len(server.requests) == asked


async def test_a_callback_that_raises_ends_no_schedule(setup: Setup, engine: StartEngine) -> None:
    """The endpoint is scraped on."""
    server = await engine(page())
    await setup.start(server)
    await setup.scraped(server)
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    setup.heard.fault = KeyError("broken")
    await setup.scraped(server, 3)
    setup.heard.fault = None
    assert await setup.scraped(server, 2) is None
    assert setup.candidates.fresh.all()


# --- https


@pytest.fixture
def tls(tmp_path: Any) -> tuple[ssl.SSLContext, Any]:
    """A server's context with a certificate for 127.0.0.1 that nobody has signed, and the certificate's file."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "tls.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


@pytest.mark.parametrize(
    ("trust", "problem"),
    [("anybody", None), ("the right one", None), ("the system's", "no TLS connection")],
)
async def test_https(setup: Setup, engine: StartEngine, tls: Any, trust: str, problem: str | None) -> None:
    """Any certificate by default, or a checked one."""
    context, file = tls
    server = await engine(page(), tls=context)
    options = replace(QUICK, scheme="https")
    if trust != "anybody":
        options = replace(options, insecure=False, ca=file if trust == "the right one" else None)
    await setup.start(server, options=options)
    error = await setup.scraped(server)
    assert error is None if problem is None else problem in str(error)
    await setup.scraped(server, 3)
    assert setup.pool.eligible[setup.slot(server)]


async def test_https_with_a_certificate_of_ours(setup: Setup, engine: StartEngine, tls: Any) -> None:
    """An engine that asks for a certificate gets it."""
    context, file = tls
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(file)
    server = await engine(page(), tls=context)
    await setup.start(server, options=replace(QUICK, scheme="https", certificate=file))
    assert await setup.scraped(server) is None


async def test_certificates_that_cant_be_loaded(setup: Setup, tmp_path: Any) -> None:
    """The start fails and says so."""
    with pytest.raises(ConfigError, match=r"can't be loaded: .*No such file"):
        await setup.start(options=replace(QUICK, scheme="https", ca=tmp_path / "absent.pem"))
