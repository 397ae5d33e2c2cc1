"""However a stream ends, what was charged is given back once, and the observers hear of it once."""

from typing import Any

import pytest

from epp.extproc.events import BodyMode
from epp.pool import Endpoint
from tests.stream.conftest import Start
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import (
    BODY,
    CHAT,
    destination,
    kind,
    request_body,
    request_headers,
    response_body,
    response_headers,
    response_trailers,
)
from tests.stream.picker import Picker, config, until

FULL, BUFFERED, NONE = BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED, BodyMode.NONE
TOKENS = 5.75
"""Of BODY's prompt: a quarter of its 23 bytes, which are the role, the text and what keeps them apart."""

# what Envoy has sent so far, how many answers it has read, whether the request was routed
ROUTED = [request_headers(), request_body(BODY)]
STAGES: dict[str, tuple[list[Any], int, bool]] = {
    "before anything": ([], 0, False),
    "before the body": ([request_headers()], 0, False),
    "in the body": ([request_headers(), request_body(BODY[:20], end=False)], 0, False),
    "after the empty answer": ([request_headers(BUFFERED)], 1, False),
    "before the answer is read": (ROUTED, 0, True),
    "in the answer": (ROUTED, 1, True),
    "after the answer": (ROUTED, 2, True),
    "after a streamed body's answer": ([request_headers(BodyMode.STREAMED), request_body(BODY, end=False)], 2, True),
    "after the response's headers": ([*ROUTED, response_headers()], 3, True),
    "in the response": ([*ROUTED, response_headers(), response_body(b"a", end=False)], 4, True),
    "after the response": ([*ROUTED, response_headers(), response_body(b"a"), response_trailers()], 5, True),
}


@pytest.mark.parametrize(("sent", "read", "routed"), STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_stream_may_end_anywhere(start: Start, sent: list[Any], read: int, routed: bool, how: str) -> None:
    """Envoy breaks it off or closes it: nothing stays charged, and `done` comes once if the request was routed."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.send(*sent)
        for _ in range(read):
            await stream.receive()
        if read or routed:
            await until(lambda: bool(picker.inflight()) == routed, "it is charged if it is routed")
        else:
            await until(picker.streams, "the stream is open")
        if how == "cancelled":
            stream.cancel()
        else:
            await stream.rest()
    await picker.settled()
    assert [entry[0] for entry in picker.heard() if entry[0] in {"picked", "done"}] == ["picked", "done"] * routed
    lines = [line["endpoint"] is not None for line in picker.log()]
    assert lines == [routed] if read or routed else lines in ([], [False])  # it may have gone before it was noticed


@pytest.mark.parametrize(
    ("messages", "cause"),
    [
        pytest.param([], None, id="nothing seen"),
        pytest.param([response_headers(end=True)], "done", id="headers alone"),
        pytest.param([response_headers(), response_body(b"a", end=False)], "cut", id="cut off"),
        pytest.param([response_headers(), response_body(b"a")], "done", id="whole"),
        pytest.param([response_headers(), response_trailers()], "done", id="trailers alone"),
    ],
)
async def test_how_a_response_ended(start: Start, messages: list[Any], cause: str | None) -> None:
    """Envoy closes in the same way whatever happened; what is seen of the body tells."""
    picker = await start()
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        await stream.send(*messages)
        assert len(await stream.rest()) == len(messages)
    await picker.settled()
    assert picker.log()[0]["ending"] == cause
    assert picker.decisions.find("r-1")["outcome"]["ending"] == cause


@pytest.mark.parametrize(
    ("mode", "messages", "cause"),
    [
        pytest.param(FULL, [response_headers(), response_body(b"a")], "done", id="whole"),
        pytest.param(NONE, [response_headers()], None, id="nothing shows the end"),
    ],
)
async def test_a_stream_that_is_broken_off_after_the_answer(
    start: Start, mode: BodyMode, messages: list[Any], cause: str | None
) -> None:
    """Envoy may cancel a stream whose client has had everything: that is no client that has gone."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.ask(request_headers(mode, end=True))
        for message in messages:
            await stream.ask(message)
        stream.cancel()
    await picker.settled()
    assert picker.log()[0]["ending"] == cause


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_client_that_leaves_before_its_request_is_whole(start: Start, how: str) -> None:
    """It is logged, with its id, whether Envoy resets the stream or closes it."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.ask(request_headers(BUFFERED))
        if how == "cancelled":
            stream.cancel()
        else:
            assert await stream.rest() == []
    await picker.settled()
    assert [(line["request_id"], line["ending"]) for line in picker.log()] == [("r-1", "client-gone")]


async def test_a_picker_that_stops(start: Start) -> None:
    """Streams that are still open when the server stops are settled like any other."""
    async with Picker() as picker, picker.stream() as stream:
        await send_request(stream, FULL)
        assert picker.inflight()
    await picker.settled()
    assert len(picker.heard("done")) == 1


async def test_streams_of_one_request_id_are_told_apart(start: Start) -> None:
    """Each gives back its own charge, whichever ends first."""
    picker = await start(endpoints=1)
    short, long = BODY, BODY.replace(b"picker?", b"picker? " * 9)
    async with picker.stream() as one, picker.stream() as two:
        await send_request(one, FULL, short)
        await send_request(two, FULL, long)
        both = picker.inflight()["10.0.0.1:8000"]
        one.cancel()
        await until(lambda: picker.streams() == 1, "the first has ended")
        assert picker.inflight() == {"10.0.0.1:8000": (1, both[1] - TOKENS)}
        await two.rest()
    await picker.settled()
    assert [line["request_id"] for line in picker.log()] == ["r-1", "r-1"]


async def test_the_first_byte_releases_the_tokens(start: Start) -> None:
    """The prompt has been computed then; the request stays in flight to its end."""
    picker = await start(endpoints=1)
    async with picker.stream() as stream:
        await send_request(stream, FULL)
        assert picker.inflight() == {"10.0.0.1:8000": (1, TOKENS)}
        await stream.ask(response_headers())
        await stream.ask(response_body(b"", end=False))
        assert picker.inflight() == {"10.0.0.1:8000": (1, TOKENS)}
        picker.clock.advance(0.25)
        await stream.ask(response_body(b"a", end=False))
        assert picker.inflight() == {"10.0.0.1:8000": (1, 0)}
        picker.clock.advance(0.25)
        await stream.ask(response_body(b"b", end=True))
        await stream.rest()
    await picker.settled()
    assert picker.heard("first_byte") == [("first_byte", "r-1", 1000.25)]
    assert [picker.log()[0][field] for field in ("ttft_ms", "duration_ms")] == [250, 500]


ONE, TWO = "10.0.0.1:8000", "10.0.0.2:8000"
REPORTS = {
    "metadata": {"served": TWO},
    "attribute": {"attributes": {"upstream.address": TWO}},
    "metadata wins": {"served": TWO, "attributes": {"upstream.address": ONE}},
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize("response_mode", [FULL, NONE], ids=lambda mode: mode.name.lower())
async def test_a_retry_moves_the_charge(start: Start, report: dict[str, Any], response_mode: BodyMode) -> None:
    """If another endpoint answered than the one picked, it is the one that is busy; the other has refused."""
    picker = await start(endpoints=2)
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL, subset=[ONE], response_mode=response_mode)
        assert destination(sent.route) == ONE
        await stream.ask(response_headers(**report))
        assert picker.inflight() == {TWO: (1, TOKENS)}
        await stream.rest()
    await picker.settled()
    assert (picker.failed, picker.suspected) == ([ONE], [])
    assert picker.heard("response_headers") == [("response_headers", "r-1", TWO)]
    assert picker.log()[0]["endpoint"] == TWO


STAYS = {
    "the one that was picked": ({"served": ONE}, [], []),
    "nobody says": ({}, [], []),
    "a stranger": ({"served": "192.0.2.1:1"}, [], []),
    "no connection": ({"status": 503, "attributes": {"response.flags": 0x20, "upstream.address": ONE}}, [ONE], []),
    "another flag": ({"attributes": {"response.flags": 0x40, "upstream.address": ONE}}, [], []),
    "503 of its own": ({"status": 503, "served": ONE}, [], [ONE]),
}


@pytest.mark.parametrize(("report", "failed", "suspected"), STAYS.values(), ids=STAYS)
async def test_the_charge_stays(start: Start, report: dict[str, Any], failed: list[str], suspected: list[str]) -> None:
    """Where nobody else of the pool has answered; a connection that failed is reported."""
    picker = await start(endpoints=2)
    async with picker.stream() as stream:
        await send_request(stream, FULL, subset=[ONE])
        await stream.ask(response_headers(**report))
        assert picker.inflight() == {ONE: (1, TOKENS)}
        await stream.rest()
    await picker.settled()
    assert (picker.failed, picker.suspected) == (failed, suspected)


async def test_a_retry_after_the_first_byte_moves_no_tokens(start: Start) -> None:
    """What was released is not charged again."""
    picker = await start(endpoints=2)
    async with picker.stream() as stream:
        await send_request(stream, FULL, subset=[ONE])
        await stream.ask(response_headers(served=TWO))
        await stream.ask(response_body(b"a", end=False))
        assert picker.inflight() == {TWO: (1, 0)}
        await stream.rest()


@pytest.mark.parametrize("reused", [False, True])
async def test_an_endpoint_that_leaves(start: Start, reused: bool) -> None:
    """Its requests end without a trace, also where another endpoint has its slot by then."""
    picker = await start(endpoints=1)
    async with picker.stream() as stream, picker.stream() as other:
        await send_request(stream, FULL)
        picker.pool.remove("default/pod-0")
        assert picker.inflight() == {}
        new = Endpoint("new", "10.0.0.9", 8000)
        if reused:
            picker.add(new)
            assert destination((await send_request(other, FULL)).route) == new.hostport
        await send_response(stream, FULL, b"answer")
        assert await stream.rest() == []
        await until(lambda: picker.streams() == 1, "the first has ended")
        assert picker.inflight() == ({new.hostport: (1, TOKENS)} if reused else {})
        await other.rest()
    await picker.settled()


async def test_the_token_of_a_session_is_set(start: Start) -> None:
    """The response tells the client where its session is, and the client's next request goes there."""
    picker = await start(config("session-affinity-scorer"), endpoints=5)
    async with picker.stream() as first:
        picked = destination((await send_request(first, FULL)).route)
        reply = await first.ask(response_headers())
        assert kind(reply) == "response_headers"
        (option,) = reply.response_headers.response.header_mutation.set_headers
        assert option.header.key == "x-session-token"
        await first.rest()
    for _ in range(5):
        async with picker.stream() as stream:
            headers = CHAT | {"x-session-token": option.header.raw_value.decode()}
            assert destination((await send_request(stream, FULL, headers=headers)).route) == picked
            await stream.rest()


async def test_a_body_does_not_stay_while_its_answer_takes_its_time(start: Start) -> None:
    """Streams may be open for an hour: neither the request's bytes nor its prompt are kept for so long."""
    import tracemalloc

    picker = await start()
    prompt = b"x" * 500_000
    body = b'{"model": "m", "messages": [{"role": "user", "content": "' + prompt + b'"}]}'
    async with picker.stream() as a, picker.stream() as b, picker.stream() as c, picker.stream() as d:
        tracemalloc.start()
        try:
            for stream, mode in ((a, FULL), (b, BUFFERED), (c, FULL), (d, BUFFERED)):
                await send_request(stream, mode, body)
            await until(lambda: tracemalloc.get_traced_memory()[0] < len(prompt), "the bodies are gone")
        finally:
            tracemalloc.stop()
        for stream in (a, b, c, d):
            await stream.rest()


async def test_a_refused_body_does_not_stay_with_its_error(start: Start) -> None:
    """The error is kept for the explanation; the frames that it came through, with the body in them, are not."""
    import tracemalloc

    picker = await start()
    tracemalloc.start()
    try:
        for _ in range(4):
            async with picker.stream() as stream:
                reply = await stream.ask(request_headers(), request_body(b"{" + b" " * 500_000))
                assert reply.immediate_response.status.code == 400
                assert await stream.rest() == []
        del reply
        await until(lambda: tracemalloc.get_traced_memory()[0] < 500_000, "the bodies are gone")
    finally:
        tracemalloc.stop()
    assert len(picker.decisions) == 4
