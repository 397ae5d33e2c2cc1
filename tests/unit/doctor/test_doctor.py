"""`epp doctor` against an API server, model servers and a picker that are real: what is well, and every fault."""

import copy
import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from epp.__main__ import main
from epp.doctor.findings import Findings
from epp.doctor.target import SCHEDULER, Wanted
from tests.kube.api import pod, pool
from tests.unit.doctor.world import ADDRESSES, LABELS, NAMESPACE, PAGE, only, running, states


def bad(findings):
    """Check, state and message of all that isn't well; metrics-server's absence apart."""
    return [(each.check, each.state, each.message) for each in findings if each.state != "ok"]


async def test_all_is_well():
    """Nothing to do, and every check has been made."""
    async with running() as world:
        findings = await world.examined()
    assert bad(findings) == []
    assert set(states(findings, "ok")) == set(
        """
        api pool.found route.accepted pool.accepted picker.service pods.ready engine.metrics engine.reachable
        engine.blocks engine.models picker.ready picker.health picker.ext_proc picker.metrics picker.rights events
        picker.log pod.memory
        """.split()  # noqa: SIM905 (a list of quoted names reads worse)
    )
    assert all(each.remedy == "" for each in findings)


@pytest.mark.parametrize("inside", [True, False])
async def test_what_needs_no_name(inside):
    """The only pool of a namespace is meant; from outside of the cluster what can be reached is asked directly."""
    async with running() as world:
        findings = await world.examined(Wanted(NAMESPACE), inside=inside)
    assert bad(findings) == []


async def test_through_the_api_server(monkeypatch):
    """From outside, where pods can't be reached, HTTP goes through the API server; gRPC can't."""
    from epp.doctor.reach import Failed, Reach

    async def unreachable(self, address, port):
        raise Failed("silent", f"no connection to {address}:{port}")

    monkeypatch.setattr(Reach, "_connect", unreachable)
    async with running() as world:
        findings = await world.examined(inside=False)
        inside = await world.examined(inside=True)
    assert states(findings, "broken") == {}
    assert states(findings, "unknown") == {"picker.health": "gRPC can't be asked through the API server"}
    assert "through the API server" in states(findings, "ok")["engine.reachable"]
    assert "engine.reachable" in states(inside, "broken")


# --- what is looked for


async def test_no_such_pool():
    async with running() as world:
        findings = await world.examined(Wanted(NAMESPACE, pool="lama"))
        elsewhere = await world.examined(Wanted("other", pool="llama"))
    assert (only(findings, "broken").message, only(findings, "broken").remedy) == (
        "is not there",
        "did you mean llama?",
    )
    assert only(elsewhere, "broken").remedy.startswith("there are no pools in this namespace")


async def test_no_crd():
    async with running() as world:
        for version in ("inference.networking.k8s.io/v1", "inference.networking.x-k8s.io/v1alpha2"):
            world.api.unserve(version)
        findings = await world.examined()
    assert only(findings, "broken").message == "the API server doesn't know this kind"


async def test_no_api_server():
    async with running() as world:
        await world.api.down()
        findings = await world.examined()
    assert only(findings, "broken").check == "api"


async def test_a_selector_without_a_pool():
    """Pods are looked at without CRDs; nothing is said of pools and routes."""
    async with running() as world:
        world.api.apply(pod("spot-0", "127.0.0.9", namespace=NAMESPACE, labels=LABELS | {"spot": ""}))
        wanted = Wanted(
            NAMESPACE, selector="app in (llama, qwen),tier!=test,!spot", ports=(world.port,), picker="llama-epp"
        )
        findings = await world.examined(wanted)
    assert bad(findings) == []
    assert "pool.found" not in states(findings, "ok")
    assert states(findings, "ok")["engine.reachable"] == "all 2 endpoints answer (directly)"


async def test_what_may_not_be_read():
    """It is said once, with what would help."""
    async with running() as world:
        world.api.denied.add(("list", "httproutes"))
        findings = await world.examined()
    assert [each.subject for each in findings if each.check == "api.rights"] == ["httproutes.gateway.networking.k8s.io"]
    assert "kubectl auth can-i list" in only(findings, "unknown").remedy


async def test_in_the_pickers_own_pod():
    """Its role is to read pods and the pool: nothing that it may not read is called broken."""
    async with running() as world:
        world.api.me = f"system:serviceaccount:{NAMESPACE}:epp"
        kinds = ("services", "httproutes", "events", "inferencemodelrewrites", "leases")
        world.api.denied = {(verb, kind) for verb in ("get", "list") for kind in kinds}
        world.api.denied_groups = {"metrics.k8s.io"}
        world.api.logs.clear()
        findings = await world.examined(Wanted(NAMESPACE, pool="llama"))
        world.api.denied.add(("get", "inferencepools"))
        pools = await world.examined(Wanted(NAMESPACE, pool="llama"))
    assert states(findings, "broken") == {}
    assert states(findings, "ok")["picker.ready"] == "1 of 1 pickers are ready, each on its own"
    assert set(states(findings, "unknown")) == {"api.rights", "picker.log", "pod.memory"}
    assert {(check, state) for check, state, _ in bad(pools)} == {("api.rights", "unknown"), ("pool.found", "unknown")}


async def test_in_the_pickers_own_pod_without_a_name():
    """Which pools there are it may not list; its flags say which one is its own. Two pickers' pools have to be told."""
    async with running() as world:
        world.api.denied = {("list", "inferencepools")}
        findings = await world.examined(Wanted(NAMESPACE))
        world.api.apply(world.picker("--pool-name=other", name="other-0"))
        several = await world.examined(Wanted(NAMESPACE))
    assert states(findings, "broken").keys() == {"picker.rights"}  # the test's reviews know of no names
    assert "pool.found" in states(findings, "ok")
    assert states(several, "unknown")["pool.found"] == "whether there is one may not be read"
    assert [each.remedy for each in several if each.check == "pool.found"] == ["name it: --pool-name NAME"]


# --- pool and route


def condition(kind, status, reason, message="why"):
    return {"type": kind, "status": status, "reason": reason, "message": message}


@pytest.mark.parametrize("kind", ["InferencePool", "HTTPRoute"])
async def test_refused_by_a_gateway(kind):
    check = {"InferencePool": "pool.accepted", "HTTPRoute": "route.accepted"}[kind]
    name = {"InferencePool": "llama", "HTTPRoute": "route"}[kind]

    def refuse(each):
        each["status"]["parents"][0]["conditions"][1] = condition("ResolvedRefs", "False", "InvalidExtensionRef")

    async with running() as world:
        world.change(kind, name, refuse)
        findings = await world.examined()
    found = only(findings, "broken")
    assert (found.check, found.message) == (
        check,
        "ResolvedRefs is False at Gateway gateway: InvalidExtensionRef: why",
    )
    assert "names no Service that there is" in found.remedy


async def test_nobody_has_accepted_it():
    async with running() as world:
        world.change("InferencePool", "llama", lambda each: each.pop("status"))
        findings = await world.examined()
    assert states(findings, "broken") == {"pool.accepted": "no Gateway has accepted it"}


async def test_no_route():
    """Without a route nobody accepts a pool; an Envoy of one's own needs neither, so these are warnings."""
    async with running() as world:
        world.api.remove(*world.api.objects("HTTPRoute"))
        world.change("InferencePool", "llama", lambda each: each.pop("status"))
        findings = await world.examined()
    assert states(findings, "broken") == {}
    assert set(states(findings, "warning")) == {"route.found", "pool.accepted"}


async def test_a_route_to_the_other_group():
    def old(each):
        each["spec"]["rules"][0]["backendRefs"][0]["group"] = "inference.networking.x-k8s.io"

    async with running() as world:
        world.change("HTTPRoute", "route", old)
        findings = await world.examined()
    assert only(findings, "broken").check == "route.group"
    assert "epp migrate" in only(findings, "broken").remedy


async def test_an_old_generation():
    def later(each):
        each["metadata"]["generation"] = 3
        each["status"]["parents"][0]["conditions"][0]["observedGeneration"] = 2

    async with running() as world:
        world.change("InferencePool", "llama", later)
        findings = await world.examined()
    assert states(findings, "warning") == {"pool.accepted": "Gateway gateway has not seen its last change yet"}


async def test_a_gateway_that_says_nothing():
    """It is named in the status, and has no word on it yet."""
    async with running() as world:
        world.change("InferencePool", "llama", lambda e: e["status"]["parents"][0].update(conditions=[]))
        findings = await world.examined()
    assert states(findings, "warning") == {"pool.accepted": "Gateway gateway hasn't said whether it accepts it"}
    assert "pool.accepted" not in states(findings, "ok")


async def test_a_pool_of_another_shape():
    """As of a definition that somebody has loosened."""
    async with running() as world:
        world.change("InferencePool", "llama", lambda e: e["spec"].update(targetPorts=[{}]))
        findings = await world.examined()
    assert only(findings, "broken").message.startswith("can't be read: Object missing required field `number`")


async def test_the_pools_service():
    """It isn't there; or it lacks the port."""
    async with running() as world:
        world.change("Service", "llama-epp", lambda each: each["spec"]["ports"][0].update(port=9000))
        port = await world.examined()
        world.api.remove(*world.api.objects("Service"))
        gone = await world.examined()
    assert states(port, "broken") == {
        "picker.service": f"has no port 9002, which InferencePool {NAMESPACE}/llama names; it has 9000"
    }
    assert "picker.service" in states(gone, "broken")


@pytest.mark.parametrize(
    ("target_port", "message"),
    [
        ("grpc", ""),
        ("http", ""),
        (7000, ""),
        ("nope", "its port 9002 leads to targetPort nope of Pod llm/epp-0: no container has a port named 'nope'"),
        (1, "its port 9002 leads to targetPort 1 of Pod llm/epp-0: it serves ext_proc on 9005, not 1"),
        (None, "its port 9002 leads to targetPort 9002 of Pod llm/epp-0: it serves ext_proc on 9005, not 9002"),
        ("metrics", "its port 9002 leads to targetPort metrics of Pod llm/epp-0: it serves ext_proc on 9005, not 9090"),
    ],
)
async def test_where_the_service_leads(target_port, message):
    """To ext_proc by number or name, or to a container that stands before it."""
    async with running() as world:
        made = world.picker("--grpc-port=9005")
        made["status"].pop("podIP")
        container = made["spec"]["containers"][0]
        container["ports"] = [{"name": "grpc", "containerPort": 9005}, {"name": "metrics", "containerPort": 9090}]
        made["spec"]["containers"].append({"name": "proxy", "ports": [{"name": "http", "containerPort": 7000}]})
        world.api.apply(made)
        port = {"port": 9002} | ({} if target_port is None else {"targetPort": target_port})
        world.change("Service", "llama-epp", lambda each: each["spec"].update(ports=[port]))
        findings = await world.examined()
    assert states(findings, "broken").get("picker.service", "") == message


async def test_istio():
    """It needs a DestinationRule, under any spelling of the Service's name."""
    rule = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "epp", "namespace": NAMESPACE},
        "spec": {"host": f"llama-epp.{NAMESPACE}.svc.cluster.local", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
    }
    async with running() as world:
        istio = "istio.io/gateway-controller"
        world.change("InferencePool", "llama", lambda e: e["status"]["parents"][0].update(controllerName=istio))
        without = await world.examined()
        world.api.apply(rule)
        with_rule = await world.examined()
    assert only(without, "broken").check == "istio.tls"
    assert bad(with_rule) == []
    assert "mode SIMPLE" in states(with_rule, "ok")["istio.tls"]


# --- pods


async def test_no_pod_matches():
    """It says which label is to blame."""
    async with running() as world:
        labels = {"app": "llama", "tier": "prod"}
        world.change("InferencePool", "llama", lambda e: e["spec"]["selector"].update(matchLabels=labels))
        findings = await world.examined()
        selector = "app in (llama,qwen),!app"
        selected = await world.examined(Wanted(NAMESPACE, selector=selector, ports=(8000,)))
        world.change("InferencePool", "llama", lambda e: e["spec"].update(selector={}))
        empty = await world.examined()
    found = only(findings, "broken")
    assert found.check == "pods.matched"
    assert found.remedy.endswith("app=llama: 2 of 3 pods, tier=prod: 0 of 3 pods")
    assert only(selected, "broken").remedy.endswith("app in (llama,qwen): 2 of 3 pods, !app: 0 of 3 pods")
    assert only(empty, "broken").message == "its selector is empty, which selects no pod"


def waits(reason, name="main", key="containerStatuses"):
    return lambda each: each["status"].update({key: [{"name": name, "state": {"waiting": {"reason": reason}}}]})


def scheduled(each):
    status = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: insufficient nvidia.com/gpu"}
    each["status"] = {"phase": "Pending", "conditions": [status]}


def nowhere(each):
    each["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}


def evicted(each):
    each["status"] = {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}


def killed(each):
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    each["status"]["containerStatuses"] = [{"name": "main", "ready": True, "restartCount": 2, "lastState": ended}]


def restarted(each):
    each["status"]["containerStatuses"] = [{"name": "main", "ready": True, "restartCount": 9}]


@pytest.mark.parametrize(
    ("update", "check", "state", "message", "remedy"),
    [
        (scheduled, "pod.scheduled", "broken", "waits for a node: 0/3 nodes: insufficient nvidia.com/gpu", "GPUs"),
        (waits("ImagePullBackOff"), "pod.container", "broken", "container main waits: ImagePullBackOff", "pull secret"),
        (
            waits("CrashLoopBackOff", "storage-initializer", "initContainerStatuses"),
            "pod.container",
            "broken",
            "container storage-initializer waits: CrashLoopBackOff",
            "the model can't be fetched",
        ),
        (
            lambda e: e.pop("status"),
            "pod.ready",
            "warning",
            "has no status yet: nobody has taken it up",
            "describe pod",
        ),
        (evicted, "pod.ready", "warning", "has ended and doesn't come back (Failed: Evicted: low on memory)", "delete"),
        (nowhere, "pod.scheduled", "broken", "waits for a node: no reason is given", "GPUs"),
        (killed, "pod.restarts", "warning", "container main was ended: OOMKilled, 2 restarts", "more memory"),
        (restarted, "pod.restarts", "warning", "container main has been started again 9 times", "--previous"),
    ],
    ids=["scheduling", "image", "model", "no status", "evicted", "nowhere", "memory", "restarts"],
)
async def test_why_a_pod_is_not_ready(update, check, state, message, remedy):
    """The textbook's runbooks: pending, image, model download, out of memory."""
    async with running() as world:
        world.change("Pod", "llama-1", update)
        findings = await world.examined()
    (found,) = [each for each in findings if each.check == check]
    assert (found.state, found.message) == (state, message)
    assert found.subject == f"Pod {NAMESPACE}/llama-1"
    assert remedy in found.remedy


async def test_nobody_is_ready():
    async with running() as world:
        for name in ("llama-0", "llama-1"):
            world.api.apply(pod(name, "127.0.0.2", namespace=NAMESPACE, labels=LABELS, ready=False))
        findings = await world.examined()
    assert states(findings, "broken") == {"pods.ready": "none of its 2 pods is ready"}


async def test_a_pod_on_its_way_out():
    """It is no fault."""
    async with running() as world:
        world.api.apply(pod("llama-1", "127.0.0.3", namespace=NAMESPACE, labels=LABELS, deleted=True))
        findings = await world.examined()
    assert [each.check for each in findings if each.state == "warning"] == ["pods.ready"]
    assert states(findings, "ok")["pod.ready"] == "is on its way out, and gets no requests"


async def test_a_selector_that_is_too_wide():
    """app.kubernetes.io/name alone has KServe's picker, too."""
    async with running() as world:
        labels = {**LABELS, "app.kubernetes.io/component": SCHEDULER}
        world.api.apply(pod("llama-router", "127.0.0.2", namespace=NAMESPACE, labels=labels))
        findings = await world.examined()
    assert states(findings, "broken") == {
        "pods.strangers": f"its selector has pods that are no model servers: Pod {NAMESPACE}/llama-router"
    }


async def test_ports():
    """An annotation that leaves none of the pool's ports; containers that declare others."""
    async with running() as world:
        note = {"llm-d.ai/active-ports": "1,2"}
        world.api.apply(pod("llama-0", ADDRESSES[0], namespace=NAMESPACE, labels=LABELS, annotations=note))
        world.change("Pod", "llama-1", lambda e: e["spec"]["containers"][0].update(ports=[{"containerPort": 1}]))
        findings = await world.examined()
    found = [each for each in findings if each.check == "pod.ports"]
    assert [each.state for each in found] == ["broken", "warning"]
    assert (
        found[0].message
        == "its annotation llm-d.ai/active-ports is '1,2', none of the pool's ports: it gets no requests"
    )
    assert f"such as {world.port}, or take" in found[0].remedy
    assert found[1].message == f"declares no container port {world.port}, which the pool names"


@pytest.mark.parametrize(
    ("text", "state", "message"),
    [
        ("", "warning", "its annotation llm-d.ai/active-ports is empty: the pod gets no requests"),
        (
            "a,b",
            "broken",
            "its annotation llm-d.ai/active-ports is 'a,b', none of the pool's ports: it gets no requests",
        ),
        ("{port},8001x, 70000", "warning", "of which these are no ports of the pool: 8001x, 70000"),
        ("{port}", "ok", ""),
    ],
)
async def test_active_ports(text, state, message):
    async with running() as world:
        note = {"llm-d.ai/active-ports": text.format(port=world.port)}
        world.api.apply(pod("llama-0", ADDRESSES[0], namespace=NAMESPACE, labels=LABELS, annotations=note))
        findings = await world.examined()
    found = [each for each in findings if each.check == "pod.ports"]
    assert [each.state for each in found] == ([] if state == "ok" else [state])
    assert all(each.message.endswith(message) and each.remedy for each in found)


async def test_roles():
    """Somebody has to decode."""
    async with running() as world:
        for name in ("llama-0", "llama-1"):
            world.change("Pod", name, lambda e: e["metadata"]["labels"].update({"llm-d.ai/role": "prefill"}))
        prefill = await world.examined()
        world.change("Pod", "llama-1", lambda e: e["metadata"]["labels"].update({"llm-d.ai/role": "decode"}))
        both = await world.examined()
    assert states(prefill, "broken") == {"pods.roles": "all ready pods have the role prefill: nobody decodes"}
    assert states(both, "ok")["pods.roles"] == "ready pods by role: 1 decode, 1 prefill"


# --- model servers


@pytest.mark.parametrize(
    ("page", "check", "state", "message"),
    [
        (404, "engine.metrics", "broken", "/metrics answers 404"),
        ("other_metric 1\n", "engine.metrics", "broken", "/metrics has none of the names of a known engine"),
        (
            PAGE.replace("vllm:kv_cache_usage_perc", "vllm:something"),
            "engine.metrics",
            "warning",
            "a vllm whose metrics don't say: KV-cache usage",
        ),
        (
            PAGE.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            "engine.metrics",
            "warning",
            "has vllm:gpu_cache_usage_perc, which newer engines call vllm:kv_cache_usage_perc",
        ),
        (
            PAGE.replace('"16"', '"32"'),
            "engine.blocks",
            "warning",
            "the engines' KV blocks have different sizes, in tokens: 16 (1), 32 (1)",
        ),
        (
            PAGE + 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1\n',
            "engine.lora",
            "warning",
            "1 of 2 engines serve LoRA adapters",
        ),
    ],
    ids=["path", "names", "missing", "renamed", "blocks", "lora"],
)
async def test_metrics(page, check, state, message):
    async with running() as world:
        world.pages[ADDRESSES[1]] = page
        findings = await world.examined()
    (found,) = [each for each in findings if each.state not in ("ok", "unknown")]
    assert (found.check, found.state, found.message) == (check, state, message)
    assert found.remedy


async def test_nobody_listens():
    async with running() as world:
        world.api.apply(pod("llama-1", "127.0.0.9", namespace=NAMESPACE, labels=LABELS))
        findings = await world.examined()
    found = only(findings, "broken")
    assert (found.check, found.message) == ("engine.reachable", f"nobody listens on 127.0.0.9:{world.port}")
    assert "--port" in found.remedy


async def test_lora_everywhere():
    async with running() as world:
        line = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""} 1\n'
        world.pages = dict.fromkeys(ADDRESSES, PAGE + line)
        findings = await world.examined()
    assert states(findings, "ok")["engine.lora"] == "all engines serve LoRA adapters, 4 at once"


async def test_rewrites_lead_somewhere():
    """A target that no engine serves is a 404 for the client."""
    target = [{"modelRewrite": "adapter"}, {"modelRewrite": "adaptor"}]
    rewrite = {
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": {"name": "canary", "namespace": NAMESPACE},
        "spec": {"poolRef": {"name": "llama"}, "rules": [{"targets": target}]},
    }
    async with running() as world:
        world.api.apply(rewrite)
        findings = await world.examined()
    assert only(findings, "broken").message == "leads to adaptor, which no engine serves"
    assert states(findings, "ok")["engine.models"] == "the model servers have adapter, m"


# --- the picker


async def test_flags():
    """A picker for another pool, another namespace."""
    async with running() as world:
        world.api.apply(world.picker("--pool-name=other", "--poolNamespace", "elsewhere"))
        findings = await world.examined()
    found = [each.message for each in findings if each.check == "picker.pool"]
    assert found == [
        "is for InferencePool 'other', not for 'llama', whose requests it gets",
        f"looks for its pool in namespace 'elsewhere', not in {NAMESPACE!r}",
    ]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}, None),
        ({"value": NAMESPACE}, None),
        ({"value": "other"}, f"looks for its pool in namespace 'other', not in {NAMESPACE!r}"),
        ({"valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}, None),
        (None, f"looks for its pool in namespace '$(NAMESPACE)', not in {NAMESPACE!r}"),
    ],
)
async def test_flags_with_variables(env, message):
    """As Kubernetes writes them out; what only a ConfigMap says is left out, what nobody says stays as it is."""
    async with running() as world:
        made = world.picker("--pool-namespace=$(NAMESPACE)")
        made["spec"]["containers"][0]["env"] = [{"name": "NAMESPACE", **env}] if env else []
        world.api.apply(made)
        findings = await world.examined()
    assert states(findings, "broken").get("picker.pool") == message


async def test_not_ready():
    """Its health service says so, the pod too."""
    async with running() as world:
        world.ready = False
        world.api.apply(world.picker(ready=False))
        findings = await world.examined()
    assert states(findings, "broken")["picker.ready"] == "none of its 1 pickers is ready"
    assert "readiness: NOT_SERVING" in states(findings, "broken")["picker.health"]


async def test_no_pickers():
    async with running() as world:
        world.change("Service", "llama-epp", lambda each: each["spec"].update(selector={"app": "nobody"}))
        findings = await world.examined()
    assert states(findings, "broken") == {"picker.ready": "selects no pod"}


async def test_pods_that_may_not_be_read():
    """Nothing is known of the picker's then."""
    async with running() as world:
        world.api.denied.add(("list", "pods"))
        findings = await world.examined()
    assert "picker.ready" not in states(findings, "broken")
    assert states(findings, "unknown")["picker.ready"] == "its pods may not be read"


def leases(world):
    """What has been asked about rights to Leases."""
    asked = [spec for _, spec in world.api.reviewed]
    return [spec for spec in asked if spec["resourceAttributes"]["resource"] == "leases"]


async def test_leader_election():
    """A follower that isn't ready is well; a leader that doesn't renew isn't, nor is a probe that a follower fails."""
    flag = "--ha-enable-leader-election"
    async with running() as world:
        follower = world.picker(flag, name="epp-1", ready=False)
        world.api.apply(world.picker(flag), follower, world.lease())
        world.api.logs["epp-1"] = ""
        well = await world.examined()
        named = {(spec["resourceAttributes"]["verb"], spec["resourceAttributes"].get("name")) for spec in leases(world)}
        world.api.apply(world.lease(renewed=datetime.now(UTC) - timedelta(minutes=1)))
        old = await world.examined()
        world.api.clock = -60.0
        behind = await world.examined()
        world.api.clock = 0.0
        world.api.remove(world.lease())
        nobody = await world.examined()
        probed = copy.deepcopy(follower)
        probe = {"grpc": {"port": 9003, "service": "envoy.service.ext_proc.v3.ExternalProcessor"}}
        probed["spec"]["containers"][0]["livenessProbe"] = probe
        world.api.apply(probed, world.lease())
        restarts = await world.examined()
    assert bad(well) == []
    name = f"epp-{NAMESPACE}-llama.llm-d.ai"
    assert named == {("create", None), *((verb, name) for verb in ("get", "list", "watch", "update"))}
    assert bad(behind) == [], "its age is judged by the API server's clock, not by ours"
    assert states(well, "ok")["picker.ready"] == "1 of 2 pickers are ready, one of them as leader"
    told = states(old, "broken")["picker.leader"]  # HTTP's dates have whole seconds
    assert re.search("hasn't renewed it for (59|60) s, of 15", told)
    assert states(nobody, "broken") == {"picker.leader": "nobody leads"}
    assert list(states(restarts, "broken")) == ["picker.probe"]


async def test_what_it_speaks():
    """Flags say TLS, the port speaks none."""
    async with running() as world:
        world.api.apply(world.picker("--secure-serving=true"))
        findings = await world.examined()
    assert states(findings, "broken") == {"picker.ext_proc": "speaks plain text, its flags say TLS"}


async def test_rights():
    """Asked for in the name of the picker's service account; what it lacks, and what goes without that."""
    async with running() as world:
        world.api.denied = {("watch", "inferencepools"), ("create", "tokenreviews")}
        findings = await world.examined()
        users = {spec.get("user") for _, spec in world.api.reviewed}
    assert users == {f"system:serviceaccount:{NAMESPACE}:epp"}
    assert states(findings, "broken") == {
        "picker.rights": "may not watch inferencepools.inference.networking.k8s.io: it doesn't know its pool"
    }
    assert states(findings, "warning") == {
        "picker.rights": "may not create tokenreviews.authentication.k8s.io: nobody can read its metrics"
    }


async def test_rights_by_oneself():
    """In the picker's pod it asks for itself; whoever may not ask for others is told so."""
    async with running() as world:
        world.api.me = f"system:serviceaccount:{NAMESPACE}:epp"
        own = await world.examined()
        kinds = {plural for plural, _ in world.api.reviewed}
        world.api.me = "somebody"
        world.api.denied = {("create", "subjectaccessreviews")}
        other = await world.examined()
    assert bad(own) == []
    assert kinds == {"selfsubjectaccessreviews"}
    assert states(other, "unknown") == {"picker.rights": "what follows is asked for somebody instead"}


# --- what has happened


async def test_history():
    """Warnings among the events, errors in the log, memory near its limit."""
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": NAMESPACE},
        "involvedObject": {"kind": "Pod", "name": "llama-0"},
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed",
        "count": 7,
    }
    usage = {
        "apiVersion": "metrics.k8s.io/v1beta1",
        "kind": "PodMetrics",
        "metadata": {"name": "llama-0", "namespace": NAMESPACE},
        "containers": [{"name": "main", "usage": {"memory": "95Mi", "cpu": "1"}}],
    }
    async with running() as world:
        world.api.apply(event, usage)
        limits = {"limits": {"memory": "100Mi"}}
        world.change("Pod", "llama-0", lambda each: each["spec"]["containers"][0].update(resources=limits))
        world.api.logs["epp-0"] += 'not json\n{"level": "error", "msg": "no pool"}\n'
        findings = await world.examined()
    assert states(findings, "warning") == {
        "events": "Unhealthy: Readiness probe failed (7 times)",
        "picker.log": "1 errors among its last 200 lines, the last: no pool",
        "pod.memory": "container main uses 95Mi of 100Mi",
    }


# --- KServe


def service(**spec):
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "llama", "namespace": NAMESPACE},
        "spec": {"router": {"scheduler": {}}, **spec},
        "status": {"conditions": [condition("Ready", "True", "")]},
    }


async def test_kserve():
    """The pool is found by its labels; the selector is that of KServe's workload."""
    workload = {"app.kubernetes.io/part-of": "llminferenceservice", "kserve.io/component": "workload"}
    labels = {"app.kubernetes.io/name": "llama", **workload}
    async with running() as world:
        made = pool("hashed-7f3a", labels, [world.port], namespace=NAMESPACE)
        made["spec"]["endpointPickerRef"]["name"] = "llama-epp"
        made["metadata"]["labels"] = {k: v for k, v in labels.items() if k.startswith("app")}
        (first,) = world.api.objects("InferencePool")
        made["status"] = first["status"]
        world.api.remove(first)
        world.api.apply(service(), made, world.picker("--pool-name=hashed-7f3a"))
        world.change("HTTPRoute", "route", lambda e: e["spec"]["rules"][0]["backendRefs"][0].update(name="hashed-7f3a"))
        for index, address in enumerate(ADDRESSES):
            world.api.apply(pod(f"llama-{index}", address, namespace=NAMESPACE, labels=labels))
        findings = await world.examined(Wanted(NAMESPACE, kserve="llama"))
    assert bad(findings) == []
    assert states(findings, "ok")["kserve.ready"] == "is ready, KServe says"


async def test_kserve_conditions():
    """Each one that is false, with where to look."""
    async with running() as world:
        made = service(router={"scheduler": {"pool": {"ref": {"name": "llama"}}}})
        made["status"]["conditions"] = [
            condition("Ready", "False", "SchedulerNotReady"),
            condition("SchedulerWorkloadReady", "False", "MinimumReplicasUnavailable"),
        ]
        world.api.apply(made)
        findings = await world.examined(Wanted(NAMESPACE, kserve="llama"))
    found = only(findings, "broken")
    assert found.message == "SchedulerWorkloadReady is False: MinimumReplicasUnavailable: why"
    assert found.remedy == "see the picker's pods, below"


async def test_kserve_without_a_scheduler():
    async with running() as world:
        world.api.remove(*world.api.objects("InferencePool"))
        world.api.apply(service(router={}))
        findings = await world.examined(Wanted(NAMESPACE, kserve="llama"))
        absent = await world.examined(Wanted(NAMESPACE, kserve="lama"))
        made = service()
        made["metadata"]["annotations"] = {"serving.kserve.io/stop": "true"}
        world.api.apply(made, pool("llama", LABELS, [world.port], namespace=NAMESPACE))
        stopped = await world.examined(Wanted(NAMESPACE, kserve="llama"))
    assert only(findings, "broken").remedy == "set spec.router.scheduler: {} for a picker"
    assert only(absent, "broken").remedy == "did you mean llama?"
    assert states(stopped, "broken")["kserve.ready"] == "is stopped: KServe has removed its picker"


async def test_kserve_in_the_pickers_own_pod():
    """The service may not be read; its pool is found all the same."""
    async with running() as world:
        world.api.denied_groups = {"serving.kserve.io"}
        (made,) = world.api.objects("InferencePool")
        world.api.apply({**made, "metadata": {"name": "llama-inference-pool", "namespace": NAMESPACE}})
        findings = await world.examined(Wanted(NAMESPACE, kserve="llama"))
    assert "InferencePool llm/llama-inference-pool" in {each.subject for each in findings if each.check == "pool.found"}
    assert "kserve.found" not in states(findings, "broken")


# --- the command


def test_what_is_well_everywhere_is_told_shortly():
    findings = Findings()
    for number in range(5):
        findings.ok("engine.metrics", f"Pod {number}", "vllm")
    findings.broken("engine.metrics", "Pod 9", "is gone", "see")
    lines = findings.as_text().splitlines()
    assert [line[:8] for line in lines] == ["ok      "] * 3 + ["BROKEN  ", "        ", "ok      ", "5 ok, 0 "]
    assert lines[-2] == "ok      engine.metrics: and 2 more"


def test_a_terminal_is_narrow():
    """Lines are wrapped between words, and what belongs together is set in; an address stays whole."""
    findings = Findings()
    findings.broken(
        "engine.reachable", "Pod llm/llama-1", "nobody listens on " + "a" * 50, "see which port it listens on"
    )
    assert findings.as_text(60).splitlines() == [
        "BROKEN  engine.reachable: Pod llm/llama-1: nobody listens on",
        "          " + "a" * 50,
        "        -> see which port it listens on",
        "0 ok, 0 warnings, 1 broken, 0 unknown",
    ]
    assert len(findings.as_text().splitlines()) == 3


async def test_command(tmp_path, monkeypatch, capsys):
    """Text or JSON; the status is 1 if something is broken."""
    import asyncio

    async with running() as world:
        monkeypatch.setenv("KUBECONFIG", str(world.api.kubeconfig(tmp_path / "config", namespace=NAMESPACE)))
        well = await asyncio.to_thread(main, ["doctor", f"{NAMESPACE}/llama"])
        text = capsys.readouterr().out
        as_json = await asyncio.to_thread(main, ["doctor", "--pool-name=llama", "--json"])
        data = json.loads(capsys.readouterr().out)
        world.pages[ADDRESSES[0]] = 404
        broken = await asyncio.to_thread(main, ["doctor", "--context=fake"])
        shown = capsys.readouterr().out
    assert (well, as_json, broken) == (0, 0, 1)
    assert text.splitlines()[-1].endswith(" ok, 0 warnings, 0 broken, 0 unknown")
    assert (data["target"], data["counts"]["broken"]) == (f"InferencePool {NAMESPACE}/llama", 0)
    assert {"check", "state", "subject", "message", "remedy"} == set(data["findings"][0])
    assert "BROKEN  engine.metrics" in shown
    assert "        -> set path and port of metrics-data-source" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--pool-name=b"], "TARGET and --pool-name exclude each other"),
        (["--endpoint-selector=a=b"], "--endpoint-selector needs --endpoint-target-ports"),
        (["--endpoint-selector=a=b=c", "--endpoint-target-ports=1"], "--endpoint-selector: 'a=b=c' is no requirement"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=x"], "--endpoint-target-ports: 'x' is no whole number"),
        (["--timeout=soon"], "--timeout"),
        (["--context=none"], "there is no context 'none'"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch, capsys):
    """The status is 2, and the message says which flag."""
    file = tmp_path / "config"
    file.write_text(json.dumps({"current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}]}))  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err
