"""What scrapes write into the pool, and what becomes of one that fails."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from epp.data.client import ScrapeOptions
from epp.data.report import Reader, Report
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
from epp.pool import Candidates, Endpoint

from .conftest import QUICK, Setup, StartEngine, page

# --- values


async def test_values_arrive(setup: Setup, engine: StartEngine) -> None:
    """What the page says is in the pool's columns and sets, and is fresh."""
    lora = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 9\n'
    server = await engine(page(waiting=3, lora=lora))
    await setup.start(server)
    await setup.scraped(server)
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
    await setup.start(server)
    await setup.scraped(server)
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
    await setup.start(a, b, options=replace(QUICK, port=one.port, path="/prometheus/metrics"))
    await setup.heard.until(lambda: {"a", "b"} <= {name for name, _, _ in setup.heard.scrapes})
    assert list(setup.candidates[WAITING]) == [1, 2]
    assert one.requests[0].path == "/prometheus/metrics"


async def test_ipv6(setup: Setup) -> None:
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
    await setup.start(good, bad, options=options)
    await setup.heard.until(lambda: setup.candidates.all_fresh)
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

    index = Index()
    setup.pool.watch(index)
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
