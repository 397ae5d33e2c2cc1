"""The values that pass between the codec and the session: what Envoy said, and what to answer. No protobuf, no I/O."""

from collections.abc import Mapping, Sequence
from enum import IntEnum

import msgspec

from epp.errors import RequestError


class BodyMode(IntEnum):
    """How a body reaches the processor; the values of Envoy's `ProcessingMode.BodySendMode`."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


class Modes(msgspec.Struct, frozen=True, gc=False):
    """The body modes in force, as the first message of a stream announces them."""

    request: BodyMode
    response: BodyMode


class RequestHeaders(msgspec.Struct, frozen=True, gc=False):
    """The request's headers: names in lower case, of several with one name the last.

    Attributes:
        end: there is no body.
        observed: Envoy waits for no answers on this stream, and takes none (`observability_mode`).
    """

    headers: dict[str, str]
    end: bool
    modes: Modes | None = None
    subset: Sequence[str] | None = None
    observed: bool = False


class RequestBody(msgspec.Struct, frozen=True, gc=False):
    """A piece of the request's body. `bare` and `compressed` are the GRPC mode's flags, to be given back."""

    data: bytes
    end: bool
    subset: Sequence[str] | None = None
    bare: bool = False
    compressed: bool = False


class RequestTrailers(msgspec.Struct, frozen=True, gc=False):
    """The request ends in trailers."""

    subset: Sequence[str] | None = None


class ResponseHeaders(msgspec.Struct, frozen=True, gc=False):
    """The response's headers.

    Attributes:
        served_by: `ip:port` of the endpoint that they came from, if Envoy says so.
        unreachable: Envoy answers itself, since it could not connect to the endpoint.
    """

    headers: dict[str, str]
    end: bool
    served_by: str | None = None
    unreachable: bool = False
    modes: Modes | None = None


class ResponseBody(msgspec.Struct, frozen=True, gc=False):
    """A piece of the response's body."""

    data: bytes
    end: bool
    bare: bool = False
    compressed: bool = False


class ResponseTrailers(msgspec.Struct, frozen=True, gc=False):
    """The response ends in trailers."""


Event = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """A request that is whole, or as much of it as the body mode shows.

    Attributes:
        headers: as in `RequestHeaders`.
        body: the body; None where the mode doesn't show it, b"" if there is none.
        subset: the endpoints (`ip` or `ip:port`) that Envoy allows; None for all.
        partial: the body may be cut off (BUFFERED_PARTIAL).
        fixed: the body can't be changed, since its pieces are given back one by one (GRPC).
        observed: another picker has routed it, and we only look on.
    """

    headers: Mapping[str, str]
    body: bytes | None
    subset: Sequence[str] | None
    partial: bool = False
    fixed: bool = False
    observed: bool = False


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Where a request goes: what its headers and metadata say from now on; `body` takes the place of its body."""

    destination: str
    set_headers: tuple[tuple[str, str], ...] = ()
    scores: Mapping[str, float] | None = None
    body: bytes | None = None


class Route(msgspec.Struct, frozen=True, gc=False):
    """Answers the request's headers, or in BUFFERED mode its body, with the destination; `phase` as in `Continue`.

    The answer's body, if it has one, takes the place of the buffered one.
    """

    phase: str
    answer: Answer
    remove: tuple[str, ...]

    @property
    def unique(self) -> bool:
        """Whether an equal route will hardly come again."""
        answer = self.answer
        return bool(answer.set_headers) or answer.scores is not None or answer.body is not None


class Continue(msgspec.Struct, frozen=True, gc=False):
    """Lets a message pass: `phase` is the name of the answer's field, such as "response_headers".

    With `streamed`, in an answer to the response's headers, its body is to be sent to us piece by piece from now on;
    Envoy minds that if its filter allows the mode to be overridden.
    """

    phase: str
    set_headers: tuple[tuple[str, str], ...] = ()
    streamed: bool = False


class Piece(msgspec.Struct, frozen=True, gc=False):
    """Gives a piece of a body back in FULL_DUPLEX_STREAMED or GRPC mode; `phase` as in `Continue`."""

    phase: str
    data: bytes
    end: bool
    bare: bool = False
    compressed: bool = False


class Replace(msgspec.Struct, frozen=True, gc=False):
    """Gives another piece of a body in the modes that let a piece pass as it is; `phase` as in `Continue`."""

    phase: str
    data: bytes
    set_headers: tuple[tuple[str, str], ...] = ()


class Immediate(msgspec.Struct, frozen=True):
    """Answers the client at once; the stream is over."""

    error: RequestError
    request_id: str


class Reporting(msgspec.Struct, frozen=True, gc=False):
    """A reply with dynamic metadata beside it: numbers by namespace and name."""

    reply: Route | Continue | Piece | Replace
    metadata: Mapping[str, Mapping[str, float]]


class Direct(msgspec.Struct, frozen=True, gc=False):
    """Answers the client at once with a document of ours; the stream is over."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


Reply = Direct | Route | Continue | Piece | Replace | Immediate | Reporting
