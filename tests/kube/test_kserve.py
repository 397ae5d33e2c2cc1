"""Started as KServe starts llm-d's picker, with every preset's arguments, it does what they say."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import aiohttp
import grpc
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from epp.extproc.tls import self_signed
from tests.e2e.harness import until
from tests.e2e.upstream import METRICS
from tests.kube.api import FakeApi, pod, pool
from tests.kube.harness import SERVING, KubernetesPicker

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).parents[1] / "configs"
CERTS = "/var/run/kserve/tls"
POOL, NAMESPACE = "llama-inference-pool", "demo"
SELECTOR = {
    "app.kubernetes.io/name": "llama",
    "app.kubernetes.io/part-of": "llminferenceservice",
    "kserve.io/component": "workload",
}
PLAIN = ("--pool-name", POOL, "--pool-namespace", NAMESPACE, "--zap-encoder", "json")
PLAIN += ("--grpc-port", "9002", "--grpc-health-port", "9003")
EMPTY = ("", "", "", "")
TLS = (
    "--enable-cert-reload=true",
    "--secure-serving=true",
    "--model-server-metrics-scheme=https",
    "--cert-path",
    CERTS,
)
CAMEL = ("--poolName", POOL, "--poolNamespace", NAMESPACE, "--zap-encoder", "json", "--grpcPort", "9002")
CAMEL += ("--grpcHealthPort", "9003")
CAMEL_TLS = ("--secureServing", "--modelServerMetricsScheme", "https", "--certPath", CERTS)
CAMEL_TLS += ("--modelServerMetricsHttpsInsecureSkipVerify=true",)


@dataclass(frozen=True)
class Preset:
    """How a release starts the picker.

    Attributes:
        arguments: of the preset and of what the controller adds, the configuration aside.
        config: the file with the configuration that the controller generates.
        tls: whether the engines serve https, and the certificate is the mounted one.
        probe: the health service that the preset's probes ask for.
        pools: the versions of the InferencePool that it writes.
        elects: whether there are several replicas, of which one leads.
    """

    arguments: Sequence[str]
    config: str
    tls: bool = False
    probe: str = "readiness"
    pools: str = "both"
    elects: bool = False


EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
PRESETS = {
    "0.16": Preset(CAMEL, "kserve-default-0.16", probe=EXT_PROC, pools="v1alpha2"),
    "0.16, TLS": Preset((*CAMEL, *CAMEL_TLS), "kserve-default-0.16", tls=True, probe=EXT_PROC, pools="v1alpha2"),
    "0.17, P/D": Preset(
        (*PLAIN, *EMPTY, "--kv-cache-usage-percentage-metric", "vllm:kv_cache_usage_perc"), "kserve-pd-0.17"
    ),
    "0.18, P/D": Preset((*PLAIN, *EMPTY), "kserve-pd-0.18"),
    "0.19, TLS": Preset((*PLAIN, *TLS), "kserve-pd-0.18", tls=True),
    "0.20, LoRA, TLS": Preset((*PLAIN, *TLS), "kserve-lora-0.20", tls=True),
    "router 0.10": Preset((*PLAIN, *EMPTY, "--tracing=true"), "kserve-default"),
    "router 0.10, TLS": Preset(
        (*PLAIN, *(each for each in TLS if "metrics" not in each)), "kserve-metrics-source", tls=True
    ),
    "router 0.10, two replicas, a precise prefix": Preset(
        (*PLAIN, *EMPTY, "--ha-enable-leader-election"), "precise", elects=True
    ),
    "router 0.10, the old pool named, everything twice": Preset(
        (*PLAIN, *EMPTY, *PLAIN, "-v=4", "--pool-group", "inference.networking.x-k8s.io"), "kserve-pd", pools="both"
    ),
}


@asynccontextmanager
async def engine(tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server with vLLM's metrics; its port."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


class Service:
    """An LLMInferenceService's picker: the process, its certificate, its API server."""

    def __init__(self, folder: Path, preset: Preset) -> None:
        self._folder, self._preset = folder, preset
        self._stack = AsyncExitStack()
        pair = self_signed(("localhost", "llama-epp-service.demo.svc"), datetime.now(UTC))
        (folder / "tls.crt").write_bytes(pair.chain)
        (folder / "tls.key").write_bytes(pair.key)
        (folder / "ca.crt").write_bytes(pair.chain)
        self.authority = pair.chain

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tls = None
            if self._preset.tls:
                tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                tls.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
            port = await stack.enter_async_context(engine(tls))
            self.fake = await stack.enter_async_context(FakeApi())
            self._deploy(port)
            config = (CONFIGS / f"{self._preset.config}.yaml").read_text()
            arguments = [str(self._folder) if each == CERTS else each for each in self._preset.arguments]
            kubeconfig = self.fake.kubeconfig(self._folder / "kubeconfig")
            picker = KubernetesPicker(kubeconfig, *arguments, "--config-text", config)
            self.picker = await stack.enter_async_context(picker)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _deploy(self, port: int) -> None:
        if self._preset.pools == "v1alpha2":
            self.fake.unserve("inference.networking.k8s.io/v1")
        else:
            self.fake.apply(pool(POOL, SELECTOR, (port,), namespace=NAMESPACE))
        self.fake.apply(pool(POOL, SELECTOR, (port,), namespace=NAMESPACE, old=True))
        labels = SELECTOR | {"llm-d.ai/role": "both"}
        self.fake.apply(pod("llama-kserve-0", "127.0.0.1", namespace=NAMESPACE, labels=labels))
        self.fake.apply(pod("llama-kserve-router-scheduler-0", "127.0.0.9", namespace=NAMESPACE, labels={"a": "b"}))

    async def over_tls(self, authority: bytes, name: str) -> int:
        """What health says on the ext_proc port, over TLS that is checked."""
        credentials = grpc.ssl_channel_credentials(authority)
        options = [("grpc.ssl_target_name_override", name)]
        async with grpc.aio.secure_channel(str(self.picker.address), credentials, options) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0)
            return int(answer.status)

    async def metrics(self, token: str) -> tuple[int, str]:
        """The status and the text of /metrics."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"http://{self.picker.metrics_address}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
            return answer.status, await answer.text()


async def check(folder: Path, preset: Preset) -> None:
    async with Service(folder, preset) as service:
        service.fake.users = {"of-prometheus": {"username": "prometheus"}, "of-somebody": {"username": "somebody"}}
        service.fake.readers = {"prometheus"}
        for name in (preset.probe, "liveness", *(() if preset.elects else ("inference-extension",))):
            await until(lambda name=name: serving(service, name), f"{name} is SERVING")
        if preset.tls:
            assert await service.over_tls(service.authority, "llama-epp-service.demo.svc") == SERVING
        else:
            certificate = ssl.get_server_certificate((service.picker.address.host, service.picker.address.port))
            assert await service.over_tls(certificate.encode(), "localhost") == SERVING
        assert [(await service.metrics(token))[0] for token in ("", "nonsense", "of-somebody")] == [401, 401, 403]

        async def scraped() -> bool:
            status, page = await service.metrics("of-prometheus")
            return status == 200 and f'llm_d_epp_ready_endpoints{{name="{POOL}"}} 1.0' in page

        await until(scraped, "the engine is scraped")
        leases = [(each["metadata"]["namespace"], each["metadata"]["name"]) for each in service.fake.objects("Lease")]
        assert leases == ([(NAMESPACE, f"epp-{NAMESPACE}-{POOL}.llm-d.ai")] if preset.elects else [])


async def test_every_preset(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each becomes ready, scrapes the engine by the scheme it is told, and shows metrics to whoever may see them."""
    gate = asyncio.Semaphore(3)  # a start takes a second of a core

    async def one(name: str) -> None:
        async with gate:
            try:
                await check(tmp_path_factory.mktemp("kserve"), PRESETS[name])
            except BaseException as error:
                error.add_note(f"KServe {name}")
                raise

    async with asyncio.TaskGroup() as tasks:
        for name in PRESETS:
            tasks.create_task(one(name))


async def serving(service: Service, name: str) -> bool:
    return bool(await service.picker.status(name) == SERVING)
