"""The configuration is changed twenty times while a real Envoy brings 200 requests a second; one change is broken."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.harness import Stage, completion, until
from tests.e2e.versions import CONFIG, TAG

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RATE, REQUESTS = 200, 2000
SWAPS, BROKEN = 20, 10
EVERY = REQUESTS // (SWAPS + 1)
LONG = 10
"""Every so many requests there is one whose answer takes longer than a swap."""


class Load:
    """A client with a fixed rate, whatever comes back.

    Attributes:
        sent: how many requests have been sent.
        versions: of the configuration that has answered, by the request's number.
        lost: what came back that is no answer of the engine's by way of the picker.
    """

    def __init__(self, http: aiohttp.ClientSession, addresses: list[str]) -> None:
        self.sent = 0
        self.versions: dict[int, str] = {}
        self.lost: list[str] = []
        self._http = http
        self._addresses = cycle(addresses)

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        async with asyncio.TaskGroup() as requests:
            for number in range(REQUESTS):
                await asyncio.sleep(max(start + number / RATE - clock(), 0))
                requests.create_task(self._request(number))
                self.sent += 1

    async def _request(self, number: int) -> None:
        body = completion(1000 + number, number=number)
        headers = {"content-type": "application/json", "x-number": str(number)}
        if number % LONG == 0:
            headers |= {"x-pieces": "10", "x-pause": "0.06"}
        try:
            url = f"http://{next(self._addresses)}/v1/completions"
            async with self._http.post(url, data=body, headers=headers) as answer:
                whole = await answer.read() == body
                version = answer.headers.get("x-version", "")
        except aiohttp.ClientError as error:
            self.lost.append(f"{number}: {error!r}")
            return
        self.versions[number] = version
        if (answer.status, whole, bool(version)) != (200, True, True):
            self.lost.append(f"{number}: {answer.status}, whole: {whole}, version {version!r}")


class Swaps:
    """Changes the configuration of the stage's picker."""

    def __init__(self, stage: Stage, load: Load, folder: Path) -> None:
        self._stage, self._load, self._folder = stage, load, folder

    async def run(self) -> None:
        for number in range(1, SWAPS + 1):
            await until(lambda due=number * EVERY: self._load.sent >= due, "it is time for the next swap")
            write(self._folder, number)
            self._stage.picker.signal(signal.SIGHUP)
            if number == BROKEN:
                await until(self._refused, "the broken one is refused")
            else:
                await until(
                    lambda version=str(number): version in self._load.versions.values(), f"{number} is in force"
                )

    async def _refused(self) -> bool:
        return bool((await self.shown())["reloads"]["failed"])

    async def shown(self) -> Any:
        url = f"http://{self._stage.picker.metrics_address}/debug/config"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return await answer.json()


def write(folder: Path, version: int) -> None:
    """The files of that version; the plugin of the broken one is no Python."""
    (folder / "tag.py").write_text("def" if version == BROKEN else TAG.format(version=version))
    (folder / "config.yaml").write_text(CONFIG.format(version=version))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    write(tmp_path, 0)
    async with Stage(2, f"--config-file={tmp_path}/config.yaml") as stage:
        yield stage


async def test_no_request_is_lost(stage: Stage, tmp_path: Path) -> None:
    """Each is answered whole by an engine that the picker chose, under one configuration from start to end."""
    async with AsyncExitStack() as stack:
        gateways = [await stage.gateway(variant) for variant in ("standalone", "full-duplex")]
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        load = Load(http, [str(gateway.address) for gateway in gateways])
        swaps = Swaps(stage, load, tmp_path)
        async with asyncio.TaskGroup() as both:
            both.create_task(load.run())
            both.create_task(swaps.run())
        for gateway in gateways:
            await until(lambda gateway=gateway: stage.idle(gateway), "nothing is under way")
    assert load.lost == []
    arrived = [request for upstream in stage.upstreams for request in upstream.seen]
    assert len(arrived) == len(load.versions) == REQUESTS
    assert {int(request.header("x-number") or -1): request.header("x-version") for request in arrived} == load.versions
    assert set(load.versions.values()) == {str(number) for number in range(SWAPS + 1) if number != BROKEN}
    shown = await swaps.shown()
    assert (shown["earlier"], shown["streams"]) == ([], 0)
    assert shown["reloads"]["failed"] >= 1
    assert (await stage.picker.metrics()).get("llm_d_epp_plugin_faults_total", 0.0) == 0
