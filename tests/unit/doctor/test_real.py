"""The doctor with what it is for: `epp serve` in front of simulated engines, each a server of its own."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from epp.doctor.examine import Options, examine
from epp.doctor.findings import Findings
from epp.doctor.target import Wanted
from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.kube.access import Access, FixedToken
from epp.kube.client import Api
from tests.e2e.harness import until
from tests.kube.api import pod, pool
from tests.kube.harness import KubernetesPicker
from tests.unit.doctor.world import LABELS, NAMESPACE, Server, states

FLAGS = ("--pool-name=llama", "--pool-group=inference.networking.k8s.io", "--ha-enable-leader-election")
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "llama-epp", "namespace": NAMESPACE},
    "spec": {"selector": {"app": "epp"}, "ports": [{"port": 9002, "targetPort": "grpc"}]},
}


@pytest.mark.e2e
async def test_a_real_picker(tmp_path: Path) -> None:
    """Health, TLS, metrics with a token, the Lease: all as `epp serve` has them. Only gateways are missing."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(Server())
        options = EngineOptions(loras=("poet",), max_model_len=2048)
        engine = await stack.enter_async_context(EngineServer(options))
        host, port = engine.address.split(":")
        api.apply(pool("llama", LABELS, [int(port)], namespace=NAMESPACE), SERVICE)
        api.apply(pod("llama-0", host, namespace=NAMESPACE, labels=LABELS))
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", namespace=NAMESPACE)
        environ = {"NAMESPACE": NAMESPACE, "POD_NAME": "epp-0"}
        picker = await stack.enter_async_context(KubernetesPicker(kubeconfig, *FLAGS, environ=environ))
        await until(picker.ready, "it is ready")
        ports = {"grpc": picker.address, "grpc-health": picker.health, "metrics": picker.metrics_address}
        made = pod("epp-0", "127.0.0.1", namespace=NAMESPACE, labels={"app": "epp"})
        named = [{"name": name, "containerPort": address.port} for name, address in ports.items()]
        made["spec"]["containers"] = [{"name": "main", "args": list(FLAGS), "ports": named}]
        api.apply(made)
        api.logs["epp-0"] = picker.log()
        findings = Findings()
        client = Api(Access(api.url, FixedToken()))
        stack.push_async_callback(client.aclose)
        await examine(client, findings, Options(Wanted(NAMESPACE, pool="llama"), inside=True))
    assert states(findings, "broken") == {}
    assert set(states(findings, "warning")) == {"route.found", "pool.accepted"}
    well = states(findings, "ok")
    assert "1 of 1 pickers are ready, one of them as leader" in well["picker.ready"]
    assert "readiness: SERVING" in well["picker.health"]
    assert "shows a token" in well["picker.metrics"]
    assert well["picker.leader"].endswith(" leads")
    assert well["picker.log"] == "no errors among its last 200 lines"
    assert "valid until" in well["tls.dates"]
    assert well["engine.metrics"].startswith("vllm, ")
    assert "poet" in well["engine.models"]
    assert "engine.lora" in well
