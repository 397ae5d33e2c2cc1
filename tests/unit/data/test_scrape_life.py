"""Who is scraped and when, what requests report, start and stop."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from epp.data.client import ScrapeOptions
from epp.data.report import Reader, Report
from epp.errors import ConfigError
from epp.keys import (
    WAITING,
)
from epp.pool import Endpoint

from .conftest import QUICK, Setup, StartEngine, page

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
    await setup.heard.until(lambda: len({name for name, _, _ in setup.heard.scrapes}) == count, within=30)


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


# --- another way of scraping


class Other(Reader):
    """Says 7 of whatever it reads."""

    def read(self, page: bytes, labels: Mapping[str, str]) -> Report:
        assert page == b"other"
        return Report("mine", {WAITING: 7.0}, {"started": 1.0})


async def test_another_page(setup: Setup, engine: StartEngine) -> None:
    """Other pages, other ports and other readers count from the next scrape on; the connections of old ones go."""
    server, other = await engine(page(waiting=1)), await engine(b"other")
    scraper = await setup.start(server)
    await setup.scraped(server)
    assert list(setup.candidates[WAITING]) == [1]
    scraper.follow(replace(QUICK, port=other.port, path="/stats"), Other())
    asked = len(server.requests)
    await setup.heard.until(lambda: list(setup.candidates[WAITING]) == [7])
    assert other.requests[0].path == "/stats"
    assert len(server.requests) == asked
    assert setup.heard.changes == []
    await asyncio.sleep(0)
    assert scraper._closing == set()


async def test_another_page_while_one_is_fetched(setup: Setup, engine: StartEngine) -> None:
    """What the old way was about to say is left out, and the new way's turn comes at once."""
    server, other = await engine(page(waiting=1)), await engine(b"other")
    server.gate = asyncio.Event()
    scraper = await setup.start(server, options=replace(QUICK, budget=0.01))
    await server.asked.wait()
    scraper.follow(replace(QUICK, budget=0.01, port=other.port), Other())
    server.gate.set()
    await setup.scraped(server)
    assert list(setup.candidates[WAITING]) == [7]
    assert len(setup.heard.scrapes) == 1


async def test_a_way_that_cannot_be(setup: Setup, engine: StartEngine, tmp_path: Path) -> None:
    """All stays as it was; before the start and after the end there is nothing to change."""
    server = await engine(page(waiting=1))
    scraper = await setup.start(server)
    with pytest.raises(ConfigError, match="certificates"):
        scraper.follow(replace(QUICK, scheme="https", ca=tmp_path / "none"), Other())
    await setup.scraped(server, 2)
    assert list(setup.candidates[WAITING]) == [1]
    await scraper.stop()
    scraper.follow(QUICK, Other())
    assert scraper.period == QUICK.interval


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
