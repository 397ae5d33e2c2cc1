"""grpc.health.v1: whether the process lives, and whether it is ready; on the health port and on the ext_proc port.

`liveness` is SERVING as long as anybody answers. Every other name asks for readiness: "", `readiness`, the ext_proc
service's own, `inference-extension`, and whatever else a probe may have been told to ask for. Where one of several
replicas leads, only the leader is ready, and names besides the first three and `liveness` are SERVICE_UNKNOWN, as in
llm-d.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

SERVICE = "grpc.health.v1.Health"
LIVENESS = "liveness"
NAMES = ("", LIVENESS, "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
"""What `List` tells of, and what is known where there is an election."""


class HealthService:
    """The state of health. Its methods are for the event loop's thread, as are those of the servers that it is in.

    Ready is what `readiness` says, unless `set_ready(False)` holds it back, as while draining.

    Args:
        readiness: asked at every check, and for watchers whenever `set_ready` or `changed` is called.
        leads: whether we lead; None where there is no election, and all replicas are ready.
    """

    def __init__(self, readiness: Callable[[], bool] = lambda: True, leads: Callable[[], bool] | None = None) -> None:
        self._readiness = readiness
        self._leads = leads
        self._held_back = False
        self._closed = False
        self._changed = asyncio.Event()  # replaced at every change: who waits for it, waits for the next change

    def __repr__(self) -> str:
        return f"<HealthService: {'ready' if self.ready else 'not ready'}{', closed' if self._closed else ''}>"

    @property
    def ready(self) -> bool:
        """Whether requests should come here."""
        return not self._held_back and (self._leads is None or self._leads()) and self._readiness()

    def set_ready(self, ready: bool) -> None:
        """Tells watchers that readiness has changed; False holds it back, True leaves it to `readiness` again."""
        self._held_back = not ready
        self.changed()

    def changed(self) -> None:
        """Watchers look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def close(self) -> None:
        """Ends all watchers, which a server that is to stop would otherwise wait for."""
        self._closed = True
        self.changed()

    def handler(self) -> grpc.GenericRpcHandler:
        """What to add to each grpc.aio server."""
        check = grpc.unary_unary_rpc_method_handler(
            self.check, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )
        listing = grpc.unary_unary_rpc_method_handler(
            self.list, HealthListRequest.FromString, HealthListResponse.SerializeToString
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self.watch, HealthCheckRequest.FromString, HealthCheckResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Check": check, "List": listing, "Watch": watch})

    async def check(self, request: HealthCheckRequest, _: object) -> HealthCheckResponse:
        """The state of one service."""
        return self._response(request.service)

    async def list(self, _: HealthListRequest, __: object) -> HealthListResponse:
        """The state of the services that are usually asked for."""
        return HealthListResponse(statuses={name: self._response(name) for name in NAMES})

    async def watch(self, request: HealthCheckRequest, _: object) -> AsyncIterator[HealthCheckResponse]:
        """The state of one service now, and again whenever it has changed; ends with `close`."""
        told = None
        while not self._closed:
            changed, response = self._changed, self._response(request.service)
            if response != told:
                told = response
                yield response
            await changed.wait()

    def _response(self, service: str) -> HealthCheckResponse:
        if self._leads is not None and service not in NAMES:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        serving = service == LIVENESS or self.ready
        return HealthCheckResponse(status=HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)
