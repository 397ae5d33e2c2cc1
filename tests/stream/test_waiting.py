"""Wherever a request waits, it is cut off in time, its client may leave, and nobody else waits for it."""

import asyncio
import time

import pytest

from epp.extproc.events import BodyMode
from epp.pool import Endpoint
from epp.schedule.fetch import FETCH_DEADLINE
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import BODY, destination, kind, request_body, request_headers, response_body
from tests.stream.picker import config, until

FULL = BodyMode.FULL_DUPLEX_STREAMED


def fetching(*fetchers: str) -> str:
    """The endpoint that a fetcher prefers, or else the less busy one."""
    reads = {"column_scorer": {"of": fetchers[0]}}
    return config("active-request-scorer", "column-scorer=4", others=[*fetchers, "recorder"], **reads)


async def test_a_fetcher_that_never_answers_is_cut_off(start: Start) -> None:
    """At the deadline the request goes on without it; it is counted, and its task is ended."""
    picker = await start(fetching("silent-fetcher"))
    silent = picker.plugin("silent-fetcher")
    async with picker.stream() as stream:
        started = time.monotonic()
        assert destination((await send_request(stream, FULL)).route)
        assert FETCH_DEADLINE <= time.monotonic() - started < FETCH_DEADLINE + 5
        await until(lambda: silent.cut_off == 1, "the fetcher's task has ended")
        await stream.rest()
    assert picker.faults()["DataProducer", "silent-fetcher", "raised"] == 1
    durations = picker.metrics.families["llm_d_epp_plugin_duration_seconds"]
    assert durations.buckets("DataProducer", "silent-fetcher", "silent-fetcher").sum >= FETCH_DEADLINE


async def test_fetchers_run_at_once(start: Start) -> None:
    """One that never answers doesn't lose what another has found."""
    picker = await start(fetching("gated-fetcher", "silent-fetcher"), endpoints=3)
    picker.plugin("gated-fetcher").gate.set()
    async with picker.stream() as stream:
        assert destination((await send_request(stream, FULL)).route) == "10.0.0.1:8000"
        await stream.rest()
    assert picker.faults() == {("DataProducer", "silent-fetcher", "raised"): 1}


@pytest.mark.parametrize("name", ["plain-fetcher", "cancelled-fetcher"])
async def test_a_fetcher_that_is_none(start: Start, name: str) -> None:
    """One that isn't a coroutine, or ends as if it were cancelled, is counted and left out."""
    picker = await start(fetching(name))
    async with picker.stream() as stream:
        assert destination((await send_request(stream, FULL)).route)
        await stream.rest()
    assert picker.faults()["DataProducer", name, "raised"] == 1


async def test_a_client_may_leave_while_fetchers_run(start: Start) -> None:
    """They are ended with it; nothing was charged, and nobody hears of it."""
    picker = await start(fetching("silent-fetcher"))
    silent = picker.plugin("silent-fetcher")
    async with picker.stream() as stream:
        await stream.send(request_headers(), request_body(BODY))
        await until(lambda: silent.started == 1, "the fetcher runs")
        stream.cancel()
        await until(lambda: silent.cut_off == 1, "the fetcher's task has ended")
    await picker.settled()
    assert picker.heard() == []
    assert picker.faults() == {}


async def test_who_has_left_meanwhile_is_not_picked(start: Start) -> None:
    """Who is alive is looked up anew after the wait; who has come meanwhile is a candidate of unknown value."""
    picker = await start(fetching("gated-fetcher"), endpoints=2)
    fetcher = picker.plugin("gated-fetcher")
    async with picker.stream() as stream:
        await stream.send(request_headers(), request_body(BODY))
        await until(lambda: fetcher.started == 1, "the fetcher runs")
        picker.pool.remove("default/pod-0")
        picker.add(Endpoint("new", "10.0.0.9", 8000))
        fetcher.gate.set()
        assert destination(await stream.receive()) == "10.0.0.2:8000"
        await stream.rest()
    signals = {c["endpoint"]: c["signals"] for c in picker.decisions.find("r-1")["candidates"]}
    assert signals["default/pod-1"]["gated-fetcher/column"]["value"] == 0.5
    assert signals["default/new"]["gated-fetcher/column"]["value"] is None


async def test_all_have_left_meanwhile(start: Start) -> None:
    """503, as if the pool had been empty from the start."""
    picker = await start(fetching("gated-fetcher"), endpoints=1)
    fetcher = picker.plugin("gated-fetcher")
    async with picker.stream() as stream:
        await stream.send(request_headers(), request_body(BODY))
        await until(lambda: fetcher.started == 1, "the fetcher runs")
        picker.pool.remove("default/pod-0")
        fetcher.gate.set()
        reply = await stream.receive()
        assert reply.immediate_response.status.code == 503


async def test_a_request_that_waits_holds_up_nobody(start: Start) -> None:
    """A stream whose body never comes to its end, and one whose fetchers run, leave others alone."""
    picker = await start()
    async with picker.stream() as slow, picker.stream() as quick:
        await slow.send(request_headers(), request_body(BODY[:9], end=False))
        assert destination((await send_request(quick, FULL)).route)
        assert await quick.rest() == []
        assert destination(await slow.ask(request_body(BODY[9:])))
        await slow.rest()


async def test_a_client_that_reads_nothing_may_leave(start: Start) -> None:
    """The picker waits to write until there is room; when the stream is broken off then, nothing stays charged."""
    picker = await start()
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        sent = [0]

        async def flood() -> None:
            while True:
                await stream.send(response_body(bytes(60_000), end=False))
                sent[0] += 1

        flooding = asyncio.create_task(flood())
        try:
            await until(Stalled(sent), "there is no more room")
            assert picker.inflight()
            async with picker.stream() as other:
                assert destination((await send_request(other, FULL)).route)
                await other.rest()
        finally:
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
        stream.cancel()
    await picker.settled()
    assert len(picker.heard("done")) == 2


class Stalled:
    """True once the count has not changed for 30 looks."""

    def __init__(self, count: list[int]) -> None:
        self._count, self._seen, self._looks = count, -1, 0

    def __call__(self) -> bool:
        self._looks = self._looks + 1 if self._count[0] == self._seen else 0
        self._seen = self._count[0]
        return self._looks > 30


async def test_a_message_after_the_end_of_fetching_is_answered_in_order(start: Start) -> None:
    """What Envoy sends while the request is being decided waits for its turn."""
    picker = await start(fetching("gated-fetcher"))
    fetcher = picker.plugin("gated-fetcher")
    async with picker.stream() as stream:
        await stream.send(request_headers(BodyMode.STREAMED), request_body(b"a"))
        await until(lambda: fetcher.started == 1, "the fetcher runs")
        fetcher.gate.set()
        assert destination(await stream.receive())
        assert kind(await stream.receive()) == "request_body"
        await stream.rest()
