"""Two pickers behind a real Envoy, one of which looks on: `epp envoy --observe`, and its decision log."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from epp.envoy.options import EnvoyOptions, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from epp.observe.entries import read_log
from tests.e2e.clients import call
from tests.e2e.harness import LIMIT, VARIANTS, Picker, until
from tests.e2e.load import BODY, Load
from tests.e2e.upstream import Upstream

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

SCORER = '''
"""Prefers one endpoint to all others."""

import numpy as np

import epp.plugin


class PreferringScorer:
    """1 for the endpoint of that id, 0 for others."""

    class Parameters(epp.plugin.Parameters):
        endpoint: str

    def __init__(self, parameters: Parameters) -> None:
        self._endpoint = parameters.endpoint

    def score(self, request, c):
        return c.named(self._endpoint).astype(float)
'''


def config(folder: Path, address: str, shadow: str) -> str:
    """A configuration that sends every request there, with a shadow that would send it somewhere else."""
    (folder / "preferring.py").write_text(SCORER)
    profile = {"name": "default", "plugins": [{"pluginRef": "preferring-scorer", "weight": 2}]}
    in_force, beside = (
        {
            "plugins": [{"type": "./preferring.py", "parameters": {"endpoint": f"default/{endpoint}"}}],
            "schedulingProfiles": [profile],
        }
        for endpoint in (address, shadow)
    )
    head = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    file = folder / f"{address}.json"
    file.write_text(json.dumps(head | in_force | {"shadow": beside}))
    return str(file)


class Setting:
    """An Envoy with a picker that sends all to the first server, and another one that would to the second."""

    picker: Picker
    observer: Picker
    gateway: EnvoyProcess

    def __init__(self, folder: Path, first: str, second: str) -> None:
        self.first, self.second = first, second
        self.log = folder / "decisions.log"
        servers = (first, second)
        self.picker = Picker(servers, f"--config-file={config(folder, first, second)}")
        watching = (f"--config-file={config(folder, second, first)}", f"--decision-log={self.log}")
        self.observer = Picker(servers, *watching)

    async def heard_of(self, requests: int) -> bool:
        """Whether the observer has held so many decisions against the other picker's."""
        return (await self.observer.metrics()).get("llm_d_epp_request_total", 0.0) >= requests


@asynccontextmanager
async def observed(folder: Path, variant: str) -> AsyncIterator[Setting]:
    """The setting; at the end nothing is in flight at the picker."""
    async with Upstream() as first, Upstream() as second:
        setting = Setting(folder, first.address, second.address)
        async with setting.picker, setting.observer:
            options = EnvoyOptions(
                listen=LOOPBACK,
                picker=(setting.picker.address,),
                observe=(setting.observer.address,),
                endpoints=tuple(parse_address(server.address, "server") for server in (first, second)),
                max_request_body_bytes=LIMIT,
                **VARIANTS[variant],
            )
            async with EnvoyProcess(options) as setting.gateway:
                yield setting
                assert setting.gateway.alive, setting.gateway.log_tail()
                await until(setting.picker.idle, "the picker is idle")


@pytest.mark.parametrize("variant", ["standalone", "full-duplex"])
async def test_requests_go_where_the_first_picker_says(tmp_path: Path, variant: str) -> None:
    """The other one, and the shadows of both, note where they would have sent them; nothing is seen of that."""
    async with observed(tmp_path, variant) as setting:
        for number in range(8):
            steer = [("x-pieces", "5"), ("x-pause", "0.01")] if number % 2 else []
            answer = await call("http1", str(setting.gateway.address), body=BODY, headers=steer)
            assert (answer.status, answer.headers["x-served-by"], answer.body) == (200, setting.first, BODY)
        await until(lambda: setting.heard_of(8), "the observer has heard of all of them")
        async with aiohttp.ClientSession() as http:
            page = f"http://{setting.observer.metrics_address}"
            async with http.get(f"{page}/debug/decisions") as found:
                decisions = await found.json()
            async with http.get(f"{page}/metrics") as found:
                metrics = await found.text()
        assert 'llm_d_epp_compared_decisions_total{other="picker",result="differed"} 8.0' in metrics
        assert 'llm_d_epp_regret_sum{other="picker"} 8.0' in metrics
        assert 'llm_d_epp_compared_decisions_total{other="shadow",result="agreed"} 8.0' in metrics
        assert len(decisions) == 8
        for decision in decisions:
            assert decision["destination"] == setting.second
            assert decision["observed"] == {"destination": setting.first, "agreed": False, "regret": 1.0}
            assert (decision["shadow"]["destination"], decision["shadow"]["regret"]) == (setting.first, 0.0)
        await until(setting.observer.idle, "the observer is idle")
        own = (await setting.picker.metrics())["llm_d_epp_compared_decisions_total"]
        assert own == 8, "the shadow of the picker that routes has decided, too"
        assert await setting.observer.end(signal.SIGTERM) == 0
        entries = list(read_log(setting.log))
    assert len(entries) == 8
    for entry in entries:
        assert (entry.kind, entry.sent_to, entry.outcome.status, entry.outcome.cause) == (
            "observed",
            setting.first,
            200,
            "done",
        )
        assert entry.against_ours is not None
        assert (entry.against_ours.other, entry.size) == (setting.second, len(BODY))
        assert entry.outcome.response_bytes == len(BODY)
        assert entry.outcome.first_byte is not None


async def test_nothing_is_lost_when_the_observer_is_killed_under_load(tmp_path: Path) -> None:
    """Nor while it stands still, is away or comes back: nobody waits for it."""
    async with observed(tmp_path, "standalone") as setting, Load(setting.gateway) as load:
        await load.more(30)
        setting.observer.signal(signal.SIGSTOP)
        await load.more(60)
        setting.observer.signal(signal.SIGCONT)
        await load.more(30)
        await setting.observer.end(signal.SIGKILL)
        await load.more(60)
        await setting.observer.start()
        await until(lambda: setting.heard_of(1), "it hears of requests again")
        await load.more(30)
    assert load.lost == []
    assert load.outcomes.total() >= 210
