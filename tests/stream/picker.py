"""The picker in this process behind a real gRPC server: real plugins, a pool filled by hand, a clock of ours."""

import asyncio
import io
import json
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from epp.exchange import Health
from epp.extproc.events import BodyMode, Modes
from epp.extproc.server import SERVICE, ExternalProcessor
from epp.hooks import Hooks
from epp.keys import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, KV_USAGE, RUNNING, WAITING
from epp.observe.decision_log import DecisionLog, LogOptions
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.pipeline import Options, Pipeline
from epp.plugin import Context, plugins_of
from epp.pool import Endpoint, Pool
from epp.settings import Registry, load
from epp.testing import FakeClock
from tests.stream import plugins

DEADLINE = 10.0
LIMIT = 1 << 20


def config(*profile: str, others: Sequence[str] = (), **parameters: Mapping[str, Any]) -> str:
    """A configuration with one profile of these types, and others outside of it.

    Args:
        profile: types, as `type` or `type=weight`.
        others: types of observers, producers, fetchers, handlers.
        parameters: of a type, with underscores in its name.
    """
    names = [each.partition("=")[0] for each in profile]
    refs = [
        {"pluginRef": name, **({"weight": float(weight)} if weight else {})}
        for name, _, weight in (each.partition("=") for each in profile)
    ]
    entries = [{"type": name, "parameters": parameters.get(name.replace("-", "_"), {})} for name in (*names, *others)]
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": entries,
            "schedulingProfiles": [{"name": "default", "plugins": refs}],
        }
    )


LEAST_BUSY = config("active-request-scorer", others=["recorder"])
"""The endpoint with the fewest requests in flight; and an observer that records what it hears."""


async def until(condition: Callable[[], Any], what: str) -> None:
    """Waits until the condition holds; AssertionError if it does not in time."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        await asyncio.sleep(0.002)


class Stream:
    """One ext_proc stream, as Envoy would hold it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, *messages: ProcessingRequest) -> None:
        """Sends messages without waiting for answers."""
        for message in messages:
            await self._timely(self._call.write(message))

    async def receive(self) -> ProcessingResponse:
        """The next answer."""
        reply = await self._timely(self._call.read())
        assert reply is not grpc.aio.EOF, "the stream has ended"
        return reply

    async def ask(self, *messages: ProcessingRequest) -> ProcessingResponse:
        """Sends messages; the next answer."""
        await self.send(*messages)
        return await self.receive()

    async def rest(self) -> list[ProcessingResponse]:
        """Closes our side as Envoy does; every answer that still comes. The stream ends with OK."""
        await self._timely(self._call.done_writing())
        replies, code, _ = await self.ended()
        assert code is grpc.StatusCode.OK
        return replies

    async def ended(self) -> tuple[list[ProcessingResponse], grpc.StatusCode, str]:
        """Waits until the picker ends the stream: the answers that still come, the status and its details."""
        replies = []
        try:
            while (reply := await self._timely(self._call.read())) is not grpc.aio.EOF:
                replies.append(reply)
        except grpc.aio.AioRpcError as error:
            return replies, error.code(), error.details() or ""
        return replies, await self._call.code(), ""

    def cancel(self) -> None:
        """Breaks the stream off, as Envoy does when the client has gone."""
        self._call.cancel()

    async def _timely(self, awaitable: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(awaitable, DEADLINE)


class Picker:
    """`async with Picker(config) as picker, picker.stream() as stream: reply = await stream.ask(request_headers())`.

    Attributes:
        pool: the endpoints: `pod-0` at 10.0.0.1:8000 and so on, idle and fresh.
        clock: stands still unless told otherwise.
        crashes: faults of our own.
        failed: `ip:port` of failed connections, `suspected`: of 503s.
    """

    def __init__(
        self,
        text: str = LEAST_BUSY,
        *,
        endpoints: int | Sequence[Endpoint] = 2,
        default: BodyMode = BodyMode.FULL_DUPLEX_STREAMED,
        limit: int = LIMIT,
        **options: bool,
    ) -> None:
        if isinstance(endpoints, int):
            endpoints = [Endpoint(f"pod-{number}", f"10.0.0.{number + 1}", 8000) for number in range(endpoints)]
        self.clock = FakeClock()
        self.pool = Pool()
        for endpoint in endpoints:
            self.add(endpoint)
        self.crashes: list[Exception] = []
        self.failed: list[str] = []
        self.suspected: list[str] = []
        self._written = io.BytesIO()
        self.router = load(text, "test", plugins.registry(Registry.installed()), self._context)
        self.pipeline = self._pipeline(Options(**options))
        self.processor = ExternalProcessor(self.pipeline.open, Modes(default, default), limit, self.crashes.append)

    def add(self, endpoint: Endpoint) -> None:
        """Takes an endpoint in, as if it had just been scraped."""
        slot = self.pool.add(endpoint)
        values = {WAITING: 0.0, RUNNING: 0.0, KV_USAGE: 0.0}
        self.pool.write(slot, values, now=self.clock(), fresh_until=math.inf)

    def _context(self, name: str) -> Context:
        return Context(name, self.clock, random.Random(0), self.pool)

    def _pipeline(self, options: Options) -> Pipeline:
        self.metrics = Metrics(self.pool, "test", streams=True, now=self.clock)
        families = self.metrics.families
        self.decisions = Decisions()
        self.requests = RequestLog(self._written, lambda *_: None)
        guard = TimingGuard(families["llm_d_epp_plugin_duration_seconds"], families["llm_d_epp_plugin_faults_total"])
        observe = Observability(self.metrics, self.decisions, self.requests, guard)
        health = Health(self.failed.append, self.suspected.append)
        return Pipeline(self.pool, Hooks.of(self.router), observe, self.clock, lambda: 1.5e9, options, health)

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers((self.processor.handler(),))
        self.port = port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
        await self._server.stop(None)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[Stream]:
        """A new stream; it is broken off at the end of the block unless it has ended."""
        method = self._channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=ProcessingResponse.FromString,
        )
        call = method()
        try:
            yield Stream(call)
        finally:
            call.cancel()

    # --- what is seen from outside

    def plugin(self, name: str) -> Any:
        """A plugin's instance."""
        return next(plugged.plugin for plugged in plugins_of(self.router) if plugged.name == name)

    def heard(self, what: str = "") -> list[Any]:
        """What the recorder has heard, or of that the entries of one kind."""
        return [entry for entry in self.plugin("recorder").heard if not what or entry[0] == what]

    def inflight(self) -> dict[str, tuple[float, float]]:
        """Requests and tokens in flight, by `ip:port` of the endpoints that have any."""
        counts = {}
        for slot, endpoint in enumerate(self.pool.endpoints):
            own = float(self.pool.column(INFLIGHT_REQUESTS)[slot]), float(self.pool.column(INFLIGHT_TOKENS)[slot])
            if any(own):
                counts[endpoint.hostport if endpoint else f"free slot {slot}"] = own
        return counts

    def streams(self) -> int:
        """How many streams are open."""
        return int(self.metrics.streams_inflight.value)

    def running(self) -> float:
        """What `llm_d_epp_request_running` says in all."""
        return float(sum(child.value for child in self.metrics.families["llm_d_epp_request_running"].children.values()))

    async def settled(self) -> None:
        """Waits until every stream has ended; then nothing is in flight any more."""
        await until(lambda: not self.streams(), "every stream has ended")
        assert (self.inflight(), self.running()) == ({}, 0)

    def compared(self, other: str) -> dict[str, float]:
        """How often decisions were compared with the other's, by result."""
        children = self.metrics.families["llm_d_epp_compared_decisions_total"].children
        return {result: child.value for (against, result), child in children.items() if against == other}

    def keep_log(self, file: Path) -> DecisionLog:
        """Has a decision log written, which the test closes."""
        rows = self.metrics.families["llm_d_epp_decision_log_rows_total"]
        log = DecisionLog(LogOptions(file), rows, lambda *_: None, lambda: 1.5e9, random.Random(0))
        self.pipeline.observe.log = log
        return log

    def faults(self) -> dict[tuple[str, str, str], float]:
        """What went wrong in plugins: how often, by extension point, plugin and fault."""
        children = self.metrics.families["llm_d_epp_plugin_faults_total"].children
        return {(point, name, fault): child.value for (point, _, name, fault), child in children.items()}

    def log(self) -> list[dict[str, Any]]:
        """The lines of the request log."""
        self.requests.flush()
        return [json.loads(line) for line in self._written.getvalue().splitlines()]
