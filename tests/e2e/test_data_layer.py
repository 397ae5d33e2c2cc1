"""`epp serve` with a configuration that says where the endpoints and their metrics come from."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.e2e.process import DEADLINE, PORTS, Picker

pytestmark = pytest.mark.e2e

STATS = 'my_queue{kind="waiting"} 3\nmy_queue{kind="all"} 7\nmy_running 1\n'


def configuration(folder: Path) -> str:
    plugins = [
        {"type": "queue-scorer"},
        {"type": "file-discovery", "parameters": {"path": str(folder / "endpoints.yaml"), "watchFile": True}},
        {"type": "metrics-data-source", "parameters": {"path": "/stats", "interval": "100ms"}},
        {
            "type": "core-metrics-extractor",
            "parameters": {
                "defaultEngine": "mine",
                "engineConfigs": [{"name": "mine", "queuedRequestsSpec": "my_queue{kind=waiting}"}],
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
async def engine() -> AsyncIterator[int]:
    """A server with a metrics page of its own kind; its port."""

    async def stats(_: web.Request) -> web.Response:
        return web.Response(text=STATS)

    app = web.Application()
    app.router.add_get("/stats", stats)
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
    """The endpoints are the file's, and their queue is read off the page and by the name that the plugins say."""
    (tmp_path / "config.json").write_text(configuration(tmp_path))
    async with engine() as port:
        endpoints = {"endpoints": [{"name": "mine", "address": "127.0.0.1", "port": str(port)}]}
        (tmp_path / "endpoints.yaml").write_text(json.dumps(endpoints))
        async with serve(["--config-file", str(tmp_path / "config.json")]) as picker:
            await picker.until_serving()
            line = 'llm_d_epp_per_endpoint_queue_size{model_server_endpoint="mine",name="default"} 3.0'
            async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE):
                while line not in await metrics(session, picker):
                    pass  # it is scraped ten times a second


async def metrics(session: aiohttp.ClientSession, picker: Picker) -> list[str]:
    async with session.get(f"http://127.0.0.1:{picker.metrics}/metrics") as response:
        return (await response.text()).splitlines()


async def test_two_places(tmp_path: Path) -> None:
    """Endpoints on the command line beside it are an error."""
    (tmp_path / "config.json").write_text(configuration(tmp_path))
    async with serve(["--config-file", str(tmp_path / "config.json"), "--endpoints", "127.0.0.1:9"]) as picker:
        assert await picker.end() == 1
    assert "the model servers come from --endpoints and from dataLayer.discovery of the configuration" in picker.log[-1]
