"""What objects of the API server say: a pod's endpoints, a pool's pods, objectives, rewrites, and the models of old."""

from typing import Any

import msgspec
import pytest

from epp.data.kubernetes.objects import (
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    mixed_weights,
    objects_of,
)
from epp.data.kubernetes.pods import Pod, endpoints_of
from epp.kube.client import OLD_GROUP, POOL_GROUP
from epp.objects import Objects
from epp.pool import Endpoint
from tests.kube.api import pod, pool


def read(kind: Any, each: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(each), type=kind)


ANNOTATION = "llm-d.ai/active-ports"
OLDER = "inference.networking.k8s.io/active-ports"
ONE = (("p-rank-0", 8000),)
PODS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[tuple[str, int], ...]]] = {
    "one port": (pod("p", "10.0.0.1"), (8000,), ONE),
    "a rank a port": (pod("p", "10.0.0.1"), (8000, 8001), (*ONE, ("p-rank-1", 8001))),
    "not ready": (pod("p", "10.0.0.1", ready=False), (8000,), ()),
    "on its way out": (pod("p", "10.0.0.1", deleted=True), (8000,), ()),
    "without an address": (pod("p"), (8000,), ()),
    "some ranks": (pod("p", "10.0.0.1", annotations={ANNOTATION: "8001, 8002"}), (8000, 8001), (("p-rank-1", 8001),)),
    "the older name": (pod("p", "10.0.0.1", annotations={OLDER: "8000"}), (8000, 8001), ONE),
    "the newer name counts": (pod("p", "10.0.0.1", annotations={OLDER: "8001", ANNOTATION: "8000"}), (8000, 8001), ONE),
    "what is no port": (pod("p", "10.0.0.1", annotations={ANNOTATION: "8000,x,"}), (8000, 8001), ONE),
    "a number without an end": (pod("p", "10.0.0.1", annotations={ANNOTATION: f"8000,{'9' * 5000}"}), (8000,), ONE),
    "no rank": (pod("p", "10.0.0.1", annotations={ANNOTATION: ""}), (8000,), ()),
    "no ports yet": (pod("p", "10.0.0.1"), (), ()),
}


@pytest.mark.parametrize(("each", "ports", "endpoints"), PODS.values(), ids=PODS)
def test_the_endpoints_of_a_pod(
    each: dict[str, Any], ports: tuple[int, ...], endpoints: tuple[tuple[str, int], ...]
) -> None:
    found = endpoints_of(read(Pod, each), ports)
    assert tuple((endpoint.name, endpoint.port) for endpoint in found) == endpoints


def test_an_endpoint_has_the_pods_namespace_address_labels_and_node() -> None:
    each = pod("p", "fd00::1", namespace="ns", labels={"llm-d.ai/role": "decode"})
    (found,) = endpoints_of(read(Pod, each), (8000,))
    labels = {"llm-d.ai/role": "decode"}
    assert found == Endpoint("p-rank-0", "fd00::1", 8000, "ns", labels, node="node-1", node_address="192.0.2.1")
    assert found.node_host == "192.0.2.1"
    assert found.hostport == "[fd00::1]:8000"


@pytest.mark.parametrize(
    ("each", "labels", "ports", "protocol"),
    [
        (pool("p", {"a": "b"}, (8000, 8001)), {"a": "b"}, (8000, 8001), ""),
        (pool("p", {"a": "b"}, appProtocol="kubernetes.io/h2c"), {"a": "b"}, (8000,), "kubernetes.io/h2c"),
        (pool("p", {"a": "b"}, (8200,), old=True), {"a": "b"}, (8200,), ""),
        (pool("p", {"matchLabels": "b"}, old=True), {"matchLabels": "b"}, (8000,), ""),
    ],
    ids=["v1", "v1, h2c", "v1alpha2", "v1alpha2 with a label of that name"],
)
def test_a_pool_of_either_version(each: Any, labels: dict[str, str], ports: tuple[int, ...], protocol: str) -> None:
    said = read(InferencePool, each).declared
    assert (said.labels, said.ports, said.app_protocol) == (labels, ports, protocol)


REF = {"name": "llama"}


def meta(name: str, created: str = "2026-01-01T00:00:00Z") -> dict[str, str]:
    return {"name": name, "namespace": "default", "creationTimestamp": created}


def objective(name: str, priority: int | None, ref: dict[str, str] = REF) -> InferenceObjective:
    spec = {"poolRef": ref} | ({} if priority is None else {"priority": priority})
    return read(InferenceObjective, {"metadata": meta(name), "spec": spec})


def rewrite(name: str, *rules: Any, created: str = "2026", ref: dict[str, str] = REF) -> InferenceModelRewrite:
    spec = {"poolRef": ref, "rules": list(rules)}
    return read(InferenceModelRewrite, {"metadata": meta(name, created), "spec": spec})


def rule(target: str, *models: str, weight: int | None = None) -> Any:
    matches = [{"model": {"type": "Exact", "value": model}} for model in models]
    return {"matches": matches, "targets": [{"modelRewrite": target, **({"weight": weight} if weight else {})}]}


def model(name: str, criticality: str | None, *targets: Any, created: str = "2026", **ref: str) -> InferenceModel:
    spec = {"modelName": name, "poolRef": {"name": "llama", **ref}, "targetModels": list(targets)}
    spec |= {"criticality": criticality} if criticality else {}
    return read(InferenceModel, {"metadata": meta(f"of-{name}", created), "spec": spec})


def of(objectives: Any = (), rewrites: Any = (), models: Any = (), group: str = POOL_GROUP) -> Objects:
    return objects_of(objectives, rewrites, models, "llama", group)


def test_objectives_of_the_pool() -> None:
    """A priority that isn't said is 0; those of other pools, and of other groups' pools, are not ours."""
    others = [objective("x", 7, {"name": "other"}), objective("y", 7, {"name": "llama", "group": OLD_GROUP})]
    found = of([objective("a", 5), objective("b", None), objective("c", -1, REF | {"group": POOL_GROUP}), *others])
    assert found.priorities == {"a": 5, "b": 0, "c": -1}
    assert of(others, group=OLD_GROUP).priorities == {"y": 7}


def test_of_two_rewrites_for_a_model_the_older_counts() -> None:
    new = rewrite("new", rule("three", "chat"), rule("any"), created="2026-02")
    old = rewrite("old", rule("two", "chat"), created="2026-01")
    found = of(rewrites=[new, old, rewrite("other", rule("x", "y"), ref={"name": "other"})])
    assert (found.exact["chat"].targets, found.exact["chat"].name) == (("two",), "old")
    assert found.rule("anything") is found.generic
    assert found.generic is not None
    assert found.generic.targets == ("any",)


@pytest.mark.parametrize(
    ("criticality", "priority"),
    [("Critical", 10), ("Standard", 0), ("Normal", 0), ("Sheddable", -10), (None, 0), ("Unheard", 0)],
)
def test_a_models_criticality_is_the_priority_of_its_requests(criticality: str | None, priority: int) -> None:
    found = of(models=[model("chat", criticality, group=OLD_GROUP)])
    assert found.priority("", "chat") == priority
    assert found.priority("", "other") == 0
    assert found.rule("chat") is None


def test_an_objective_beats_a_criticality_and_a_rewrite_the_targets_of_a_model() -> None:
    targets = [{"name": "chat-1", "weight": 9}, {"name": "chat-2", "weight": 1}]
    models = [model("chat", "Critical", *targets), model("code", "Sheddable", {"name": "code-1"})]
    found = of([objective("low", -5)], [rewrite("r", rule("code-9", "code"))], models)
    assert (found.priority("low", "chat"), found.priority("unknown", "chat")) == (-5, 0)
    assert (found.exact["chat"].targets, found.exact["chat"].weights) == (("chat-1", "chat-2"), (9, 1))
    assert found.exact["code"].targets == ("code-9",)


def test_of_two_models_of_one_name_the_older_counts() -> None:
    young, old = model("chat", "Sheddable", created="2026-02"), model("chat", "Critical", created="2026-01")
    assert of(models=[young, old]).priority("", "chat") == 10


def test_targets_that_are_never_taken() -> None:
    mixed = {"targets": [{"modelRewrite": "a", "weight": 1}, {"modelRewrite": "b"}]}
    assert mixed_weights([rewrite("r", rule("a", "m"), mixed)]) == [
        "InferenceModelRewrite r: spec.rules[1]: targets without a weight beside others with one are never taken"
    ]
