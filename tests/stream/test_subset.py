"""The data plane's subset hint: who may be picked, in every form in which it comes."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from epp.extproc.events import BodyMode
from epp.pool import Endpoint
from tests.stream.conftest import Start
from tests.stream.envoy import send_request
from tests.stream.messages import BODY, MODELS, destination, kind, request_body, request_headers, request_trailers

POOL = [
    Endpoint("a-0", "10.0.0.1", 8000),
    Endpoint("a-1", "10.0.0.1", 8001),
    Endpoint("b-0", "10.0.0.2", 8000),
    Endpoint("six-0", "fd00::1", 8000),
    Endpoint("six-1", "fd00::1", 8001),
]
A0, A1, B0, SIX0, SIX1 = (endpoint.hostport for endpoint in POOL)
EVERYBODY = {A0, A1, B0, SIX0, SIX1}
FULL, BUFFERED = BodyMode.FULL_DUPLEX_STREAMED, BodyMode.BUFFERED

HINTS: dict[str, tuple[Sequence[str] | str | None, set[str]]] = {
    "absent: everybody": (None, EVERYBODY),
    "one port of an address": ([A1], {A1}),
    "an address: all its ports": (["10.0.0.1"], {A0, A1}),
    "an address and a port of another": (["10.0.0.1", B0], {A0, A1, B0}),
    "IPv6 with a port": ([SIX1], {SIX1}),
    "IPv6 in brackets without a port": (["[fd00::1]"], {SIX0, SIX1}),
    "IPv6 without brackets": (["fd00::1"], {SIX0, SIX1}),
    "strangers among them": (["192.0.2.1:8000", B0, "10.0.0.9"], {B0}),
    "a port that nobody has among them": (["10.0.0.1:9999", B0], {B0}),
    "twice the same": ([B0, B0], {B0}),
    "one string": (f"{A1},{SIX0}", {A1, SIX0}),
    "one string with spaces": (f" {A1} , {SIX0} ", {A1, SIX0}),
    "one string with an address": ("10.0.0.1", {A0, A1}),
    "spaces in a list": ([f" {B0} "], {B0}),
}


@pytest.mark.parametrize("mode", [FULL, BUFFERED, BodyMode.NONE], ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize(("hint", "allowed"), HINTS.values(), ids=HINTS)
async def test_whoever_is_allowed_is_picked(
    start: Start, mode: BodyMode, hint: Sequence[str] | str | None, allowed: set[str]
) -> None:
    """As many requests as endpoints are allowed go to each of them once, since the least busy one is picked."""
    picker = await start(endpoints=POOL)
    seen = []
    async with AsyncExitStack() as stack:
        for _ in allowed:
            stream = await stack.enter_async_context(picker.stream())
            seen.append(destination((await send_request(stream, mode, subset=hint)).route))
    assert sorted(seen) == sorted(allowed)


NOBODY: dict[str, Sequence[str] | str] = {
    "empty list": [],
    "empty string": "",
    "only commas": " , ,",
    "strangers": ["192.0.2.1:8000"],
    "the wrong port": ["10.0.0.2:9999"],
}


@pytest.mark.parametrize("hint", NOBODY.values(), ids=NOBODY)
@pytest.mark.parametrize("end", [True, False], ids=["without a body", "with a body"])
async def test_nobody_is_allowed(start: Start, hint: Sequence[str] | str, end: bool) -> None:
    """503, for requests without a body too; the hint is never stretched."""
    picker = await start(endpoints=POOL)
    async with picker.stream() as stream:
        await stream.send(request_headers(FULL, MODELS, end=end, subset=hint))
        if not end:
            await stream.send(request_body(BODY))
        reply = await stream.receive()
        assert kind(reply) == "immediate_response"
        assert reply.immediate_response.status.code == 503
        assert b"the data plane allows" in reply.immediate_response.body


async def test_the_hint_of_the_last_message_counts(start: Start) -> None:
    """Nothing is decided before the request is whole: a hint that comes with the last piece is the one."""
    picker = await start(endpoints=POOL)
    for wanted in (*EVERYBODY, *EVERYBODY):
        async with picker.stream() as stream:
            await stream.send(request_headers(subset=[A0, A1]), request_body(BODY[:9], end=False))
            assert destination(await stream.ask(request_body(BODY[9:], subset=[wanted]))) == wanted
            await stream.rest()


async def test_a_hint_with_the_headers_holds_for_the_trailers(start: Start) -> None:
    """A later message without a hint doesn't lift it."""
    picker = await start(endpoints=POOL)
    for wanted in (*EVERYBODY, *EVERYBODY):
        async with picker.stream() as stream:
            await stream.send(request_headers(subset=[wanted]), request_body(BODY, end=False))
            assert destination(await stream.ask(request_trailers())) == wanted
            await stream.rest()


async def test_the_hint_can_be_ignored(start: Start) -> None:
    """--disable-endpoint-subset-filter."""
    picker = await start(endpoints=POOL[:1], use_subset=False)
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL, subset=[])
        assert destination(sent.route) == A0
        await stream.rest()


async def test_an_allowed_endpoint_that_cant_be_reached(start: Start) -> None:
    """Who is out of play is not picked because the data plane allows it."""
    picker = await start(endpoints=POOL)
    picker.pool.eligible[picker.pool.slots["default/b-0"]] = False
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(FULL, MODELS, end=True, subset=[B0]))
        assert reply.immediate_response.status.code == 503
