"""Pages that are fetched beside the metrics: real servers, and columns that are known as long as their page is."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from epp.data.polls import Polls
from epp.errors import ConfigError
from epp.keys import GPU_UTILIZATION, WAITING, Key, pool_key, request_key
from epp.pool import Candidates, Endpoint, Pool
from epp.sources import Page, PageReader, Poll

from .conftest import Engine, StartEngine

OTHER = pool_key("other", missing=math.nan, source="metrics", producer="second")


def number(key: Key) -> Callable[[Endpoint, bytes], Mapping[Key, float]]:
    """Reads the page as a number."""
    return lambda _, page: {key: float(page)} if page != b"none" else {}


class Bench:
    """Polls over a pool, and an ear for what they tell."""

    def __init__(self) -> None:
        self.pool, self.faults = Pool(2), list[tuple[str, str | None, str]]()
        self.polls = Polls(self.pool, self._failed)
        self._told = asyncio.Event()

    def _failed(self, poll: Poll, reader: PageReader | None, endpoint: Endpoint, reason: str) -> None:
        self.faults.append((poll.name, reader.name if reader else None, endpoint.name))
        self._told.set()

    def follow(self, *readers: Any, name: str = "gpus", **page: Any) -> None:
        named = tuple(PageReader(f"reader-{n}", "test", read) for n, read in enumerate(readers))
        self.polls.follow([Poll(name, "test", Page(**{"interval": 0.01} | page), named)])

    def value(self, key: Key, slot: int = 0) -> float:
        return float(self.pool.column(key)[slot])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while True:
                if condition():
                    return
                await asyncio.sleep(0.005)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.polls.stop()


def at(engine: Engine, name: str = "a", **more: Any) -> Endpoint:
    return Endpoint(name, "127.0.0.1", engine.port, **more)


async def test_columns_of_a_page(bench: Bench, engine: StartEngine) -> None:
    """Every endpoint has its own; what the engines' metrics say, and how fresh they are, is another thing."""
    one, two = await engine(b"0.25"), await engine(b"0.5")
    for name, server in (("a", one), ("b", two)):
        bench.pool.add(at(server, name))
    bench.follow(number(GPU_UTILIZATION), path="/gpu")
    await bench.until(lambda: bench.value(GPU_UTILIZATION, 1) == 0.5 and bench.value(GPU_UTILIZATION) == 0.25)
    assert {request.path for request in one.requests} == {"/gpu"}
    c = Candidates(bench.pool, bench.pool.all_slots(), 0.0)
    assert (c[GPU_UTILIZATION].tolist(), c.fresh.any()) == ([0.25, 0.5], False)
    bench.pool.write(0, {WAITING: 3.0}, now=0.0, fresh_until=1.0)
    assert bench.value(GPU_UTILIZATION) == 0.25
    assert [c.scraped(key) for key in (GPU_UTILIZATION, WAITING)] == [False, True]


async def test_where_the_page_is(bench: Bench, engine: StartEngine) -> None:
    """At the page's own port, else at the endpoint's metrics port, else at its port; and at its metrics' address."""
    pages = [await engine(text) for text in (b"1", b"2", b"3")]
    serving, metrics, own = pages
    bench.pool.add(at(serving))
    bench.pool.add(at(serving, "b", metrics_port=metrics.port))
    bench.pool.add(Endpoint("c", "127.9.9.9", serving.port, metrics_address="localhost", metrics_port=metrics.port))
    bench.follow(number(OTHER))
    await bench.until(lambda: [bench.value(OTHER, slot) for slot in range(3)] == [1, 2, 2])
    bench.follow(number(OTHER), port=own.port)
    await bench.until(lambda: [bench.value(OTHER, slot) for slot in range(2)] == [3, 3])


async def test_at_the_node(bench: Bench, engine: StartEngine) -> None:
    """The node's address is asked, or the endpoint's where no node is known."""
    server = await engine(b"1")
    bench.pool.add(Endpoint("a", "127.9.9.9", 8000, node="n", node_address="127.0.0.1"))
    bench.pool.add(at(server, "b"))
    bench.pool.add(Endpoint("c", "127.0.0.1", 8000, node="n", node_address="127.9.9.9"))
    bench.follow(number(OTHER), port=server.port, at_node=True)
    await bench.until(lambda: [bench.value(OTHER, slot) for slot in range(2)] == [1, 1])
    await bench.until(lambda: ("gpus", None, "c") in bench.faults)
    assert math.isnan(bench.value(OTHER, 2))


async def test_what_is_not_known_any_more(bench: Bench, engine: StartEngine) -> None:
    """A value that the page has no more, a page that can't be had, a reader that fails: all is told and known again."""
    server = await engine(b"1")
    bench.pool.add(at(server))
    bench.follow(number(OTHER), number(GPU_UTILIZATION))
    await bench.until(lambda: bench.value(OTHER) == bench.value(GPU_UTILIZATION) == 1)
    server.page = b"none"
    await bench.until(lambda: math.isnan(bench.value(OTHER)) and math.isnan(bench.value(GPU_UTILIZATION)))
    assert bench.faults == []
    server.page, server.status = b"2", 500
    await bench.until(lambda: ("gpus", None, "a") in bench.faults)
    server.status = 200
    await bench.until(lambda: bench.value(OTHER) == 2)
    server.page = b"nonsense"
    await bench.until(lambda: {("gpus", f"reader-{n}", "a") for n in range(2)} <= set(bench.faults))
    assert math.isnan(bench.value(OTHER))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        pytest.param({OTHER: math.inf}, math.nan, id="infinite"),
        pytest.param({OTHER: np.float64(2)}, 2.0, id="numpy's"),
        pytest.param({OTHER: "3"}, 3.0, id="a text"),
    ],
)
async def test_numbers(bench: Bench, engine: StartEngine, columns: Any, expected: float) -> None:
    """What is no number isn't known."""
    bench.pool.add(at(await engine(b"x")))
    seen: list[bytes] = []
    bench.follow(lambda _, page: seen.append(page) or columns)
    await bench.until(lambda: len(seen) > 1)
    assert bench.value(OTHER) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "columns",
    [{OTHER: None}, {"other": 1.0}, {request_key("x", "p"): 1.0}, 5],
    ids=["no number", "no key", "a request's key", "no mapping"],
)
async def test_what_is_no_columns(bench: Bench, engine: StartEngine, columns: Any) -> None:
    bench.pool.add(at(await engine(b"x")))
    bench.follow(lambda *_: columns)
    await bench.until(lambda: bench.faults != [])
    assert bench.faults[0] == ("gpus", "reader-0", "a")


async def test_one_that_hangs_delays_nobody(bench: Bench, engine: StartEngine) -> None:
    stuck, works = await engine(b"1"), await engine(b"1")
    stuck.gate = asyncio.Event()
    bench.pool.add(at(stuck, "stuck"))
    bench.pool.add(at(works, "works"))
    bench.follow(number(OTHER))
    await bench.until(lambda: len(works.requests) > 5)
    assert stuck.busiest == 1


async def test_a_change_of_pages(bench: Bench, engine: StartEngine) -> None:
    """The next configuration's are fetched at once, and what nobody fetches any more isn't known; one that is stays."""
    server = await engine(b"1")
    bench.pool.add(at(server))
    bench.follow(number(OTHER))
    await bench.until(lambda: bench.value(OTHER) == 1)
    bench.follow(number(OTHER), path="/next")
    await bench.until(lambda: any(request.path == "/next" for request in server.requests))
    assert bench.value(OTHER) == 1
    bench.follow(number(GPU_UTILIZATION), name="others")
    await bench.until(lambda: math.isnan(bench.value(OTHER)) and bench.value(GPU_UTILIZATION) == 1)
    assert repr(bench.polls) == "<Polls: others>"
    await bench.polls.stop()
    assert repr(bench.polls) == "<Polls: none>"
    assert not [task for task in asyncio.all_tasks() if "Polls" in repr(task)]


async def test_certificates_that_are_not_there(bench: Bench, engine: StartEngine, tmp_path: Any) -> None:
    """All stays as it was."""
    server = await engine(b"1")
    bench.pool.add(at(server))
    bench.follow(number(OTHER))
    with pytest.raises(ConfigError, match="can't be loaded"):
        bench.follow(number(OTHER), scheme="https", ca=tmp_path / "missing.pem")
    await bench.until(lambda: bench.value(OTHER) == 1)


async def test_endpoints_come_and_go(bench: Bench, engine: StartEngine) -> None:
    """Newcomers are asked; a slot that is reused doesn't get what was asked of the one before."""
    first, second = await engine(b"1"), await engine(b"2")
    first.gate = asyncio.Event()
    bench.pool.add(at(first, "first"))
    bench.follow(number(OTHER), interval=0.005)
    await first.asked.wait()
    bench.pool.remove("default/first")
    bench.pool.add(at(second, "second"))
    first.gate.set()
    await bench.until(lambda: bench.value(OTHER) == 2)
