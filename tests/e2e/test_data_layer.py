"""`epp serve` with a configuration that says where the endpoints and their metrics come from."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest
from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.extproc.events import BodyMode
from epp.extproc.server import SERVICE
from tests.e2e.harness import until
from tests.e2e.process import DEADLINE, PORTS, Picker
from tests.stream.envoy import send_request
from tests.stream.messages import destination
from tests.stream.picker import Stream

pytestmark = pytest.mark.e2e

STATS = 'my_queue{kind="waiting"} 3\nmy_queue{kind="all"} 7\nmy_running 1\n'


def configuration(folder: Path, kind: str = "waiting") -> str:
    plugins = [
        {"type": "queue-scorer"},
        {"type": "file-discovery", "parameters": {"path": str(folder / "endpoints.yaml"), "watchFile": True}},
        {"type": "metrics-data-source", "parameters": {"path": "/stats", "interval": "100ms"}},
        {
            "type": "core-metrics-extractor",
            "parameters": {
                "defaultEngine": "mine",
                "engineConfigs": [{"name": "mine", "queuedRequestsSpec": f"my_queue{{kind={kind}}}"}],
            },
        },
    ]
    return json.dumps(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": plugins,
            "dataLayer": {"discovery": {"pluginRef": "file-discovery"}},
        }
    )


@asynccontextmanager
async def engine(path: str = "/stats", page: str = STATS) -> AsyncIterator[int]:
    """A server with a metrics page of its own kind; its port."""

    async def stats(_: web.Request) -> web.Response:
        return web.Response(text=page)

    app = web.Application()
    app.router.add_get(path, stats)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve(arguments: Sequence[str]) -> AsyncIterator[Picker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "epp", "serve", *PORTS, *arguments), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Picker(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_endpoints_and_metrics(tmp_path: Path) -> None:
    """The endpoints are the file's, and their queue is read off the page and by the name that the plugins say.

    Another name counts as soon as the file has it.
    """
    file = tmp_path / "config.json"
    file.write_text(configuration(tmp_path))
    async with engine() as port:
        endpoints = {"endpoints": [{"name": "mine", "address": "127.0.0.1", "port": str(port)}]}
        (tmp_path / "endpoints.yaml").write_text(json.dumps(endpoints))
        async with serve(["--config-file", str(file)]) as picker:
            await picker.until_serving()
            line = 'llm_d_epp_per_endpoint_queue_size{model_server_endpoint="mine",name="default"}'
            async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE):
                while f"{line} 3.0" not in await metrics(session, picker):
                    pass  # it is scraped ten times a second
                file.write_text(configuration(tmp_path, kind="all"))
                picker.process.send_signal(signal.SIGHUP)
                while f"{line} 7.0" not in await metrics(session, picker):
                    pass


async def metrics(session: aiohttp.ClientSession, picker: Picker) -> list[str]:
    async with session.get(f"http://127.0.0.1:{picker.metrics}/metrics") as response:
        return (await response.text()).splitlines()


async def test_two_places(tmp_path: Path) -> None:
    """Endpoints on the command line beside it are an error."""
    (tmp_path / "config.json").write_text(configuration(tmp_path))
    async with serve(["--config-file", str(tmp_path / "config.json"), "--endpoints", "127.0.0.1:9"]) as picker:
        assert await picker.end() == 1
    assert "the model servers come from --endpoints and from dataLayer.discovery of the configuration" in picker.log[-1]


def clusters(metric: str) -> str:
    """A picker in front of two clusters' gateways, which goes by that metric of their pickers."""
    plugins = [
        {"type": "multicluster-metrics-data-source", "parameters": {"scheme": "http", "interval": "100ms"}},
        {"type": "multicluster-metrics-extractor", "parameters": {"queueSizeMetric": metric}},
        {"type": "multicluster-queue-scorer"},
    ]
    return json.dumps({"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins})


async def goes(channel: grpc.aio.Channel) -> str:
    """Where a request goes."""
    process = channel.stream_stream(
        f"/{SERVICE}/Process",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=ProcessingResponse.FromString,
    )
    stream = Stream(process())
    found = destination((await send_request(stream, BodyMode.BUFFERED)).route)
    await stream.rest()
    return found


async def test_clusters(tmp_path: Path) -> None:
    """Their pages are fetched in place of engines' metrics; another metric is gone by as soon as the file says so."""
    file = tmp_path / "config.json"
    file.write_text(clusters("llm_d_epp_average_queue_size"))
    pages = [f"llm_d_epp_average_queue_size {queue}\nother {9 - queue}\n" for queue in (9, 0)]
    async with engine("/metrics", pages[0]) as busy, engine("/metrics", pages[1]) as idle:
        endpoints = f"127.0.0.1:{busy},127.0.0.1:{idle}"
        async with serve(["--config-file", str(file), "--endpoints", endpoints, "--secure-serving=false"]) as picker:
            await picker.until_serving()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc}") as channel:

                async def all_to(port: int) -> bool:
                    return {await goes(channel) for _ in range(8)} == {f"127.0.0.1:{port}"}

                await until(lambda: all_to(idle), "the cluster with the shorter queue gets everything")
                file.write_text(clusters("other"))
                picker.process.send_signal(signal.SIGHUP)
                await until(lambda: all_to(busy), "the other metric counts")
