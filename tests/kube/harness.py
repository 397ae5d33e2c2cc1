"""`epp serve` in Kubernetes, as far as it can tell: a process with a kubeconfig of the fake API server."""

import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from epp.envoy.options import Address
from tests.e2e.harness import Picker, free_port

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class KubernetesPicker(Picker):
    """`epp serve` with a kubeconfig and exactly these arguments, besides ports. It has started once it is alive.

    Args:
        kubeconfig: see `FakeApi.kubeconfig`.
        arguments: of `epp serve`.
        host: a loopback address, the pod's in its place.
        ports: of ext_proc, health and metrics; free ones if there are none.
        environ: more of the environment.
    """

    def __init__(
        self,
        kubeconfig: Path,
        *arguments: str,
        host: str = "127.0.0.1",
        ports: tuple[int, int, int] | None = None,
        environ: dict[str, str] | None = None,
    ) -> None:
        super().__init__(())
        grpc_port, health, metrics = ports or (free_port(), free_port(), free_port())
        self.address, self.health = Address(host, grpc_port), Address(host, health)
        self.metrics_address = Address("127.0.0.1" if host == "127.0.0.1" else host, metrics)
        self._arguments = arguments
        self._environ = {"KUBECONFIG": str(kubeconfig), "POD_IP": host} | (environ or {})

    def command(self) -> list[str]:
        """The command line; of a flag that is there twice the last one counts."""
        return [
            *("env", *(f"{name}={value}" for name, value in self._environ.items())),
            *(sys.executable, "-m", "epp", "serve", *self._arguments),
            *(f"--grpc-bind-address={self.address.host}", f"--grpc-port={self.address.port}"),
            *(f"--grpc-health-port={self.health.port}", f"--metrics-port={self.metrics_address.port}"),
            f"--metrics-bind-address={self.metrics_address.host}",
        ]

    async def status(self, service: str = "") -> Any:
        """What its health port says of a service; None if nobody answers."""
        async with grpc.aio.insecure_channel(str(self.health)) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            try:
                return (await check(health_pb2.HealthCheckRequest(service=service), timeout=5.0)).status
            except grpc.aio.AioRpcError:
                return None

    async def ready(self) -> bool:
        """Whether it says that requests should come."""
        return bool(await self.status() == SERVING)

    async def _serving(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"the picker ended:\n{self.log()}"
        return bool(await self.status("liveness") == SERVING)
