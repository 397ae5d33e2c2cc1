"""HTTP/1.1 and HTTP/2 clients on h11 and h2: trailers, aborts, and answers that come while one still sends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11

Pairs = Sequence[tuple[str, str]]
DEADLINE = 60.0


@dataclass(slots=True)
class Answer:
    """What came back.

    Attributes:
        status: of the response, 0 if none came.
        headers: of the response, the last one of a name.
        body: as much of it as came.
        trailers: of the response.
        complete: the response came to its proper end.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    complete: bool = False


class Exchange(Protocol):
    """One request under way."""

    answer: Answer

    async def finish(self) -> Answer:
        """Sends what is left of the request and reads until the response ends, properly or not."""
        ...

    async def until_bytes(self, count: int) -> None:
        """Reads until that many bytes of the body are there."""
        ...


@asynccontextmanager
async def request(
    http: str,
    address: str,
    *,
    method: str = "POST",
    path: str = "/v1/completions",
    headers: Pairs = (),
    body: bytes | None = None,
    length: bool = True,
    trailers: Pairs = (),
) -> AsyncIterator[Exchange]:
    """Sends one request over a connection of its own; leaving the block closes the connection, come what may.

    Args:
        http: `http1` or `http2` (with prior knowledge).
        address: `ip:port`.
        method: of the request.
        path: of the request.
        headers: of the request.
        body: of the request; None for a request that ends with its headers.
        length: tell the body's length beforehand.
        trailers: of the request.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    known = [("content-length", str(len(body)))] if body is not None and length and not trailers else []
    head = [("content-type", "application/json"), *known, *headers] if body is not None else list(headers)
    kind = Http1 if http == "http1" else Http2
    try:
        async with asyncio.timeout(DEADLINE):
            yield kind(reader, writer, (method, path, address), head, body, trailers)
    finally:
        writer.transport.abort()


async def call(http: str, address: str, **what: object) -> Answer:
    """One request and its whole answer; arguments as for `request`."""
    async with request(http, address, **what) as exchange:  # type: ignore[arg-type]
        return await exchange.finish()


class Http1:
    """One request over HTTP/1.1."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        line: tuple[str, str, str],
        headers: Pairs,
        body: bytes | None,
        trailers: Pairs,
    ) -> None:
        self.answer = Answer()
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT)
        method, target, host = line
        sized = any(name == "content-length" for name, _ in headers)
        chunked = [("transfer-encoding", "chunked")] if body is not None and not sized else []
        head = h11.Request(method=method, target=target, headers=[("host", host), *headers, *chunked])
        self._left = [head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage(headers=list(trailers))]
        self._sending: asyncio.Task[None] | None = None

    async def finish(self) -> Answer:
        while await self._read():
            pass
        return self.answer

    async def until_bytes(self, count: int) -> None:
        while len(self.answer.body) < count:
            if not await self._read():
                raise EOFError(f"the response ended after {len(self.answer.body)} of {count} bytes")

    async def _send(self) -> None:
        try:
            for event in self._left:
                self._writer.write(self._http.send(event) or b"")
                await self._writer.drain()
        except ConnectionError:
            return  # an answer may have come before that

    async def _read(self) -> bool:
        """One event; whether more can come."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(1 << 16))
        except (ConnectionError, h11.RemoteProtocolError):
            return False
        return self._note(event)

    def _note(self, event: object) -> bool:
        if isinstance(event, h11.Response):
            self.answer.status = event.status_code
            self.answer.headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            self.answer.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            self.answer.trailers = {name.decode(): value.decode() for name, value in event.headers}
            self.answer.complete = True
            return False
        return not isinstance(event, h11.ConnectionClosed)


class Http2:
    """One request over HTTP/2."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        line: tuple[str, str, str],
        headers: Pairs,
        body: bytes | None,
        trailers: Pairs,
    ) -> None:
        self.answer = Answer()
        self._reader, self._writer = reader, writer
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._http.initiate_connection()
        self._http.increment_flow_control_window(1 << 24)
        self._stream = self._http.get_next_available_stream_id()
        self._trailers, self._left = trailers, memoryview(body or b"")
        self._open = bool(body) or bool(trailers)
        method, path, host = line
        pseudo = [(":method", method), (":scheme", "http"), (":authority", host), (":path", path)]
        self._http.send_headers(self._stream, [*pseudo, *headers], end_stream=not self._open)

    async def finish(self) -> Answer:
        while await self._read():
            pass
        return self.answer

    async def until_bytes(self, count: int) -> None:
        while len(self.answer.body) < count:
            if not await self._read():
                raise EOFError(f"the response ended after {len(self.answer.body)} of {count} bytes")

    def _fill(self) -> None:
        """Queues as much of the request as the windows allow."""
        while self._open:
            size = min(self._http.local_flow_control_window(self._stream), self._http.max_outbound_frame_size)
            size = min(size, len(self._left))
            if self._left and not size:
                return
            piece, self._left = self._left[:size], self._left[size:]
            last = not self._left
            if piece:
                self._http.send_data(self._stream, piece.tobytes(), end_stream=last and not self._trailers)
            if last and self._trailers:
                self._http.send_headers(self._stream, list(self._trailers), end_stream=True)
            self._open = not last

    async def _read(self) -> bool:
        """What one read brings; whether more can come."""
        try:
            self._fill()
            self._writer.write(self._http.data_to_send())
            await self._writer.drain()
            data = await self._reader.read(1 << 16)
            events = self._http.receive_data(data)
        except (ConnectionError, h2.exceptions.ProtocolError):
            return False
        ended = [event for event in events if not self._note(event)]
        return bool(data) and not ended

    def _note(self, event: h2.events.Event) -> bool:
        if isinstance(event, h2.events.ResponseReceived):
            headers = dict(event.headers)
            self.answer.status, self.answer.headers = int(headers.pop(":status")), headers
        elif isinstance(event, h2.events.DataReceived):
            self.answer.body += event.data
            self._http.acknowledge_received_data(event.flow_controlled_length, self._stream)
        elif isinstance(event, h2.events.TrailersReceived):
            self.answer.trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.answer.complete = True
        ended = h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated
        return not isinstance(event, ended)
