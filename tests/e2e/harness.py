"""What the tests with a real Envoy stand on: the picker as a subprocess, and one pool behind Envoys of every mode."""

import asyncio
import json
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from epp.envoy.options import Address, EnvoyOptions, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from tests.e2e.upstream import Upstream

DEADLINE = 30.0
LIMIT = 1 << 20
"""The picker's --max-request-body-bytes in these tests: large enough for 400 kB, small enough to pass quickly."""

VARIANTS: dict[str, dict[str, Any]] = {
    "standalone": {},
    "full-duplex": {"mode": "full-duplex"},
    "original-dst": {"mode": "original-dst"},
    "streamed": {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED", "request_trailer_mode": "SEND"},
    "partial": {"request_body_mode": "BUFFERED_PARTIAL", "response_body_mode": "BUFFERED_PARTIAL"},
    "buffered": {"response_body_mode": "BUFFERED", "request_trailer_mode": "SEND"},
    "headers-only": {"request_body_mode": "NONE"},
    "duplex-request": {"mode": "full-duplex", "response_body_mode": "NONE", "response_header_mode": "SKIP"},
}
"""Every mode, and every body mode of either side."""

IN_FLIGHT = ("extproc_streams_inflight", "inflight_requests", "inflight_tokens")


async def until(condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
    """Waits until the condition, a function or a coroutine function, holds; its value.

    Raises:
        AssertionError: it does not, in time.
    """
    end, value = time.monotonic() + deadline, None
    while time.monotonic() < end:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.02)
    raise AssertionError(f"after {deadline:g} s still not: {what} (last: {value!r})")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Picker:
    """`epp serve` as a subprocess: `async with Picker(["127.0.0.1:8000"]) as picker: ... picker.address`.

    Attributes:
        address: of ext_proc; the same after a restart.
        health: of the health port.
        metrics_address: where /metrics is.
    """

    def __init__(self, endpoints: Sequence[str], *arguments: str, secure: bool = False) -> None:
        self.address = Address("127.0.0.1", free_port())
        self.health = Address("127.0.0.1", free_port())
        self.metrics_address = Address("127.0.0.1", free_port())
        self._arguments = (f"--secure-serving={str(secure).lower()}", *arguments)
        self._endpoints = endpoints
        self._directory = tempfile.TemporaryDirectory(prefix="epp-picker-")
        self._process: asyncio.subprocess.Process | None = None

    def command(self) -> list[str]:
        """The command line."""
        return [
            *(sys.executable, "-m", "epp", "serve", "--endpoints", ",".join(self._endpoints)),
            *("--grpc-bind-address=127.0.0.1", f"--grpc-port={self.address.port}"),
            *(f"--grpc-health-port={self.health.port}", f"--metrics-port={self.metrics_address.port}"),
            *("--metrics-endpoint-auth=false", "--metrics-bind-address=127.0.0.1"),
            *(
                "--enable-grpc-stream-metrics",
                "--drain-timeout=0s",
                f"--max-request-body-bytes={LIMIT}",
                *self._arguments,
            ),
        ]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end(signal.SIGKILL)
        self._directory.cleanup()

    async def start(self) -> None:
        """Starts it, and waits until its health says that it serves."""
        with (Path(self._directory.name) / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*self.command(), stdout=log, stderr=log)
        await until(self._serving, "the picker serves")

    async def end(self, how: signal.Signals) -> int:
        """Ends it with that signal; its exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        return await self._process.wait()

    def signal(self, which: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(which)

    def log(self) -> str:
        """What it wrote."""
        return (Path(self._directory.name) / "log").read_text()

    async def metrics(self) -> dict[str, float]:
        """Its metrics by name, each the sum over its labels."""
        async with aiohttp.ClientSession() as http, http.get(f"http://{self.metrics_address}/metrics") as answer:
            page = await answer.text()
        sums: dict[str, float] = {}
        for line in page.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name = series.partition("{")[0]
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    async def idle(self) -> bool:
        """Whether no request is charged to anybody any more, and no stream is open."""
        sums = await self.metrics()
        return not any(sums[f"llm_d_epp_{name}"] for name in IN_FLIGHT)

    async def _serving(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"the picker ended:\n{self.log()}"
        async with grpc.aio.insecure_channel(str(self.health)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            try:
                answer = await check(health_pb2.HealthCheckRequest(), timeout=5.0)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Stage:
    """One pool and one picker, which Envoys of any mode share: a picker serves every body mode at once.

    Attributes:
        upstreams: the pool's servers.
        outsider: a server that is not in the pool.
        picker: the picker.
    """

    def __init__(self, size: int = 2, *arguments: str) -> None:
        self.upstreams = [Upstream() for _ in range(size)]
        self.outsider = Upstream()
        self._arguments = arguments
        self._gateways: dict[str, EnvoyProcess] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for upstream in (*self.upstreams, self.outsider):
                await stack.enter_async_context(upstream)
            self.picker = await stack.enter_async_context(Picker(self.addresses, *self._arguments))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def addresses(self) -> list[str]:
        """Of the pool."""
        return [upstream.address for upstream in self.upstreams]

    def forget(self) -> None:
        """Forgets what the servers have seen."""
        for upstream in (*self.upstreams, self.outsider):
            upstream.seen.clear()

    async def idle(self, process: EnvoyProcess) -> bool:
        """Whether nothing is under way any more, as Envoy, the servers and the picker see it."""
        assert process.alive, f"Envoy died:\n{process.log_tail(80)}"
        active = await process.stats("^(cluster.*upstream_rq_active|http.gateway.downstream_rq_active)$")
        serving = any(upstream.open for upstream in self.upstreams)
        return not any(active.values()) and not serving and await self.picker.idle()

    async def gateway(self, variant: str, **changes: Any) -> EnvoyProcess:
        """The Envoy of that variant; started when it is first asked for."""
        key = f"{variant} {sorted(changes.items())}"
        if key not in self._gateways:
            process = EnvoyProcess(self.options(**VARIANTS[variant], **changes))
            self._gateways[key] = await self._stack.enter_async_context(process)
        return self._gateways[key]

    def options(self, **changes: Any) -> EnvoyOptions:
        """Of an Envoy in front of this pool."""
        endpoints = tuple(parse_address(address, "upstream") for address in self.addresses)
        given = {"endpoints": endpoints, "picker": (self.picker.address,), "max_request_body_bytes": LIMIT}
        return EnvoyOptions(listen=LOOPBACK, **given | changes)


SENTENCE = "The quick brown fox \\u006aumps over the l\u00e1zy dog. "


def completion(size: int, **fields: Any) -> bytes:
    """The body of a completion request, that many bytes long, in a spelling that no JSON library would give it."""
    extra = "".join(f", {json.dumps(name)}:{json.dumps(value)}" for name, value in fields.items())
    frame = '{{ "prompt" : "{}",\n\t"model":"m", "seed":9007199254740993{}, "caf\u00e9" :1.0e0 }}'
    padding = size - len(frame.format("", extra).encode())
    whole, rest = divmod(padding, len(SENTENCE.encode()))
    filled = frame.format(SENTENCE * whole + "." * rest, extra).encode()
    assert len(filled) == size
    json.loads(filled)
    return filled


def soft_file_limit(wanted: int) -> bool:
    """Raises the number of files that this process and its children may open; whether that many are allowed."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True
