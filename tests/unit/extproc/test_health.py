"""gRPC health, over real gRPC."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from epp.extproc.health import NAMES, HealthService

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
READINESS = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension", "anything"]


class Served:
    """Health on two servers, as in the picker: its own port and the ext_proc port."""

    def __init__(self, health: HealthService, stubs: list[HealthStub]) -> None:
        self.health = health
        self.stubs = stubs
        self.synced = True

    async def status(self, service: str, port: int = 0) -> int:
        response = await self.stubs[port].Check(HealthCheckRequest(service=service), timeout=10)
        return int(response.status)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    health = HealthService(lambda: result.synced)
    servers, channels = [], []
    for _ in range(2):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((health.handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    result = Served(health, [HealthStub(channel) for channel in channels])
    yield result
    health.close()
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(None)


@pytest.mark.parametrize("service", READINESS)
async def test_every_name_but_liveness_follows_readiness(served: Served, service: str) -> None:
    """The names that Kubernetes, KServe and Envoy ask for, and any other."""
    assert await served.status(service) == SERVING
    served.synced = False
    assert await served.status(service) == NOT_SERVING
    served.synced = True
    served.health.set_ready(False)
    assert await served.status(service) == NOT_SERVING
    served.health.set_ready(True)
    assert await served.status(service) == SERVING


async def test_liveness_is_serving_whatever_happens(served: Served) -> None:
    served.synced = False
    served.health.set_ready(False)
    assert await served.status("liveness") == SERVING


async def test_both_ports_tell_the_same(served: Served) -> None:
    served.health.set_ready(False)
    assert [await served.status("", port) for port in (0, 1)] == [NOT_SERVING, NOT_SERVING]


async def test_list_names_the_known_services(served: Served) -> None:
    served.synced = False
    response = await served.stubs[0].List(HealthListRequest(), timeout=10)
    assert {name: entry.status for name, entry in response.statuses.items()} == {
        name: SERVING if name == "liveness" else NOT_SERVING for name in NAMES
    }


async def test_a_watcher_hears_of_changes_and_of_nothing_else(served: Served) -> None:
    served.synced = False
    watch = served.stubs[0].Watch(HealthCheckRequest(service=""), timeout=30)
    assert (await watch.read()).status == NOT_SERVING
    served.health.set_ready(True)  # and yet not ready: nothing to tell
    served.synced = True
    served.health.set_ready(True)
    assert (await watch.read()).status == SERVING
    served.health.set_ready(False)
    assert (await watch.read()).status == NOT_SERVING
    served.health.close()
    assert await watch.read() is grpc.aio.EOF
    assert await watch.code() is grpc.StatusCode.OK


async def test_a_watcher_of_liveness_only_hears_the_end(served: Served) -> None:
    watch = served.stubs[0].Watch(HealthCheckRequest(service="liveness"), timeout=30)
    assert (await watch.read()).status == SERVING
    served.health.set_ready(False)
    served.health.close()
    assert await watch.read() is grpc.aio.EOF


async def test_watching_after_the_end_ends_at_once(served: Served) -> None:
    served.health.close()
    watch = served.stubs[0].Watch(HealthCheckRequest(service=""), timeout=30)
    assert await watch.read() is grpc.aio.EOF


async def test_a_server_with_a_watcher_stops_once_health_is_closed() -> None:
    """Without `close` it would wait for the watcher for as long as the grace allows."""
    health = HealthService()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((health.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service=""))
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(server.stop(3600))
        health.close()
        await asyncio.wait_for(stopping, 10)


async def test_a_watcher_that_leaves_disturbs_nobody(served: Served) -> None:
    leaving = served.stubs[0].Watch(HealthCheckRequest(service=""), timeout=30)
    staying = served.stubs[0].Watch(HealthCheckRequest(service=""), timeout=30)
    assert (await leaving.read()).status == (await staying.read()).status == SERVING
    leaving.cancel()
    served.health.set_ready(False)
    assert (await staying.read()).status == NOT_SERVING


def test_repr_shows_the_state() -> None:
    health = HealthService(lambda: False)
    assert repr(health) == "<HealthService: not ready>"
    health.close()
    assert repr(health) == "<HealthService: not ready, closed>"


@pytest.mark.parametrize("leads", [True, False])
async def test_only_a_leader_is_ready(leads: bool) -> None:
    """A follower lives; names that nobody knows are unknown to either."""
    health = HealthService(lambda: True, lambda: leads)
    ready = SERVING if leads else NOT_SERVING
    expected = dict.fromkeys(["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"], ready)
    expected |= {"liveness": SERVING}
    expected |= dict.fromkeys(["inference-extension", "anything"], HealthCheckResponse.SERVICE_UNKNOWN)
    found = {name: (await health.check(HealthCheckRequest(service=name), None)).status for name in expected}
    assert found == expected
    health.set_ready(False)
    assert not health.ready


async def test_a_watcher_hears_that_we_lead() -> None:
    leading = False
    health = HealthService(lambda: True, lambda: leading)
    told = health.watch(HealthCheckRequest(), None)
    assert (await anext(told)).status == NOT_SERVING
    leading = True
    health.changed()
    assert (await anext(told)).status == SERVING
    health.close()
