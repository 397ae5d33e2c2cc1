"""The session: every body mode as a table of what Envoy says and what it is answered."""

import pytest

from epp.errors import BadRequest, PayloadTooLarge, ServiceUnavailable
from epp.extproc.events import (
    Answer,
    Arrival,
    BodyMode,
    Continue,
    Immediate,
    Modes,
    Piece,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)
from epp.extproc.session import PATIENCE_BYTES, PIECE_BYTES, Phase, ProtocolError, Session

ANSWER = Answer("10.0.0.1:8000")
HEADERS = {":path": "/v1/chat/completions", ":method": "POST"}
DUPLEX, STREAMED, BUFFERED = BodyMode.FULL_DUPLEX_STREAMED, BodyMode.STREAMED, BodyMode.BUFFERED
PARTIAL, NONE, GRPC = BodyMode.BUFFERED_PARTIAL, BodyMode.NONE, BodyMode.GRPC


def start(mode, *, end=False, headers=HEADERS, subset=None, announced=True):
    return RequestHeaders(dict(headers), end, Modes(mode, mode) if announced else None, subset)


def play(events, *, default=DUPLEX, limit=1_000_000):
    """Feeds events, answers the request when it is whole; the replies per event, and the arrivals."""
    session = Session(Modes(default, default), limit)
    replies, arrivals = [], []
    for event in events:
        said = list(session.receive(event))
        if session.arrival is not None:
            arrivals.append(session.arrival)
            said += session.answer(ANSWER)
        replies.append(said)
    return session, replies, arrivals


HEADER_ROUTE = Route("request_headers", ANSWER, ())
BODY_ROUTE = Route("request_body", ANSWER, ())
CONTINUE = Continue("request_headers")

CASES = {
    "duplex: nothing before the request is whole, then headers and pieces": (
        [start(DUPLEX), RequestBody(b"ab", False), RequestBody(b"c", False), RequestBody(b"", True)],
        [[], [], [], [HEADER_ROUTE, Piece("request_body", b"abc", True)]],
        b"abc",
        Phase.ENDED,
    ),
    "duplex: an empty body still gets its end back": (
        [start(DUPLEX), RequestBody(b"", True)],
        [[], [HEADER_ROUTE, Piece("request_body", b"", True)]],
        b"",
        Phase.ENDED,
    ),
    "duplex: a request may end in trailers": (
        [start(DUPLEX), RequestBody(b"ab", False), RequestTrailers()],
        [[], [], [HEADER_ROUTE, Piece("request_body", b"ab", False), Continue("request_trailers")]],
        b"ab",
        Phase.ENDED,
    ),
    "duplex: trailers without a body": (
        [start(DUPLEX), RequestTrailers()],
        [[], [HEADER_ROUTE, Continue("request_trailers")]],
        b"",
        Phase.ENDED,
    ),
    "duplex is assumed where nothing is announced": (
        [start(NONE, announced=False), RequestBody(b"x", True)],
        [[], [HEADER_ROUTE, Piece("request_body", b"x", True)]],
        b"x",
        Phase.ENDED,
    ),
    "buffered: the headers are answered first, the destination comes with the body": (
        [start(BUFFERED), RequestBody(b"abc", True)],
        [[CONTINUE], [BODY_ROUTE]],
        b"abc",
        Phase.ENDED,
    ),
    "buffered: trailers follow the body": (
        [start(BUFFERED), RequestBody(b"abc", False), RequestTrailers()],
        [[CONTINUE], [BODY_ROUTE], [Continue("request_trailers")]],
        b"abc",
        Phase.ENDED,
    ),
    "buffered partial: a body that is cut off is routed as far as it is seen": (
        [start(PARTIAL), RequestBody(b"ab", False)],
        [[CONTINUE], [BODY_ROUTE]],
        b"ab",
        Phase.PASSING,
    ),
    "streamed: the destination comes with the headers, pieces pass": (
        [start(STREAMED), RequestBody(b"ab", False), RequestBody(b"c", True)],
        [[HEADER_ROUTE], [Continue("request_body")], [Continue("request_body")]],
        None,
        Phase.ENDED,
    ),
    "streamed: trailers pass": (
        [start(STREAMED), RequestBody(b"ab", False), RequestTrailers()],
        [[HEADER_ROUTE], [Continue("request_body")], [Continue("request_trailers")]],
        None,
        Phase.ENDED,
    ),
    "none: only the headers come": ([start(NONE)], [[HEADER_ROUTE]], None, Phase.PASSING),
    "grpc: each piece is a message and comes back as it was": (
        [start(GRPC), RequestBody(b"a", False, None, False, True), RequestBody(b"", True, None, True, False)],
        [
            [],
            [],
            [
                HEADER_ROUTE,
                Piece("request_body", b"a", False, False, True),
                Piece("request_body", b"", True, True, False),
            ],
        ],
        b"a",
        Phase.ENDED,
    ),
    "an upgrade is answered at its headers, what follows passes": (
        [
            start(DUPLEX, headers={":method": "GET", "upgrade": "websocket"}),
            RequestBody(b"frame", False),
            RequestBody(b"", True),
        ],
        [[HEADER_ROUTE], [Piece("request_body", b"frame", False)], [Piece("request_body", b"", True)]],
        None,
        Phase.ENDED,
    ),
}
CASES |= {
    f"{mode.name}: a request without a body is answered at its headers": (
        [start(mode, end=True)],
        [[HEADER_ROUTE]],
        b"",
        Phase.ENDED,
    )
    for mode in BodyMode
}


@pytest.mark.parametrize(("events", "expected", "body", "phase"), CASES.values(), ids=CASES.keys())
def test_request(events, expected, body, phase):
    """Each message gets the answer that Envoy waits for, and the request is handed over when it is whole."""
    session, replies, arrivals = play(events)
    assert replies == expected
    assert [arrival.body for arrival in arrivals] == [body]
    assert session.phase is phase


def test_partial_is_marked():
    """A body that may be cut off says so; one that is whole doesn't."""
    _, _, cut = play([start(PARTIAL), RequestBody(b"{", False)])
    _, _, whole = play([start(PARTIAL), RequestBody(b"{}", True)])
    assert (cut[0].partial, whole[0].partial) == (True, False)


def test_long_body_is_given_back_in_pieces():
    """No piece is longer than Envoy takes, together they are the body, and only the last ends it."""
    body = bytes(range(256)) * 1000
    _, replies, _ = play([start(DUPLEX), RequestBody(body[:100_000], False), RequestBody(body[100_000:], True)])
    pieces = replies[-1][1:]
    assert b"".join(piece.data for piece in pieces) == body
    assert all(len(piece.data) <= PIECE_BYTES for piece in pieces)
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize("mode", [DUPLEX, STREAMED, BUFFERED])
@pytest.mark.parametrize("ending", ["headers", "piece", "trailers"])
def test_response(mode, ending):
    """A response may end in its headers, in a piece or in trailers; its pieces pass in the mode in force."""
    session, _, _ = play([start(mode, end=True)])
    headers = session.receive(ResponseHeaders({":status": "200"}, ending == "headers"))
    assert headers == (Continue("response_headers"),)
    if ending != "headers":
        (piece,) = session.receive(ResponseBody(b"data", ending == "piece"))
        expected = Piece("response_body", b"data", ending == "piece") if mode is DUPLEX else Continue("response_body")
        assert piece == expected
    if ending == "trailers":
        assert not session.response_ended
        assert session.receive(ResponseTrailers()) == (Continue("response_trailers"),)
    assert session.response_ended


def test_client_copies_of_routing_headers_are_removed():
    """Only those that are there are named, and the destination is overwritten, not removed."""
    headers = HEADERS | {
        "x-gateway-destination-endpoint": "evil:1",
        "x-prefiller-host-port": "evil:2",
        "x-llm-d-inference-fairness-id": "me",
        "x-mine": "1",
    }
    _, replies, arrivals = play([start(DUPLEX, end=True, headers=headers)])
    assert replies[0][0].remove == ("x-prefiller-host-port", "x-llm-d-inference-fairness-id")
    assert arrivals[0].headers["x-llm-d-inference-fairness-id"] == "me"


SUBSETS = {
    "with the headers": ([start(DUPLEX, subset=["a"]), RequestBody(b"", True)], ["a"]),
    "with the last piece": ([start(DUPLEX), RequestBody(b"", True, ["b"])], ["b"]),
    "with the trailers": ([start(DUPLEX), RequestTrailers(["c"])], ["c"]),
    "empty is not absent": ([start(BUFFERED, subset=[]), RequestBody(b"", True)], []),
    "absent": ([start(BUFFERED), RequestBody(b"", True)], None),
}


@pytest.mark.parametrize(("events", "subset"), SUBSETS.values(), ids=SUBSETS.keys())
def test_subset_hint(events, subset):
    """The hint counts with whichever message it comes."""
    assert play(events)[2][0].subset == subset


LENGTHY = HEADERS | {"content-length": "11"}
ENDLESS = HEADERS | {"content-length": str(11 + PATIENCE_BYTES)}
MUCH = b"x" * (PATIENCE_BYTES + 5)
TOO_LARGE = {
    "duplex, by far, by its length": [start(DUPLEX, headers=ENDLESS)],
    "buffered, by far, by its length": [start(BUFFERED, headers=ENDLESS)],
    "streamed, by its length": [start(STREAMED, headers=LENGTHY)],
    "none, by its length": [start(NONE, headers=LENGTHY)],
    "duplex, by far, as it grows": [start(DUPLEX), RequestBody(b"123456", False), RequestBody(MUCH, False)],
    "duplex, a little, when it has come": [
        start(DUPLEX, headers=LENGTHY),
        RequestBody(b"123456", False),
        RequestBody(b"12345", True),
    ],
    "duplex, a little, at its trailers": [start(DUPLEX), RequestBody(b"12345678901", False), RequestTrailers()],
    "buffered, by what came": [start(BUFFERED, headers=LENGTHY), RequestBody(b"12345678901", True)],
    "streamed, as it grows": [start(STREAMED), RequestBody(b"123456", False), RequestBody(b"123456", False)],
}


@pytest.mark.parametrize("events", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_too_large(events):
    """One byte over the limit is refused, and the limit itself passes.

    A body that is a little too long is heard out where it is shown whole: many clients don't read while they send.
    """
    play([start(DUPLEX), RequestBody(b"1234567890", True)], limit=10)
    play(events[:-1], limit=10)
    with pytest.raises(PayloadTooLarge, match="10 bytes"):
        play(events, limit=10)


def test_refused_stream_ignores_what_was_under_way():
    """After our answer to the client the rest of the body says nothing any more."""
    session, _, _ = play([start(DUPLEX)])
    error = ServiceUnavailable("nobody")
    assert session.refuse(error, "id-1") == Immediate(error, "id-1")
    assert session.receive(RequestBody(b"more", True)) == ()
    assert session.receive(RequestTrailers()) == ()


ILLEGAL = {
    "a body before headers": [RequestBody(b"", True)],
    "headers twice": [start(DUPLEX), start(DUPLEX)],
    "a body after its end": [start(DUPLEX), RequestBody(b"", True), RequestBody(b"", True)],
    "trailers after the end": [start(DUPLEX, end=True), RequestTrailers()],
}


@pytest.mark.parametrize("events", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal_order(events):
    """A message that can't come is an error that names it and the phase."""
    with pytest.raises(ProtocolError, match="can't come in phase"):
        play(events)


def test_answer_needs_a_request():
    """Answering before the request is whole is a fault of the caller's."""
    session = Session(Modes(DUPLEX, DUPLEX), 10)
    with pytest.raises(ProtocolError, match="no request"):
        list(session.answer(ANSWER))


def test_buffered_trailers_without_body():
    """In BUFFERED mode only a body's reply can carry the destination."""
    with pytest.raises(BadRequest, match="no body"):
        play([start(BUFFERED), RequestTrailers()])


def test_response_may_come_first():
    """Envoy's own answer, for instance to a broken upload, comes before the request is whole."""
    session, _, _ = play([start(DUPLEX), RequestBody(b"a", False)])
    assert session.receive(ResponseHeaders({":status": "408"}, True)) == (Continue("response_headers"),)


def test_modes_are_the_announced_ones():
    """Request and response may be in different modes."""
    session = Session(Modes(DUPLEX, DUPLEX), 10)
    session.receive(RequestHeaders(dict(HEADERS), True, Modes(BUFFERED, NONE)))
    assert session.modes == Modes(BUFFERED, NONE)
    assert isinstance(session.arrival, Arrival)
    assert repr(session) == "<Session WHOLE BUFFERED, 0 bytes>"


def piece(data, *, end=False):
    return Piece("response_body", data, end)


JOINED = {
    "all of it, then its end": ({"content-length": "3"}, [b"abc", b""], [[], [piece(b"abc", end=True)]]),
    "in pieces": (
        {"content-length": "3"},
        [b"a", b"bc", b""],
        [[piece(b"a")], [], [piece(b"bc", end=True)]],
    ),
    "the end comes with it": ({"content-length": "3"}, [b"abc"], [[piece(b"abc", end=True)]]),
    "no length": ({}, [b"abc", b""], [[piece(b"abc")], [piece(b"", end=True)]]),
    "an empty piece before a body of unknown length": ({}, [b"", b"a"], [[piece(b"")], [piece(b"a", end=True)]]),
    "more than it said": ({"content-length": "2"}, [b"abc", b""], [[piece(b"abc")], [piece(b"", end=True)]]),
}


@pytest.mark.parametrize(("headers", "bodies", "expected"), JOINED.values(), ids=JOINED.keys())
def test_the_end_of_a_body_of_known_length(headers, bodies, expected):
    """What completes a body waits for the message with its end, which is on its way: one answer for both."""
    session, _, _ = play([start(DUPLEX, end=True)])
    session.receive(ResponseHeaders({":status": "200"} | headers, False))
    events = [ResponseBody(data, number == len(bodies) - 1) for number, data in enumerate(bodies)]
    assert [list(session.joined(event, session.receive(event))) for event in events] == expected


def test_trailers_after_a_body_of_known_length():
    """They bring what waits for its end along."""
    session, _, _ = play([start(DUPLEX, end=True)])
    session.receive(ResponseHeaders({":status": "200", "content-length": "1"}, False))
    body, trailers = ResponseBody(b"a", False), ResponseTrailers()
    assert session.joined(body, session.receive(body)) == ()
    assert session.joined(trailers, session.receive(trailers)) == (piece(b"a"), Continue("response_trailers"))
