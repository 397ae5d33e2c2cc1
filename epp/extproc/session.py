"""One ext_proc stream as a protocol without I/O: events in, replies out, and the request as soon as it is whole.

`receive` takes what Envoy said and returns what can be answered at once. When the request is whole, or as much of it as
the body mode shows, `arrival` is set: the owner decides and gives the answer to `answer`, or an error to `refuse`.

The legal transitions of the request's side are the table `_STEPS`; the response's side has no state but its end.

Facts that the order of answers rests on (measured with Envoy 1.40, see docs/envoy.md): under FULL_DUPLEX_STREAMED
nothing is answered before the request is whole, then come one header reply and the pieces; under BUFFERED the headers
are answered first with nothing in it, and the body's reply carries the destination; under STREAMED and NONE the
destination is in the reply to the headers, since Envoy sends no body before that.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from msgspec.structs import replace

from epp.errors import BadRequest, EppError, PayloadTooLarge, RequestError
from epp.extproc.events import (
    Answer,
    Arrival,
    BodyMode,
    Continue,
    Direct,
    Event,
    Immediate,
    Modes,
    Piece,
    Replace,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Route,
)

PIECE_BYTES = 62_000
"""The most bytes of a piece: Envoy advises against more than 64 KiB."""

PATIENCE_BYTES = 1 << 20
"""How far a body may go beyond the limit before it is cut off; Envoy's own margin in `epp envoy` is the same."""

DUPLEX = frozenset({BodyMode.FULL_DUPLEX_STREAMED, BodyMode.GRPC})
AT_HEADERS = frozenset({BodyMode.NONE, BodyMode.STREAMED})
BUFFERED = frozenset({BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL})

DESTINATION_HEADER = "x-gateway-destination-endpoint"

ROUTING_HEADERS = frozenset(
    {
        DESTINATION_HEADER,
        "x-gateway-destination-endpoint-subset",
        "x-gateway-destination-endpoint-served",
        "x-gateway-destination-endpoint-scores",
        "x-llm-d-request-dropped-reason",
        "x-prefiller-host-port",
        "x-encoder-hosts-ports",
        "x-data-parallel-host-port",
        "x-kv-cache-source-host-port",
        "x-llm-d-inference-objective",
        "x-gateway-inference-objective",
        "x-llm-d-inference-fairness-id",
        "x-gateway-inference-fairness-id",
        "x-llm-d-model-name-rewrite",
        "x-gateway-model-name-rewrite",
        "x-llm-d-slo-ttft-ms",
        "x-slo-ttft-ms",
        "x-llm-d-slo-tpot-ms",
        "x-slo-tpot-ms",
        "x-llm-d-video-fps",
        "x-llm-d-video-duration-seconds",
        "x-llm-d-video-resolution",
    }
)
"""Headers that the client may have sent for us, or to steer the data plane: they never reach the model server."""


class ProtocolError(EppError):
    """Envoy sent a message that can't come at this point; the stream ends with INTERNAL."""


class Phase(Enum):
    """Where the request's side of a stream stands."""

    HEADERS = auto()  # nothing has come yet
    BODY = auto()  # the body is being gathered
    WHOLE = auto()  # `arrival` waits for its answer
    PASSING = auto()  # answered; what still comes of the body passes
    ENDED = auto()  # answered, and the request has ended
    REFUSED = auto()  # the client has its answer from us


class Session:
    """The state of one stream: the phase, the pieces gathered so far, the modes in force.

    Attributes:
        modes: the body modes in force.
        phase: where the request's side stands.
        arrival: the request, while it waits for its answer.
        response_ended: the response's end has been seen.
        observed: another picker routes the request, Envoy waits for no replies here, and none must be sent.
    """

    __slots__ = (
        "_declared",
        "_headers",
        "_held",
        "_length",
        "_limit",
        "_pieces",
        "_seen",
        "_size",
        "_subset",
        "_trailers",
        "arrival",
        "modes",
        "observed",
        "phase",
        "response_ended",
    )

    def __init__(self, default: Modes, limit: int) -> None:
        self.modes = default
        self.phase = Phase.HEADERS
        self.arrival: Arrival | None = None
        self.response_ended = False
        self.observed = False
        self._limit = limit
        self._length: int | None = None  # of the response, where it is buffered
        self._declared = 0  # bytes of the response, where it is streamed in full duplex and says how long it is
        self._seen = 0  # bytes of the response so far, where that matters
        self._held: bytes | None = None
        self._headers: dict[str, str] = {}
        self._subset: Sequence[str] | None = None
        self._pieces: list[RequestBody] = []
        self._size = 0
        self._trailers = False

    def __repr__(self) -> str:
        return f"<Session {self.phase.name} {self.modes.request.name}, {self._size} bytes>"

    @property
    def over(self) -> bool:
        """Whether the client has its answer from us, and nothing that still comes matters."""
        return self.phase is Phase.REFUSED and not self.observed

    @property
    def complete(self) -> bool | None:
        """Whether the response's end was seen; None where the mode in force doesn't show it."""
        if self.response_ended:
            return True
        return None if self.modes.response is BodyMode.NONE else False

    def receive(self, event: Event) -> Sequence[Reply]:
        """Takes the next event; what can be answered at once.

        Raises:
            RequestError: the request can't go on; give it to `refuse`.
            ProtocolError: the event can't come at this point.
        """
        if isinstance(event, ResponseBody):
            return self._response_body(event)
        if isinstance(event, ResponseHeaders):
            self.modes = event.modes or self.modes
            self.response_ended = event.end
            if self.modes.response in BUFFERED and "content-length" in event.headers:
                self._length = _content_length(event.headers)
            elif self.modes.response is BodyMode.FULL_DUPLEX_STREAMED:
                self._declared = _content_length(event.headers)
            return (Continue("response_headers"),)
        if isinstance(event, ResponseTrailers):
            self.response_ended = True
            return (Continue("response_trailers"),)
        step = _STEPS.get((self.phase, type(event)))
        if step is None:
            raise ProtocolError(f"{type(event).__name__} can't come in phase {self.phase.name}")
        return step(self, event)

    def answer(self, answer: Answer) -> Iterator[Reply]:
        """The replies that send the request on its way."""
        arrival, self.arrival = self.arrival, None
        if arrival is None:
            raise ProtocolError(f"no request waits for an answer in phase {self.phase.name}")
        pieces, self._pieces, self._headers = self._pieces, [], {}
        body, answer = answer.body, answer if answer.body is None else replace(answer, body=None)
        ours = {DESTINATION_HEADER, *[name for name, _ in answer.set_headers]}  # set over what the client sent
        remove = tuple([name for name in arrival.headers if name in ROUTING_HEADERS and name not in ours])
        if not pieces:
            self.phase = Phase.ENDED if arrival.body == b"" and not self._trailers else Phase.PASSING
            yield Route("request_headers", answer, remove)
        elif self.modes.request in DUPLEX:
            self.phase = Phase.ENDED
            yield Route("request_headers", answer, remove)
            whole = (arrival.body or b"") if body is None else body
            yield from _give_back(pieces, self.modes.request, whole, end=not self._trailers)
        else:
            self.phase = Phase.ENDED if pieces[-1].end else Phase.PASSING
            yield Route("request_body", answer if body is None else _with_body(answer, body, arrival.headers), remove)
        if self._trailers:
            self.phase = Phase.ENDED
            yield Continue("request_trailers")

    def direct(self, reply: Direct) -> Direct:
        """The reply that is the answer, and ends the request here."""
        self.phase, self.arrival, self._pieces = Phase.REFUSED, None, []
        return reply

    def refuse(self, error: RequestError, request_id: str) -> Immediate:
        """The reply that ends the request here."""
        self.phase, self.arrival, self._pieces = Phase.REFUSED, None, []
        return Immediate(error, request_id)

    # --- the steps of the request's side, chosen by `_STEPS`

    def on_headers(self, event: RequestHeaders) -> Sequence[Reply]:
        """The first message of a stream."""
        self.modes = event.modes or self.modes
        self.observed = event.observed
        self._headers, self._subset = event.headers, event.subset
        self._refuse_too_large(_content_length(event.headers), patience=self.modes.request not in AT_HEADERS)
        if event.end or self._at_headers or _upgrades(event.headers):
            return self._whole(b"" if event.end else None)
        self.phase = Phase.BODY
        return () if self.modes.request in DUPLEX else (Continue("request_headers"),)

    def on_piece(self, event: RequestBody) -> Sequence[Reply]:
        """A piece of a body that is being gathered."""
        self._size += len(event.data)
        self._refuse_too_large(self._size, patience=not event.end and self.modes.request in DUPLEX)
        self._pieces.append(event)
        self._subset = event.subset if event.subset is not None else self._subset
        if self.modes.request in DUPLEX or self.observed:
            return self._whole(self._joined()) if event.end else ()
        return self._whole(event.data, partial=not event.end and self.modes.request is BodyMode.BUFFERED_PARTIAL)

    def on_trailers(self, event: RequestTrailers) -> Sequence[Reply]:
        """The body that is being gathered ends in trailers."""
        if self.modes.request not in DUPLEX and not self.observed:
            raise BadRequest("the request has trailers but no body")
        self._trailers = True
        self._refuse_too_large(self._size)
        self._subset = event.subset if event.subset is not None else self._subset
        return self._whole(self._joined())

    def on_further_piece(self, event: RequestBody) -> Sequence[Reply]:
        """A piece of a body that is already on its way."""
        self._size += len(event.data)
        self._refuse_too_large(self._size)
        if event.end:
            self.phase = Phase.ENDED
        if self.modes.request in DUPLEX:
            return tuple(_split("request_body", event))
        return (Continue("request_body"),)

    def on_further_trailers(self, event: RequestTrailers) -> Sequence[Reply]:
        """The trailers of a body that is already on its way."""
        self.phase = Phase.ENDED
        return (Continue("request_trailers"),)

    def on_too_late(self, event: Event) -> Sequence[Reply]:
        """The client has its answer; what was under way is of no use."""
        return ()

    def stream_response(self, headers: Sequence[tuple[str, str]]) -> Sequence[Reply]:
        """The reply to the response's headers that has its body sent to us, which the mode in force doesn't."""
        self.modes = Modes(self.modes.request, BodyMode.STREAMED)
        return (Continue("response_headers", tuple(headers), streamed=True),)

    def changed(self, event: ResponseBody, data: bytes) -> Sequence[Reply]:
        """The replies that give this data in the place of a piece of the response, after `receive` has taken it."""
        if self.modes.response is BodyMode.FULL_DUPLEX_STREAMED:
            # Nothing may be left of a piece so far; the next one brings it.
            return tuple(_split("response_body", replace(event, data=data))) if data or event.end else ()
        if self._length is None:
            return (Replace("response_body", data),)
        length = str(self._length + len(data) - len(event.data))
        return (Replace("response_body", data, (("content-length", length),)),)

    def joined(self, event: ResponseBody | ResponseTrailers, replies: Sequence[Reply]) -> Sequence[Reply]:
        """The replies to an event that `receive` has taken, one less where a body says how long it is.

        Envoy tells the end of a body in a message of its own. When all of a body that declares its length has come,
        that message is on its way: what came last waits for it, and both are answered together. For bodies that pass
        as they are, from their first piece on.
        """
        held, self._held = self._held, None
        if isinstance(event, ResponseTrailers):
            return replies if held is None else (Piece("response_body", held, end=False), *replies)
        if held is not None:
            return tuple(_split("response_body", replace(event, data=held + event.data)))
        self._seen += len(event.data)
        if event.end or not self._declared or self._seen != self._declared:
            return replies
        self._held = event.data
        return ()

    def _response_body(self, event: ResponseBody) -> Sequence[Reply]:
        self.response_ended = self.response_ended or event.end
        if self.modes.response in DUPLEX:
            return tuple(_split("response_body", event))
        return (Continue("response_body"),)

    def _joined(self) -> bytes:
        pieces = self._pieces
        return pieces[0].data if len(pieces) == 1 else b"".join([piece.data for piece in pieces])

    def _whole(self, body: bytes | None, *, partial: bool = False) -> Sequence[Reply]:
        self.phase = Phase.WHOLE
        fixed = self.modes.request is BodyMode.GRPC
        self.arrival = Arrival(self._headers, body, self._subset, partial, fixed, self.observed)
        return ()

    @property
    def _at_headers(self) -> bool:
        """Whether the answer is due before the body comes; an observed one waits for nothing."""
        mode = self.modes.request
        return mode in AT_HEADERS and not (self.observed and mode is BodyMode.STREAMED)

    def _refuse_too_large(self, size: int, *, patience: bool = False) -> None:
        # With patience a body that is a little too long may end first: many clients don't read an answer that comes
        # while they send.
        if size > self._limit + PATIENCE_BYTES * patience:
            raise PayloadTooLarge(
                f"the request's body is longer than {self._limit} bytes; "
                "shorten it, or raise --max-request-body-bytes of the endpoint picker and of its Envoy"
            )


Step = Callable[[Session, Any], Sequence[Reply]]

_STEPS: dict[tuple[Phase, type], Step] = {
    (Phase.HEADERS, RequestHeaders): Session.on_headers,
    (Phase.BODY, RequestBody): Session.on_piece,
    (Phase.BODY, RequestTrailers): Session.on_trailers,
    (Phase.PASSING, RequestBody): Session.on_further_piece,
    (Phase.PASSING, RequestTrailers): Session.on_further_trailers,
    (Phase.REFUSED, RequestBody): Session.on_too_late,
    (Phase.REFUSED, RequestTrailers): Session.on_too_late,
}


def _give_back(pieces: Sequence[RequestBody], mode: BodyMode, body: bytes, *, end: bool) -> Iterator[Piece]:
    if mode is BodyMode.GRPC:
        # Each piece is one gRPC message: its bounds and flags are part of what it says.
        for piece in pieces:
            yield Piece("request_body", piece.data, piece.end, piece.bare, piece.compressed)
        return
    for start in range(0, len(body) or 1, PIECE_BYTES):
        yield Piece("request_body", body[start : start + PIECE_BYTES], end and start + PIECE_BYTES >= len(body))


def _split(phase: str, event: RequestBody | ResponseBody) -> Iterator[Piece]:
    data = event.data
    if len(data) <= PIECE_BYTES or event.bare or event.compressed:
        yield Piece(phase, data, event.end, event.bare, event.compressed)
        return
    for start in range(0, len(data), PIECE_BYTES):
        yield Piece(phase, data[start : start + PIECE_BYTES], event.end and start + PIECE_BYTES >= len(data))


def _with_body(answer: Answer, body: bytes, headers: Mapping[str, str]) -> Answer:
    """The answer with a body, and with its length if the request tells one: Envoy doesn't correct it."""
    if "content-length" not in headers:
        return replace(answer, body=body)
    return replace(answer, body=body, set_headers=(*answer.set_headers, ("content-length", str(len(body)))))


def _content_length(headers: dict[str, str]) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else 0


def _upgrades(headers: dict[str, str]) -> bool:
    return "upgrade" in headers or headers.get(":method") == "CONNECT"
