"""The gRPC service: one coroutine a stream, which feeds messages to the session and sends what the session returns."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import grpc
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from google.protobuf.message import DecodeError

from epp.errors import Internal, RequestError
from epp.extproc.call import Call
from epp.extproc.codec import decode, encode
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
    Reply,
    Reporting,
    RequestHeaders,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from epp.extproc.session import BUFFERED, ProtocolError, Session

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"

Ending = Literal["ended", "cancelled", "failed", "refused"]
"""How a stream ended: Envoy closed it, Envoy or the client broke it off, a fault on it, or we answered the client."""


class Exchange(Protocol):
    """One request's way through the picker, as the server drives it."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """The request's headers have come."""
        ...

    def route(self, arrival: Arrival) -> Awaitable[Answer | Direct]:
        """Decides where the request goes, or answers it, or raises RequestError."""
        ...

    @property
    def pending(self) -> object | None:
        """Not None if something is to be done when the answer has been handed over."""
        ...

    def answered(self) -> None:
        """The answer has been handed over."""
        ...

    def refused(self, error: RequestError) -> str:
        """Notes that the client gets this error; the request's id."""
        ...

    def response_headers(self, event: ResponseHeaders) -> Sequence[tuple[str, str]]:
        """Notes the response's headers; headers to set on it."""
        ...

    def response_body(self, event: ResponseBody, *, whole: bool, fixed: bool) -> bytes | None:
        """Notes a piece of the response's body; what to give in its place, if anything.

        Args:
            event: the piece.
            whole: nothing comes after it, whatever it says itself.
            fixed: nothing can be given in its place.
        """
        ...

    @property
    def renames(self) -> bool:
        """Whether the response's body has to be seen, to give it the name that the client knows."""
        ...

    @property
    def reports(self) -> bool:
        """Whether there may be something to report at the response's end."""
        ...

    def response_metadata(self) -> Mapping[str, Mapping[str, float]]:
        """The response has ended: numbers for the request's dynamic metadata, by namespace and name."""
        ...

    def response_rest(self) -> bytes:
        """What has been held back of the body, when it has ended in trailers."""
        ...

    def close(self, ending: Ending, *, complete: bool | None) -> None:
        """The stream has ended; see `Session.complete`. Called exactly once."""
        ...


class ExternalProcessor:
    """Serves `Process` streams.

    Args:
        open_exchange: makes the exchange of a new stream.
        default: the body modes of a data plane that announces none.
        limit: the most bytes of a request's body.
        crashed: told of an exception that is a fault of ours; the stream ends, nothing else does.
    """

    def __init__(
        self,
        open_exchange: Callable[[], Exchange],
        default: Modes,
        limit: int,
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._open = open_exchange
        self._default = default
        self._limit = limit
        self._crashed = crashed

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to a grpc.aio server. Replies are encoded by the codec, so there is no serializer."""
        method = grpc.stream_stream_rpc_method_handler(
            self.process, request_deserializer=ProcessingRequest.FromString, response_serializer=None
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Process": method})

    async def process(self, _: object, context: Any) -> None:
        """What gRPC calls for each stream."""
        call = Call(context)
        await call.run(self._stream(call))

    async def _stream(self, context: Call) -> None:
        """One stream, from its first message to its end."""
        session, exchange = Session(self._default, self._limit), self._open()
        ending: Ending = "cancelled"  # unless it comes to a better end: cancellation may strike at any await
        try:
            while await self._next(session, exchange, context):
                if session.over:
                    return
            ending = "ended"
        except (ProtocolError, DecodeError, ValueError) as error:
            ending = "failed"
            # Never OK: under full duplex that would silently lose the pieces that are with the processor.
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        finally:
            if session.over:
                ending = "refused"  # the client may have gone as soon as it had its answer
            exchange.close(ending, complete=session.complete)

    async def _next(self, session: Session, exchange: Exchange, context: Any) -> bool:
        """Answers the next message; False at the end. No message outlives its answers: bodies are long, streams too."""
        message = await context.read()
        if message is grpc.aio.EOF:
            return False
        event = decode(message)
        if isinstance(event, (ResponseBody, ResponseHeaders, ResponseTrailers)):
            replies = self._passed(session, exchange, event)
            if session.response_ended and exchange.reports:
                replies = self._reporting(exchange, tuple(replies))
        else:
            replies = await self._request(session, exchange, event)
        for reply in replies:
            if not session.observed:
                await context.write(encode(reply))
        if exchange.pending is not None:
            exchange.answered()
        # Of an observed stream Envoy lets go late: seconds after the response.
        return not (session.observed and session.response_ended)

    async def _request(self, session: Session, exchange: Exchange, event: Event) -> Iterable[Reply]:
        try:
            if isinstance(event, RequestHeaders):
                exchange.begin(event.headers)
            replies = session.receive(event)
            if session.arrival is None:
                return replies
            answer = await exchange.route(session.arrival)
            return (session.direct(answer),) if isinstance(answer, Direct) else session.answer(answer)
        except RequestError as error:
            return (session.refuse(error, exchange.refused(error)),)
        except (ProtocolError, asyncio.CancelledError):
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a fault of ours: counted, and the client is told)
            self._crashed(error)
            fault = Internal("the endpoint picker failed; its log says why")
            return (session.refuse(fault, exchange.refused(fault)),)

    def _reporting(self, exchange: Exchange, replies: Sequence[Reply]) -> Sequence[Reply]:
        try:
            metadata = exchange.response_metadata()
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a response passes whatever we make of it)
            self._crashed(error)
            return replies
        if not metadata or not replies or isinstance(replies[-1], (Direct, Immediate, Reporting)):
            return replies
        return (*replies[:-1], Reporting(replies[-1], metadata))

    def _passed(
        self, session: Session, exchange: Exchange, event: ResponseBody | ResponseHeaders | ResponseTrailers
    ) -> Iterable[Reply]:
        replies, mode = session.receive(event), session.modes.response
        try:
            if isinstance(event, ResponseBody):
                data = exchange.response_body(event, whole=mode in BUFFERED, fixed=mode is BodyMode.GRPC)
                if data is not None:
                    return session.changed(event, data)
                return replies if exchange.renames else session.joined(event, replies)
            if isinstance(event, ResponseTrailers):
                rest = exchange.response_rest()
                if rest and mode is BodyMode.FULL_DUPLEX_STREAMED:
                    return (Piece("response_body", rest, end=False), *replies)
                return replies if exchange.renames else session.joined(event, replies)
            added = exchange.response_headers(event)
            if mode is BodyMode.NONE and exchange.renames and not event.end:
                return session.stream_response(added)
            if added:
                return (Continue("response_headers", tuple(added)),)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a response passes whatever we make of it)
            self._crashed(error)
        return replies if isinstance(event, ResponseHeaders) else session.joined(event, replies)
