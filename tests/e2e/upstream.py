"""A small real HTTP/1.1 server in an engine's place: it notes every byte it gets and answers as the request asks.

An engine's answers are about its prompt; for what a proxy may have done to a request, a server is needed that gives it
back. The body is echoed. Request headers steer the answer:

    x-pieces: 20        the body in that many chunks, with an event-stream's content type
    x-pause: 0.05       seconds between them (a stream takes time; nothing waits on it)
    x-hold: yes         stops after the first chunk until `gate` is set
    x-die: 3            cuts the connection after that many chunks; 0 before any answer
    x-trailers: yes     ends in trailers, one of them the body's length
    x-status: 204       another status
"""

import asyncio
import contextlib
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h11

Headers = list[tuple[bytes, bytes]]

METRICS = b"""\
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="m"} 0.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="m"} 0.0
"""


@dataclass(slots=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The values of a header, joined; None where there is none."""
        values = [value.decode() for key, value in self.headers if key == name.encode()]
        return ", ".join(values) if values else None


class Upstream:
    """`async with Upstream() as upstream: ... upstream.address, upstream.seen`.

    Attributes:
        address: `ip:port`, once entered.
        seen: the requests so far, those of the picker itself aside.
        open: responses that are under way.
        aborted: requests or responses that the other side broke off.
        gate: lets responses with `x-hold` go on.
    """

    def __init__(self, port: int = 0) -> None:
        self.address = ""
        self.seen: list[Seen] = []
        self.open = 0
        self.aborted = 0
        self.gate = asyncio.Event()
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=4096)
        host, self._port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{self._port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Takes no more connections, and cuts those that are open."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, h11.RemoteProtocolError):
                await _Connection(self, reader, writer).run()
        finally:
            self._tasks.discard(task)
            writer.close()


class _Connection:
    """One connection, until either side closes it."""

    def __init__(self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._upstream, self._reader, self._writer = upstream, reader, writer
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while (request := await self._request()) is not None:
            if request.header("upgrade"):
                return await self._tunnel()
            if not await self._respond(request):
                return None  # which closes the connection, as the kernel does for a process that dies
            if self._http.our_state is h11.MUST_CLOSE or self._http.their_state is h11.MUST_CLOSE:
                return None
            self._http.start_next_cycle()
        return None

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(1 << 16))
        return event

    async def _request(self) -> Seen | None:
        head = await self._event()
        if not isinstance(head, h11.Request):
            return None
        request = Seen(head.method.decode(), head.target.decode(), list(head.headers))
        if request.header("user-agent") != "epp":
            self._upstream.seen.append(request)
        if request.header("expect"):
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        pieces = []
        try:
            while not isinstance(event := await self._event(), h11.EndOfMessage | type(h11.PAUSED)):
                assert isinstance(event, h11.Data)
                pieces.append(bytes(event.data))
        except (ConnectionError, h11.RemoteProtocolError):
            self._upstream.aborted += 1
            raise
        request.body = b"".join(pieces)
        request.trailers = list(event.headers) if isinstance(event, h11.EndOfMessage) else []
        return request

    async def _respond(self, request: Seen) -> bool:
        """Whether the answer was given to its end."""
        if request.header("x-die") == "0":
            return False
        body = {"/metrics": METRICS, "/health": b""}.get(request.path, request.body)
        self._upstream.open += 1
        try:
            await self._head(request, len(body))
            return await self._body(request, body)
        except (ConnectionError, h11.LocalProtocolError):
            self._upstream.aborted += 1
            raise
        finally:
            self._upstream.open -= 1

    async def _head(self, request: Seen, length: int) -> None:
        streamed = request.header("x-pieces") or request.header("x-trailers") or request.header("x-hold")
        kind = "text/event-stream" if streamed else request.header("content-type") or "text/plain"
        headers = [("content-type", kind), ("x-served-by", self._upstream.address)]
        status = int(request.header("x-status") or 200)
        if status != 204:
            headers.append(("transfer-encoding", "chunked") if streamed else ("content-length", str(length)))
        await self._send(h11.Response(status_code=status, headers=headers))

    async def _body(self, request: Seen, body: bytes) -> bool:
        count = int(request.header("x-pieces") or 1)
        die_after = int(request.header("x-die") or -1)
        size = -(-len(body) // count) or 1
        for number, start in enumerate(range(0, len(body), size), 1):
            await self._send(h11.Data(data=body[start : start + size]))
            if number == die_after:
                return False
            if number == 1 and request.header("x-hold"):
                await self._until_let_go()
            if pause := request.header("x-pause"):
                await asyncio.sleep(float(pause))
        trailers = [("x-length", str(len(body)))] if request.header("x-trailers") else []
        await self._send(h11.EndOfMessage(headers=trailers))
        return True

    async def _until_let_go(self) -> None:
        """Waits for the gate; notices when the other side goes before that."""
        gate, gone = asyncio.create_task(self._upstream.gate.wait()), asyncio.create_task(self._reader.read(1))
        try:
            await asyncio.wait({gate, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ConnectionResetError("the other side is gone")
        finally:
            gate.cancel()
            gone.cancel()
            await asyncio.gather(gate, gone, return_exceptions=True)

    async def _tunnel(self) -> None:
        """Answers an upgrade, and then gives back whatever comes."""
        headers = [("upgrade", "websocket"), ("connection", "upgrade"), ("x-served-by", self._upstream.address)]
        await self._send(h11.InformationalResponse(status_code=101, headers=headers))
        while data := await self._reader.read(1 << 16):
            self._writer.write(data)
            await self._writer.drain()

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
