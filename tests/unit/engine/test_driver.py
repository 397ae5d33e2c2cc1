"""The driver under a clock of the test's: steps end when the model says, rounding doesn't add up, idling is free."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from epp.engine.driver import MAX_LATE, Driver, EngineStoppedError
from epp.engine.metrics import EngineMetrics
from epp.engine.model import Model, ModelConfig, Request
from epp.engine.profiles import StepCost

STEP = 0.0104
CONFIG = ModelConfig(StepCost(STEP, 0.0, 0.0, 0.0), 64, 4, 4, 64, 256)


class Time:
    """A clock that only sleeping moves: by whole milliseconds, as a timer does, and by what is added on top."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sleeps: list[float] = []
        self.late: dict[int, float] = {}

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += round(seconds, 3) + self.late.get(len(self.sleeps), 0.0)
        self.sleeps.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def time() -> Time:
    return Time()


@pytest.fixture
async def driver(time: Time) -> AsyncIterator[Driver]:
    driver = Driver(Model(CONFIG), EngineMetrics(256), None, time.clock, time.sleep)
    task = asyncio.create_task(driver.run())
    yield driver
    task.cancel()
    await asyncio.wait([task])


def request(name: str, output: int) -> Request:
    return Request(name, 8, output)


async def test_rounding_does_not_add_up(driver: Driver, time: Time) -> None:
    await driver.submit(request("a", 100)).all()
    assert time.now - 100.0 == pytest.approx(100 * STEP, abs=0.001)


@pytest.mark.parametrize(
    ("late", "extra"),
    [
        pytest.param(0.02, 0.0, id="a little: caught up with"),
        pytest.param(1.0, 1.0 - MAX_LATE, id="much: the rest of it is lost"),
    ],
)
async def test_a_late_wakeup(driver: Driver, time: Time, late: float, extra: float) -> None:
    time.late[3] = late
    await driver.submit(request("a", 100)).all()
    assert time.now - 100.0 == pytest.approx(100 * STEP + extra, abs=STEP)


async def test_an_idle_engine_does_not_step(driver: Driver, time: Time) -> None:
    await driver.submit(request("a", 2)).all()
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(time.sleeps) == 2


async def test_a_step_starts_when_the_request_comes_not_before(driver: Driver, time: Time) -> None:
    await driver.submit(request("a", 1)).all()
    time.now += 60.0
    stream = driver.submit(request("b", 1))
    await stream.all()
    (sequence,) = stream.sequences
    assert sequence.first_token - sequence.arrived == pytest.approx(STEP, abs=0.001)


async def test_tokens_come_step_by_step_and_times_are_counted(driver: Driver) -> None:
    stream = driver.submit(request("a", 3))
    pieces = []
    while not stream.done:
        pieces += await stream.more()
    assert pieces == [range(1), range(1, 2), range(2, 3)]
    metrics = driver.metrics
    assert metrics.time_to_first_token.total == pytest.approx(STEP, abs=0.001)
    assert metrics.inter_token_latency.total == pytest.approx(2 * STEP, abs=0.001)
    assert metrics.e2e_request_latency.total == pytest.approx(3 * STEP, abs=0.001)
    counted = (metrics.time_to_first_token, metrics.inter_token_latency, metrics.e2e_request_latency)
    assert [sum(histogram.counts) for histogram in counted] == [histogram.count for histogram in counted] == [1, 2, 1]


async def test_several_answers_are_read_as_one(driver: Driver) -> None:
    stream = driver.submit(request("a", 1), request("b", 3), answers=2)
    pieces = []
    while not stream.done:
        pieces.append(await stream.more())
    assert pieces == [[range(1), range(1)], [range(1, 1), range(1, 2)], [range(1, 1), range(2, 3)]]
    assert driver.metrics.request_params_n.total == 2
    assert driver.metrics.request_max_num_generation_tokens.total == 3


async def test_stop_tells_every_reader(driver: Driver) -> None:
    streams = [driver.submit(request(name, 200)) for name in "ab"]
    assert await streams[0].more()
    reads = [asyncio.create_task(stream.all()) for stream in streams]
    await asyncio.sleep(0)
    driver.stop()
    results = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(result, EngineStoppedError) for result in results)
    assert len(driver.model) == 0


async def test_abort_of_an_ended_request_is_nothing(driver: Driver) -> None:
    stream = driver.submit(request("a", 1))
    await stream.all()
    driver.abort(stream)
    assert driver.metrics.request_success["length"] == 1


async def test_an_aborted_request_leaves_no_trace_in_the_histograms(driver: Driver) -> None:
    """vLLM counts nothing for a client that has gone, but for the tokens that it got."""
    stream = driver.submit(request("a", 200))
    await stream.more()
    driver.abort(stream)
    await driver.drained()
    metrics = driver.metrics
    assert (metrics.generation_tokens, sum(metrics.request_success.values())) == (1, 0)
    assert metrics.e2e_request_latency.count == metrics.request_params_n.count == 0
