"""Two pickers of which one leads, behind one Envoy that holds both addresses."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from epp.envoy.options import EnvoyOptions, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from tests.e2e.harness import free_port, until
from tests.e2e.upstream import Upstream
from tests.kube.api import FakeApi, pod, pool
from tests.kube.conftest import LABELS
from tests.kube.harness import NOT_SERVING, SERVING, KubernetesPicker

pytestmark = pytest.mark.e2e

RATE = 100.0
"""Requests a second."""


@dataclass(slots=True)
class Load:
    """Requests at a steady rate: when each one began, and what came of it."""

    url: str
    answers: list[tuple[float, int]] = field(default_factory=list)

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Goes on until it is cancelled, and then waits for what is under way."""
        async with asyncio.TaskGroup() as tasks:
            with contextlib.suppress(asyncio.CancelledError):
                began, count = time.monotonic(), 0
                while True:
                    tasks.create_task(self._one(http))
                    count += 1
                    await asyncio.sleep(began + count / RATE - time.monotonic())

    async def _one(self, http: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        status = 0
        with contextlib.suppress(aiohttp.ClientError):
            body = {"model": "m", "prompt": "x" * 200}
            headers = {"x-pieces": "3", "x-pause": "0.02"}
            async with http.post(f"{self.url}/v1/completions", json=body, headers=headers) as answer:
                await answer.read()
                status = answer.status
        self.answers.append((began, status))

    def lost(self) -> list[tuple[float, int]]:
        """Those that weren't answered with 200."""
        return [(began, status) for began, status in self.answers if status != 200]

    def count(self, begin: float) -> int:
        """How many have begun since then."""
        return sum(1 for began, _ in self.answers if began >= begin)


@asynccontextmanager
async def running(load: Load) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        task = asyncio.create_task(load.run(http))
        try:
            yield
        finally:
            task.cancel()
            await task


class Pair:
    """Two pickers on two loopback addresses with the same ports, and an Envoy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pickers: list[KubernetesPicker] = []

    @asynccontextmanager
    async def up(self) -> AsyncIterator[str]:
        """The URL of the Envoy, once one picker leads."""
        async with AsyncExitStack() as stack:
            upstreams = [await stack.enter_async_context(Upstream()) for _ in range(2)]
            fake = await stack.enter_async_context(FakeApi())
            ports = [int(upstream.address.rpartition(":")[2]) for upstream in upstreams]
            fake.apply(pool("llama", LABELS, ports), pod("engine", "127.0.0.1", labels=LABELS))
            arguments = ("--pool-name=llama", "--ha-enable-leader-election", "--secure-serving=false")
            arguments += ("--metrics-endpoint-auth=false",)
            shared = (free_port(), free_port(), free_port())
            config = fake.kubeconfig(self._folder / "kubeconfig")
            for host in ("127.0.0.1", "127.0.0.2"):
                picker = KubernetesPicker(config, *arguments, host=host, ports=shared)
                self.pickers.append(await stack.enter_async_context(picker))
            await until(self.leader, "one leads")
            options = EnvoyOptions(
                listen=LOOPBACK,
                picker=tuple(picker.address for picker in self.pickers),
                picker_health_port=shared[1],
                endpoints=tuple(parse_address(upstream.address, "upstream") for upstream in upstreams),
                mode="full-duplex",
                failure_mode_allow=False,
            )
            self.envoy = await stack.enter_async_context(EnvoyProcess(options))
            yield f"http://{self.envoy.address}"

    async def leader(self) -> KubernetesPicker | None:
        """The picker that is ready."""
        ready = [picker for picker in self.pickers if await picker.ready()]
        return ready[0] if len(ready) == 1 else None

    async def healthy(self) -> bool:
        """Whether Envoy sends requests to one picker only."""
        stats = await self.envoy.stats("^cluster.picker.membership_(healthy|total)$")
        return stats == {"cluster.picker.membership_healthy": 1, "cluster.picker.membership_total": 2}


async def warm(picker: KubernetesPicker) -> bool:
    return (await picker.metrics())["llm_d_epp_ready_endpoints"] == 2


async def test_the_end_of_the_leader(tmp_path: Path) -> None:
    """SIGTERM loses nothing; SIGKILL the streams in flight, as Envoy asks the other picker where one doesn't answer."""
    pair = Pair(tmp_path)
    async with pair.up() as url:
        assert await end_of_the_leader(pair, url, signal.SIGTERM) == []
        lost = await end_of_the_leader(pair, url, signal.SIGKILL)
        assert all(-1.0 < began < 2.0 for began, _ in lost), lost
        assert len(lost) < RATE / 2


async def end_of_the_leader(pair: Pair, url: str, how: signal.Signals) -> list[tuple[float, int]]:
    """Ends the leader under load, and starts it again.

    Returns:
        When the requests began that were lost, seconds after the end, and their status.
    """
    load = Load(url)
    leader = await pair.leader()
    assert leader is not None
    follower = next(picker for picker in pair.pickers if picker is not leader)
    assert await follower.status("liveness") == SERVING
    assert await follower.status("readiness") == NOT_SERVING
    await until(lambda: warm(follower), "the follower knows the pool, and scrapes it")
    async with running(load):
        await until(pair.healthy, "Envoy knows who leads")
        before = time.monotonic()
        await until(lambda: load.count(before) > RATE / 2, "the load runs")
        ended = time.monotonic()
        ending = asyncio.create_task(leader.end(how))
        await until(follower.ready, "the follower leads", 5.0)
        assert time.monotonic() - ended < 1.5
        await ending
        await until(pair.healthy, "Envoy knows who leads")
        after = time.monotonic()
        await until(lambda: load.count(after) > RATE / 2, "the load runs on")
    await leader.start()
    return [(began - ended, status) for began, status in load.lost()]
