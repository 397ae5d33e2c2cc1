"""The configuration of a real picker is swapped under load, by signal and by file, and no request notices."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.extproc.events import BodyMode
from epp.extproc.server import SERVICE
from tests.e2e.harness import Picker, until
from tests.e2e.upstream import Upstream
from tests.e2e.versions import CONFIG, TAG
from tests.stream.envoy import send_request, send_response
from tests.stream.messages import CHAT, destination, set_headers
from tests.stream.picker import Stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SWAPS = 20
WORKERS = 200
LONG = 100
CONNECTIONS = 4  # as many as Envoy has workers; gRPC takes a hundred streams on each


def body(prompt: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()


REMEMBERED = body("What was said before the first swap is remembered after the last one. " * 20)


def _process(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        f"/{SERVICE}/Process",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=ProcessingResponse.FromString,
    )


class Client:
    """An Envoy with many requests under way at once.

    Attributes:
        versions: how many requests each version of the plugin has seen from start to end.
    """

    def __init__(self, picker: Picker, channels: Sequence[grpc.aio.Channel]) -> None:
        self.versions: Counter[str] = Counter()
        self.done = False
        self._picker = picker
        self._methods = cycle([_process(channel) for channel in channels])

    @asynccontextmanager
    async def request(self, data: bytes) -> AsyncIterator[str]:
        """A request, whose answer comes at the end of the block: both are of one version. Its destination."""
        stream = Stream(next(self._methods)())
        sent = await send_request(stream, BodyMode.BUFFERED, data, headers=CHAT | {"x-request-id": ""})
        version = set_headers(sent.route)["x-version"]
        yield destination(sent.route)
        answer = await send_response(stream, BodyMode.BUFFERED, b"{}")
        assert set_headers(answer.route)["x-version"] == version
        assert await stream.rest() == []
        self.versions[version] += 1

    async def work(self, number: int) -> None:
        """Sends one request after the other until `done`."""
        count = 0
        while not self.done:
            count += 1
            async with self.request(body(f"worker {number} says {count}")):
                pass

    async def page(self, name: str) -> Any:
        """A debug page."""
        async with aiohttp.ClientSession() as http, http.get(f"http://{self._picker.metrics_address}/{name}") as answer:
            return await answer.json()

    async def until_reloads(self, **wanted: int) -> None:
        """Waits until so many loads have come to that result."""

        async def told() -> bool:
            counted = (await self.page("debug/config"))["reloads"]
            return bool(counted == wanted)

        await until(told, f"reloads: {wanted}")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    (tmp_path / "config.yaml").write_text(CONFIG.format(version=100))
    (tmp_path / "tag.py").write_text(TAG.format(version=0))
    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(Upstream()) for _ in range(2)]
        addresses = [upstream.address for upstream in upstreams]
        picker = await stack.enter_async_context(Picker(addresses, f"--config-file={tmp_path}/config.yaml"))
        own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
        channels = [grpc.aio.insecure_channel(str(picker.address), own) for _ in range(CONNECTIONS)]
        yield Client(picker, [await stack.enter_async_context(channel) for channel in channels])
        await until(picker.idle, "nothing is in flight")


async def change(client: Client, folder: Path, number: int) -> None:
    """The swap of that number: by signal, by the plugin's file, by the configuration's file."""
    if number % 2:
        client._picker.signal(signal.SIGHUP)
    elif number % 4:
        (folder / "tag.py").write_text(TAG.format(version=number))
    else:
        (folder / "config.yaml").write_text(CONFIG.format(version=100 + number))
    await client.until_reloads(ok=number, failed=0)


async def test_swaps_under_load(client: Client, tmp_path: Path) -> None:
    """Nothing fails, requests keep the configuration that they began with, and what is known of prefixes stays."""
    async with client.request(REMEMBERED) as remembered:
        pass
    async with AsyncExitStack() as open_streams:
        for number in range(LONG):
            await open_streams.enter_async_context(client.request(body(f"a long answer, number {number}")))
        async with asyncio.TaskGroup() as workers:
            for number in range(WORKERS):
                workers.create_task(client.work(number))
            for number in range(1, SWAPS + 1):
                await change(client, tmp_path, number)
            client.done = True

        async def others_ended() -> bool:
            return (await client.page("debug/config"))["earlier"] == [{"generation": 1, "streams": LONG}]

        await until(others_ended, "the requests of the configurations between have ended")
    assert set(client.versions) == {"0", *(str(number) for number in range(2, SWAPS, 4))}
    assert client.versions["0"] > LONG
    await until(client._picker.idle, "nothing is in flight")
    assert (await client.page("debug/config"))["earlier"] == []
    before = await client._picker.metrics()
    async with client.request(REMEMBERED) as again:
        pass
    after = await client._picker.metrics()
    assert again == remembered
    assert after["scheduler_cache_hits_total"] == before["scheduler_cache_hits_total"] + 1
    assert after.get("llm_d_epp_plugin_faults_total", 0.0) == 0


async def test_a_broken_file(client: Client, tmp_path: Path) -> None:
    """A file that can't be used changes nothing, and is told; once it is mended it is in force."""
    (tmp_path / "tag.py").write_text("def")
    await client.until_reloads(ok=0, failed=1)
    shown = await client.page("debug/config")
    assert shown["generation"] == 1
    assert "tag.py can't be imported: SyntaxError" in shown["last_reload"]["error"]
    assert "the configuration stays as it was" in client._picker.log()
    async with client.request(REMEMBERED):
        pass
    (tmp_path / "tag.py").write_text(TAG.format(version=2))
    await client.until_reloads(ok=1, failed=1)
    async with client.request(REMEMBERED):
        pass
    assert client.versions == {"0": 1, "2": 1}
    plugins = {each["name"]: each for each in (await client.page("debug/plugins"))["plugins"]}
    (scored,) = plugins["prefix-cache-scorer"]["points"]
    assert (scored["extension_point"], scored["calls"], scored["faults"]) == ("Scorer", 2, {})
