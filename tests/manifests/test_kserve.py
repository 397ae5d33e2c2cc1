"""KServe's overlays, A to F: each changes what it says and leaves the rest of the service alone."""

import copy

import pytest
import yaml

from epp.cli.flags import parse
from tests.manifests.renderings import KUBERNETES, documents, of

IMAGE = "registry.example.com/endpoint-picker:0.1.0"

PRESET_COMMAND = [
    "/app/epp",
    "--pool-name",
    "llama-inference-pool",
    "--pool-namespace",
    "llm",
    "--zap-encoder",
    "json",
    "--grpc-port",
    "9002",
    "--grpc-health-port",
    "9003",
    "",
    "",
    "",
    "",
]
"""As KServe 0.20's preset renders it with TLS off."""


def service(name):
    (found,) = of(f"kustomize/kserve/{name}", "LLMInferenceService")
    return found


def scheduler(name):
    return service(name)["spec"]["router"]["scheduler"]


def without_scheduler(document):
    made = copy.deepcopy(document)
    made["spec"]["router"]["scheduler"] = {}
    made["spec"].pop("baseRefs", None)
    return made


@pytest.mark.parametrize(
    "name", ["a-image", "b-base-config", "d-config-inline", "d-config-ref", "e-flags", "f-own-picker"]
)
def test_the_rest_is_left_alone(name):
    assert without_scheduler(service(name)) == service("service")


def test_a():
    """The image and nothing else."""
    assert scheduler("a-image") == {"template": {"containers": [{"name": "main", "image": IMAGE}]}}


def test_b():
    """The service names the configuration that has the image."""
    (config,) = of("kustomize/kserve/b-base-config", "LLMInferenceServiceConfig")
    assert service("b-base-config")["spec"]["baseRefs"] == [{"name": config["metadata"]["name"]}]
    assert config["spec"]["router"]["scheduler"] == scheduler("a-image")


def test_c():
    """The patch of KServe's preset: the image of its first container, if that is the picker."""
    test, replace = yaml.safe_load((KUBERNETES / "kserve" / "c-cluster-wide" / "patch.yaml").read_text("utf-8"))
    container = "/spec/router/scheduler/template/containers/0"
    assert test == {"op": "test", "path": f"{container}/name", "value": "main"}
    assert replace == {"op": "replace", "path": f"{container}/image", "value": IMAGE}


def test_d():
    """A configuration inline, or in the ConfigMap that is named: one of both, as KServe demands."""
    assert scheduler("d-config-inline")["config"]["inline"]["kind"] == "EndpointPickerConfig"
    ref = scheduler("d-config-ref")["config"]["ref"]
    (config,) = of("kustomize/kserve/d-config-ref", "ConfigMap")
    assert (ref["name"], [ref["key"]]) == (config["metadata"]["name"], list(config["data"]))


def test_e():
    """The flags stand behind the preset's, and KServe's --config-text behind both; all of them are understood."""
    (container,) = scheduler("e-flags")["template"]["containers"]
    text = yaml.safe_dump(scheduler("d-config-inline")["config"]["inline"])
    arguments = [*PRESET_COMMAND[1:], *container["args"], "--config-text", text]
    options = parse(arguments, {})
    assert (options.pool_name, options.pool_namespace) == ("llama-inference-pool", "llm")
    assert (options.metrics_endpoint_auth, options.verbosity, options.config_text) == (False, 4, text)


def test_f():
    """The service names our pool, and the pool selects the service's workload, not its other pods."""
    (pool,) = of("kustomize/kserve/f-own-picker", "InferencePool")
    assert scheduler("f-own-picker") == {"pool": {"ref": {"name": pool["metadata"]["name"]}}}
    assert pool["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": service("f-own-picker")["metadata"]["name"],
        "app.kubernetes.io/part-of": "llminferenceservice",
        "kserve.io/component": "workload",
    }
    assert {each["kind"] for each in documents("kustomize/kserve/f-own-picker")} >= {"Deployment", "Service", "Role"}


def test_the_charts_values_for_f():
    """The chart does the same with its values."""
    (chart,) = of("chart/kserve", "InferencePool")
    (overlay,) = of("kustomize/kserve/f-own-picker", "InferencePool")
    assert chart["spec"]["selector"] == overlay["spec"]["selector"]
    assert chart["spec"]["targetPorts"] == overlay["spec"]["targetPorts"]
