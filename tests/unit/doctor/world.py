"""A cluster that is well: a pool with two model servers and a picker, each a real server on an address of its own."""

import asyncio
import copy
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import grpc
from aiohttp import web

from epp.doctor.cluster import LLM_SERVICES, POD_METRICS
from epp.doctor.examine import Options, examine
from epp.doctor.findings import Finding, Findings
from epp.doctor.target import Wanted
from epp.extproc.health import HealthService
from epp.kube.access import Access, FixedToken
from epp.kube.client import Api, Resource
from tests.kube.api import FakeApi, pod, pool

NAMESPACE = "llm"
LABELS = {"app": "llama"}
ADDRESSES = ("127.0.0.2", "127.0.0.3")
PICKER = "127.0.0.4"
PAGE = """\
vllm:num_requests_waiting{model_name="m"} 0
vllm:num_requests_running{model_name="m"} 1
vllm:kv_cache_usage_perc{model_name="m"} 0.25
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1
"""
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}, {"id": "adapter", "object": "model"}]}'
RIGHTS = {"status": {"allowed": True}}


class Server(FakeApi):
    """The API server, which also passes requests on to pods, has their logs, and says who asks.

    Attributes:
        logs: of pods, by name.
        me: who asks; "" if that can't be asked.
        clock: seconds that its clock is ahead of ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[str, str] = {}
        self.me = "admin"
        self.clock = 0.0
        self.reviewed: list[Any] = []
        self.serve(("LLMInferenceService", LLM_SERVICES[0]), ("PodMetrics", POD_METRICS))
        self.serve(("DestinationRule", Resource("networking.istio.io", "v1", "destinationrules")))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        response = await self._answered(request)
        response.headers["Date"] = format_datetime(datetime.now(UTC) + timedelta(seconds=self.clock), usegmt=True)
        return response

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if parts[-1] == "log":
            found = self.logs.get(parts[-2])
            return web.Response(text=found) if found is not None else web.Response(status=403)
        if parts[-1] == "selfsubjectreviews":
            if not self.me:
                return web.Response(status=404)
            return web.json_response({"status": {"userInfo": {"username": self.me}}}, status=201)
        if "proxy" in parts:
            return await self._pass(parts)
        if parts[-1] in ("subjectaccessreviews", "selfsubjectaccessreviews"):
            return await self._access(request, parts[-1])
        return await super()._answer(request)

    async def _access(self, request: web.Request, plural: str) -> web.Response:
        review = await request.json()
        self.reviewed.append((plural, review["spec"]))
        if ("create", plural) in self.denied:
            return web.Response(status=403)
        asked = review["spec"]["resourceAttributes"]
        review["status"] = {"allowed": (asked["verb"], asked["resource"]) not in self.denied}
        return web.json_response(review, status=201)

    async def _pass(self, parts: list[str]) -> web.Response:
        *scheme, name, port = parts[5].split(":")
        (found,) = [each for each in self.objects("Pod") if each["metadata"]["name"] == name]
        url = f"{scheme[0] if scheme else 'http'}://{found['status']['podIP']}:{port}/{'/'.join(parts[7:])}"
        async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as response:
            return web.Response(body=await response.read(), status=response.status)


class World:
    """What is there, and its parts to be changed before it is looked at.

    Attributes:
        pages: of the model servers, by address: what `/metrics` answers.
    """

    def __init__(self, stack: AsyncExitStack, api: Server) -> None:
        self.api = api
        self.pages: dict[str, str | int] = dict.fromkeys(ADDRESSES, PAGE)
        self.models: dict[str, bytes] = dict.fromkeys(ADDRESSES, MODELS)
        self.ready = True
        self.alive = True
        self.port = 0
        self.ports: dict[str, int] = {}
        self._stack = stack

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        for address in ADDRESSES:
            self.port = await self._serve(self._engine(address), address, self.port, tls)
        self.ports["metrics"] = await self._serve(self._metrics, PICKER)
        health = HealthService(lambda: self.ready)
        for name in ("grpc-health", "grpc"):
            server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            server.add_generic_rpc_handlers((health.handler(),))
            self.ports[name] = server.add_insecure_port(f"{PICKER}:0")
            await server.start()
            self._stack.push_async_callback(server.stop, 0)
        self._objects()

    def _objects(self) -> None:
        conditions = [{"type": kind, "status": "True", "reason": kind} for kind in ("Accepted", "ResolvedRefs")]
        gateway = {"parentRef": {"name": "gateway"}, "controllerName": "example.com/c", "conditions": conditions}
        made = pool("llama", LABELS, [self.port], namespace=NAMESPACE)
        made["status"] = {"parents": [copy.deepcopy(gateway)]}
        backend = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "llama"}
        route = {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "route", "namespace": NAMESPACE},
            "spec": {"parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [backend]}]},
            "status": {"parents": [copy.deepcopy(gateway)]},
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "llama-epp", "namespace": NAMESPACE},
            "spec": {"selector": {"app": "epp"}, "ports": [{"port": 9002, "targetPort": "grpc"}]},
        }
        self.api.apply(made, route, service)
        for index, address in enumerate(ADDRESSES):
            self.api.apply(pod(f"llama-{index}", address, namespace=NAMESPACE, labels=LABELS))
        self.api.apply(self.picker())
        self.api.logs["epp-0"] = '{"level": "info", "msg": "serving"}\n'

    def picker(self, *flags: str, name: str = "epp-0", ready: bool = True) -> dict[str, Any]:
        """The picker's pod with these flags besides its usual ones."""
        made = pod(name, PICKER, namespace=NAMESPACE, labels={"app": "epp"}, ready=ready)
        ports = [{"name": key, "containerPort": port} for key, port in self.ports.items()]
        arguments = ["--pool-name", "llama", "--secure-serving=false", *flags]
        made["spec"]["containers"] = [{"name": "main", "args": arguments, "ports": ports}]
        made["spec"]["serviceAccountName"] = "epp"
        return made

    def lease(self, holder: str = "epp-0", renewed: datetime | None = None) -> dict[str, Any]:
        """The leader's."""
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 15}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": f"epp-{NAMESPACE}-llama.llm-d.ai", "namespace": NAMESPACE},
            "spec": spec | {"renewTime": (renewed or datetime.now(UTC)).isoformat()},
        }

    def change(self, kind: str, name: str, update: Callable[[dict[str, Any]], Any]) -> None:
        """Changes an object."""
        (found,) = [each for each in self.api.objects(kind) if each["metadata"]["name"] == name]
        changed = copy.deepcopy(found)
        update(changed)
        self.api.apply(changed)

    async def examined(self, wanted: Wanted | None = None, **options: Any) -> Findings:
        """What the doctor finds."""
        findings = Findings()
        client = Api(Access(self.api.url, FixedToken()))
        given = {"timeout": 2.0, "inside": True} | options
        try:
            await examine(client, findings, Options(wanted or Wanted(NAMESPACE, name="llama"), **given))
        finally:
            await client.aclose()
        return findings

    async def _serve(
        self,
        answer: Callable[[web.Request], Awaitable[web.Response]],
        address: str,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> int:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, address, port, ssl_context=tls).start()
        return int(runner.addresses[0][1])

    def _engine(self, address: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            if request.path == "/v1/models":
                return web.Response(body=self.models[address])
            page = self.pages[address]
            return web.Response(status=page) if isinstance(page, int) else web.Response(text=page)

        return answer

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(status=401)


@asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[World]:
    """A world, and its end."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Server())
        world = World(stack, api)
        await world.start(tls)
        yield world
        await asyncio.sleep(0)


def states(findings: Findings, state: str) -> dict[str, str]:
    """The messages of one state by check."""
    return {each.check: each.message for each in findings if each.state == state}


def only(findings: Findings, state: str) -> Finding:
    """The one finding of a state that is no sign of another one."""
    (found,) = [each for each in findings if each.state == state]
    return found
