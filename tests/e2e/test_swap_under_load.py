"""The configuration is changed twenty times while a real Envoy brings 200 requests a second; one change is broken."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from epp.envoy.process import EnvoyProcess
from tests.e2e.harness import Stage, completion, until
from tests.e2e.versions import CONFIG, TAG

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RATE, REQUESTS = 200, 2000
SWAPS, BROKEN = 20, 10
EVERY = REQUESTS // (SWAPS + 1)
PATIENCE = 60.0
"""Seconds that Envoy waits for the picker.

After its usual 5 it goes on without it, as it does on a machine that is too full for 200 requests a second with those
that wait to be taken up, swaps or not: they are not what is looked for.
"""
LONG = 10
"""Every so many requests there is one whose answer takes longer than a swap."""


class Load:
    """A client with a fixed rate, whatever comes back; it goes on until it is `enough`.

    Attributes:
        sent: how many requests have been sent.
        enough: no further ones are needed beyond `REQUESTS`.
        versions: of the configuration that has answered, by the request's number.
        kinds: how often what came of a request: its status, or the client's error.
        lost: what came back that is no answer of the engine's by way of the picker, with the time.
        behind: by how many seconds at most a request was sent too late.
    """

    def __init__(self, http: aiohttp.ClientSession, addresses: list[str]) -> None:
        self.sent = 0
        self.enough = False
        self.versions: dict[int, str] = {}
        self.kinds: Counter[str] = Counter()
        self.lost: list[str] = []
        self.behind = 0.0
        self._http = http
        self._addresses = cycle(addresses)
        self._start = asyncio.get_running_loop().time()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._start

    async def run(self) -> None:
        async with asyncio.TaskGroup() as requests:
            while self.sent < REQUESTS or not self.enough:
                late = self.now - self.sent / RATE
                self.behind = max(self.behind, late)
                await asyncio.sleep(max(-late, 0))
                requests.create_task(self._request(self.sent))
                self.sent += 1

    async def _request(self, number: int) -> None:
        body = completion(1000 + number, number=number)
        headers = {"content-type": "application/json", "x-number": str(number)}
        if number % LONG == 0:
            headers |= {"x-pieces": "10", "x-pause": "0.06"}
        address, began = next(self._addresses), self.now
        try:
            url = f"http://{address}/v1/completions"
            async with self._http.post(url, data=body, headers=headers) as answer:
                whole = await answer.read() == body
                version = answer.headers.get("x-version", "")
        except (aiohttp.ClientError, TimeoutError) as error:
            self._lose(number, address, began, type(error).__name__, repr(error))
            return
        self.versions[number] = version
        if (answer.status, whole, bool(version)) == (200, True, True):
            self.kinds["200"] += 1
        else:
            said = f"whole: {whole}, version {version!r}, headers {dict(answer.headers)}"
            self._lose(number, address, began, str(answer.status), said)

    def _lose(self, number: int, address: str, began: float, kind: str, said: str) -> None:
        self.kinds[kind] += 1
        self.lost.append(f"request {number} to {address}, from {began:.3f} to {self.now:.3f} s: {kind}: {said}")


class Swaps:
    """Changes the configuration of the stage's picker.

    Attributes:
        times: of each, when it was asked for and when it was in force or refused; seconds of the load.
    """

    def __init__(self, stage: Stage, load: Load, folder: Path) -> None:
        self._stage, self._load, self._folder = stage, load, folder
        self.times: list[str] = []

    async def run(self) -> None:
        for number in range(1, SWAPS + 1):
            await until(lambda due=number * EVERY: self._load.sent >= due, "it is time for the next swap")
            write(self._folder, number)
            asked = self._load.now
            self.times.append(f"{number}: {asked:.3f} to ?")
            self._stage.picker.signal(signal.SIGHUP)
            if number == BROKEN:
                await until(self._refused, "the broken one is refused")
            else:
                await until(
                    lambda version=str(number): version in self._load.versions.values(), f"{number} is in force"
                )
            self.times[-1] = f"{number}: {asked:.3f} to {self._load.now:.3f}"
        self._load.enough = True

    async def _refused(self) -> bool:
        return bool((await self.shown())["reloads"]["failed"])

    async def shown(self) -> Any:
        url = f"http://{self._stage.picker.metrics_address}/debug/config"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            return await answer.json()


async def told(load: Load, swaps: Swaps, stage: Stage, gateways: Sequence[EnvoyProcess]) -> str:
    """All that may say why requests are lost."""
    parts = [f"{load.sent} sent, {load.behind:.3f} s late at most; what came of them: {dict(load.kinds)}"]
    parts += ["lost:", *load.lost[:40], "swaps, in seconds:", *swaps.times]
    said = [line for line in stage.picker.log().splitlines() if '"message":"request"' not in line]
    parts += ["the picker's log, without requests:", *said[-60:]]
    for gateway in gateways:
        stats = {name: value for name, value in (await gateway.stats("ext_proc")).items() if value}
        parts += [f"Envoy {gateway.address}: {stats}", gateway.log_tail(40)]
    return "\n".join(parts)


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
        gateways = [await stage.gateway(variant, message_timeout=PATIENCE) for variant in ("standalone", "full-duplex")]
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        load = Load(http, [str(gateway.address) for gateway in gateways])
        swaps = Swaps(stage, load, tmp_path)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(load.run())
                both.create_task(swaps.run())
            for gateway in gateways:
                await until(lambda gateway=gateway: stage.idle(gateway), "nothing is under way")
        except BaseException as error:
            error.add_note(await told(load, swaps, stage, gateways))
            raise
        assert load.lost == [], await told(load, swaps, stage, gateways)
    arrived = [request for upstream in stage.upstreams for request in upstream.seen]
    assert len(arrived) == len(load.versions) == load.sent >= REQUESTS
    assert {int(request.header("x-number") or -1): request.header("x-version") for request in arrived} == load.versions
    assert set(load.versions.values()) == {str(number) for number in range(SWAPS + 1) if number != BROKEN}
    shown = await swaps.shown()
    assert (shown["earlier"], shown["streams"]) == ([], 0)
    assert shown["reloads"]["failed"] >= 1
    assert (await stage.picker.metrics()).get("llm_d_epp_plugin_faults_total", 0.0) == 0
