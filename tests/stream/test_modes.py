"""Every body mode over real gRPC: when the destination is told, and that bodies pass byte for byte."""

import pytest

from epp.extproc.events import BodyMode
from epp.extproc.session import ROUTING_HEADERS
from tests.stream.conftest import Start
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import (
    BODY,
    CHAT,
    DESTINATION,
    MODELS,
    MODES,
    destination,
    kind,
    piece,
    removed,
    request_body,
    request_headers,
    set_headers,
)

LONG = b'{"model": "m", "messages": [{"role": "user", "content": "' + bytes(range(97, 123)) * 16_000 + b'"}]}'
each_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
FULL = BodyMode.FULL_DUPLEX_STREAMED


@each_mode
@pytest.mark.parametrize("body", [BODY, LONG], ids=["short", "416 kB"])
@pytest.mark.parametrize("trailers", [False, True], ids=["", "trailers"])
async def test_a_request_is_routed_and_passes_unchanged(
    start: Start, mode: BodyMode, body: bytes, trailers: bool
) -> None:
    """The destination is one of the pool, header and metadata agree, and the body is the client's, byte for byte."""
    picker = await start()
    async with picker.stream() as stream:
        sent = await send_request(stream, mode, body, trailers=trailers)
        assert destination(sent.route) in {"10.0.0.1:8000", "10.0.0.2:8000"}
        assert sent.body == body
        assert list(picker.inflight()) == [destination(sent.route)]
        assert await stream.rest() == []


@each_mode
async def test_a_request_without_a_body_is_answered_at_its_headers(start: Start, mode: BodyMode) -> None:
    """GET /v1/models is scheduled and charged like any other."""
    picker = await start()
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(mode, MODELS, end=True))
        assert kind(reply) == "request_headers"
        assert picker.inflight() == {destination(reply): (1, 0)}
        assert await stream.rest() == []
    assert picker.heard("picked") == [("picked", "r-1", destination(reply), 2)]


@each_mode
@pytest.mark.parametrize(
    "line",
    [{":method": "GET", "upgrade": "websocket"}, {":method": "CONNECT"}],
    ids=["upgrade", "connect"],
)
async def test_an_upgrade_is_answered_at_its_headers(start: Start, mode: BodyMode, line: dict[str, str]) -> None:
    """Its request never ends, so nothing is waited for; what follows passes, and is given back where it must be."""
    picker = await start()
    async with picker.stream() as stream:
        reply = await stream.ask(request_headers(mode, {":path": "/v1/realtime"} | line))
        assert kind(reply) == "request_headers"
        assert list(picker.inflight()) == [destination(reply)]
        if mode in {FULL, BodyMode.GRPC}:
            assert piece(await stream.ask(request_body(b"a frame", end=False))) == (b"a frame", False)
        assert await stream.rest() == []


@each_mode
async def test_a_data_plane_that_announces_nothing(start: Start, mode: BodyMode) -> None:
    """Without protocol_config the body mode is that of --default-body-mode."""
    picker = await start(default=mode)
    async with picker.stream() as stream:
        sent = await send_request(stream, mode, announced=False)
        assert destination(sent.route)
        answer = await send_response(stream, mode, b"an answer")
        assert answer.body == (b"" if mode is BodyMode.NONE else b"an answer")
        assert await stream.rest() == []


@each_mode
async def test_what_is_announced_wins(start: Start, mode: BodyMode) -> None:
    """The default counts only where nothing is announced."""
    other = BodyMode.BUFFERED if mode in {FULL, BodyMode.GRPC} else FULL
    picker = await start(default=other)
    async with picker.stream() as stream:
        assert destination((await send_request(stream, mode)).route)
        assert await stream.rest() == []


@each_mode
@pytest.mark.parametrize("ending", ["headers", "body", "trailers"])
@pytest.mark.parametrize("body", [b"", LONG], ids=["empty", "416 kB"])
async def test_a_response_passes_unchanged(start: Start, mode: BodyMode, ending: str, body: bytes) -> None:
    """Wherever it ends, each message is answered in its mode, and its end is noticed."""
    picker = await start()
    async with picker.stream() as stream:
        await stream.ask(request_headers(BodyMode.BUFFERED, MODELS, end=True, response_mode=mode))
        answer = await send_response(stream, mode, body, ending=ending)
        assert answer.body == (b"" if ending == "headers" or mode is BodyMode.NONE else body)
        assert await stream.rest() == []
    await picker.settled()
    (done,) = picker.heard("done")
    seen = None if ending == "headers" or mode is BodyMode.NONE else len(body)
    assert (done[2].status, done[2].response_bytes) == (200, seen)
    assert done[2].cause == ("done" if mode is not BodyMode.NONE or ending == "headers" else None)


@each_mode
async def test_copies_of_routing_headers_are_removed(start: Start, mode: BodyMode) -> None:
    """What the client sent to steer us or the data plane is taken off the request; its other headers stay."""
    picker = await start()
    strays = {name: "" if "rewrite" in name else "192.0.2.1:1" for name in ROUTING_HEADERS}
    async with picker.stream() as stream:
        sent = await send_request(stream, mode, headers=CHAT | strays | {"x-mine": "1", "authorization": "Bearer k"})
        assert removed(sent.route) == ROUTING_HEADERS - {DESTINATION}
        assert destination(sent.route).startswith("10.0.0.")
        assert await stream.rest() == []


GIVEN = {"given": ("mine", None), "absent": (None, 36), "empty": ("", 36)}


@each_mode
@pytest.mark.parametrize(("given", "length"), GIVEN.values(), ids=GIVEN)
async def test_request_id(start: Start, mode: BodyMode, given: str | None, length: int | None) -> None:
    """The client's own is left alone; one is made up, set and logged if there is none."""
    picker = await start()
    headers = {name: value for name, value in CHAT.items() if name != "x-request-id"}
    async with picker.stream() as stream:
        own = {} if given is None else {"x-request-id": given}
        sent = await send_request(stream, mode, headers=headers | own)
        assert await stream.rest() == []
    await picker.settled()
    made = set_headers(sent.route).get("x-request-id")
    assert (made and len(made)) == length
    assert picker.log()[0]["request_id"] == (made or given)
    assert [entry[1] for entry in picker.heard("picked")] == [made or given]


async def test_scores_are_published_on_demand(start: Start) -> None:
    """--emit-endpoint-scores: the total of every candidate, beside the destination."""
    picker = await start(emit_scores=True)
    async with picker.stream() as stream:
        sent = await send_request(stream, FULL)
        assert await stream.rest() == []
    scores = dict(sent.route.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint-scores"].items())
    assert scores == {"10.0.0.1:8000": 1.0, "10.0.0.2:8000": 1.0}
    assert destination(sent.route) in scores
