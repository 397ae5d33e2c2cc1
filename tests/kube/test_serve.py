"""`epp serve` in Kubernetes: what a process shows of it."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.harness import until
from tests.kube.api import FakeApi, pod, pool
from tests.kube.conftest import LABELS
from tests.kube.harness import NOT_SERVING, SERVING, KubernetesPicker

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
OPEN = ("--metrics-endpoint-auth=false", "--secure-serving=false")
GRPC = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: queue-scorer}, {type: vllmgrpc-parser}]
requestHandler: {parsers: [{pluginRef: vllmgrpc-parser}]}
schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]
"""


async def page(picker: KubernetesPicker, name: str) -> Any:
    url = f"http://{picker.metrics_address}/debug/{name}"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        return await answer.json()


async def test_an_outage_is_shown_and_changes_nothing(fake: FakeApi, tmp_path: Path) -> None:
    """The picker stays ready with its endpoints; a metric and a page say that they are stale."""
    fake.apply(pool("llama", LABELS), pod("a", "127.0.0.1", labels=LABELS))
    async with KubernetesPicker(fake.kubeconfig(tmp_path / "config"), "--pool-name=llama", *OPEN) as picker:
        await until(picker.ready, "it is ready")
        await fake.down()

        async def stale() -> bool:
            return (await picker.metrics())["llm_d_epp_discovery_stale"] == 1.0

        await until(stale, "it is stale")
        shown = (await page(picker, "kubernetes"))["discovery"]
        assert (shown["stale"], shown["synced"], shown["ready_pods"]) == (True, True, 1)
        assert shown["errors"]["pods"]
        assert await picker.ready()
        fake.apply(pod("b", "127.0.0.2", labels=LABELS))
        await fake.up()

        async def both() -> bool:
            shown = (await page(picker, "kubernetes"))["discovery"]
            return bool(shown["ready_pods"] == 2 and not shown["stale"])

        await until(both, "it has caught up")


async def test_a_pool_of_a_protocol_that_no_parser_speaks(fake: FakeApi, tmp_path: Path) -> None:
    """The picker lives and isn't ready, until the pool speaks gRPC's."""
    fake.apply(pool("llama", LABELS, appProtocol="http"), pod("a", "127.0.0.1", labels=LABELS))
    config = fake.kubeconfig(tmp_path / "config")
    async with KubernetesPicker(config, "--pool-name=llama", "--config-text", GRPC, *OPEN) as picker:

        async def known() -> bool:
            return bool((await page(picker, "kubernetes"))["discovery"]["synced"])

        await until(known, "the pool is known")
        assert (await picker.status(), await picker.status("liveness")) == (NOT_SERVING, SERVING)
        fake.apply(pool("llama", LABELS, appProtocol="kubernetes.io/h2c"))
        await until(picker.ready, "it is ready")


async def test_a_selector_in_place_of_a_pool(fake: FakeApi, tmp_path: Path) -> None:
    """As in llm-d's standalone chart: with a leader, whose Lease is named after the Deployment."""
    fake.apply(pod("a", "127.0.0.1", labels=LABELS))
    arguments = ("--endpoint-selector", "app in (llama)", "--endpoint-target-ports=8000,8001", *OPEN)
    environ = {"POD_NAME": "standalone-epp-7d9f-x2x", "NAMESPACE": "default"}
    config = fake.kubeconfig(tmp_path / "config")
    async with KubernetesPicker(config, *arguments, "--ha-enable-leader-election", environ=environ) as picker:
        await until(picker.ready, "it leads")
        (lease,) = fake.objects("Lease")
        assert lease["metadata"]["name"] == "epp-default-standalone-epp.llm-d.ai"
        assert lease["spec"]["holderIdentity"].startswith("standalone-epp-7d9f-x2x_")
        sums = await picker.metrics()
        assert (sums["llm_d_epp_leader"], sums["llm_d_epp_discovery_stale"]) == (1.0, 0.0)
        assert len((await page(picker, "kubernetes"))["discovery"]["target_ports"]) == 2


PROBLEMS = {
    "no API server": (("--pool-name=p",), "there is no way to the Kubernetes API server"),
    "an unknown group": (("--pool-name=p", "--pool-group=x"), "--pool-group: 'x' has no InferencePools"),
    "no ports": (("--endpoint-selector=a=b",), "--endpoint-selector needs --endpoint-target-ports"),
    "no name for a Lease": (
        ("--endpoint-selector=a=b", "--endpoint-target-ports=1", "--ha-enable-leader-election"),
        "set POD_NAME",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), PROBLEMS.values(), ids=PROBLEMS)
async def test_what_cant_be_done_is_told_at_once(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    environ = os.environ | {"HOME": str(tmp_path), "KUBECONFIG": ""}
    command = (sys.executable, "-m", "epp", "serve", *arguments)
    process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.PIPE)
    _, told = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert message in told.decode()
    assert "Traceback" not in told.decode()


async def test_the_benchmark_runs() -> None:
    """Each figure is there, and within what is promised even of a machine that has other things to do."""
    command = (sys.executable, str(ROOT / "benchmarks" / "kubernetes.py"), "--smoke", "--json")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await asyncio.wait_for(process.communicate(), 60)
    figures = json.loads(printed)
    assert process.returncode == 0
    assert figures["watch"]["endpoints"] >= 19
    assert figures["serve"]["ready_endpoints"] >= 19
    assert 20 < figures["serve"]["resident_mb"] < 200
    assert figures["watch"]["endpoints_changed"] > 0
