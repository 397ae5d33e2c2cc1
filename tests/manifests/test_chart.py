"""The chart's values: all documented, all checked, refused with a reason where they can't be meant."""

import json
import shlex
import subprocess

import pytest
import yaml

from epp.__main__ import main
from tests.kube.api import FakeApi
from tests.manifests.renderings import CHART
from tests.manifests.schemas import check
from tests.manifests.tools import lint, notes, template

SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def leaves(schema, path=""):
    """Each value by its path, with its schema."""
    for key, inner in schema.get("properties", {}).items():
        yield f"{path}{key}", inner
        yield from leaves(inner, f"{path}{key}.")


def at(values, path):
    for key in path.split("."):
        values = values[key]
    return values


def test_every_value_is_documented():
    """The schema describes exactly the values that there are, and the file has their defaults."""
    described = {path: schema for path, schema in leaves(SCHEMA) if path != "global"}
    assert all(schema["description"].endswith(".") for schema in described.values())
    for path in described:
        at(VALUES, path)
    open_ended = ("labels", "annotations", "resources")
    for path, schema in described.items():
        value = at(VALUES, path)
        if isinstance(value, dict) and path.split(".")[-1] not in open_ended and "properties" in schema:
            assert value.keys() <= schema["properties"].keys(), path


@pytest.mark.parametrize("file", sorted((CHART / "ci").glob("*.yaml")), ids=lambda file: file.name)
def test_lint(file):
    assert "0 chart(s) failed" in lint(CHART, "--values", str(file))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("replicas=0", "at '/replicas': minimum"),
        ("pool.failureMode=FailClosed", "at '/pool/failureMode': value must be one of 'FailOpen', 'FailClose'"),
        ("modelServers.ports={70000}", "at '/modelServers/ports/0': maximum"),
        ("modelServers.ports=null", "at '/modelServers': missing property 'ports'"),
        ("config.kind=Deployment", "at '/config'"),
        ("leaderElection=true", "at '/leaderElection'"),
        ("pool.enabled=false", "pool.enabled is false, which is of use with envoy.enabled only"),
        ("flags.grpc-port=1", "flags.grpc-port: the chart sets it from other values"),
        ("pool.apiVersion=v1alpha2,modelServers.ports={1,2}", "an InferencePool of v1alpha2 has one port"),
        ("envoy.enabled=true,leaderElection=on", "with envoy.enabled each replica has a picker of its own"),
        ("serviceMonitor.enabled=true,serviceMonitor.createToken=false", "with metrics.auth the scrape needs a token"),
        ("configMapName=a,config.apiVersion=llm-d.ai/v1alpha1,config.kind=EndpointPickerConfig", "exclude each other"),
        ("pool.enabled=false,envoy.enabled=true,httpRoute.enabled=true", "set pool.enabled"),
    ],
)
def test_values_that_cant_be_meant(values, problem):
    """Helm refuses them and says which, and why."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        template(CHART, "--set", values)
    assert problem in caught.value.stderr


@pytest.mark.parametrize(
    ("file", "told", "untold"),
    [
        (
            "default",
            ["1 x endpoint-picker:", "Nobody may read them", "no registry in its name", "No route leads to the pool"],
            ["One of them leads", "made by somebody else"],
        ),
        (
            "high-availability",
            ["One of them leads and is ready"],
            ["Nobody may read them", "no registry in its name", "No route leads to the pool"],
        ),
        ("foreign", ["llm/theirs (inference.networking.k8s.io), made by somebody else"], ["Nobody may", "No route"]),
        ("standalone", ["http://epp.llm.svc.cluster.local/v1/chat/completions"], ["InferencePool", "No route"]),
    ],
)
def test_notes(file, told, untold):
    """They say what is still to be done, and no more."""
    shown = notes(CHART, "--values", str(CHART / "ci" / f"{file}-values.yaml"))
    assert [text for text in told if text not in shown] == []
    assert [text for text in untold if text in shown] == []


@pytest.mark.parametrize("file", sorted((CHART / "ci").glob("*.yaml")), ids=lambda file: file.name)
def test_the_doctor_takes_what_the_notes_say(file, tmp_path, monkeypatch, capsys):
    """As it stands there: it looks for an API server, and finds none."""
    shown = notes(CHART, "--values", str(file)).replace("\\\n", " ")
    _, command = shown.split("/app/epp ")
    nobody = FakeApi()
    nobody.port = 1
    monkeypatch.setenv("KUBECONFIG", str(nobody.kubeconfig(tmp_path / "config")))
    assert main(shlex.split(command)) == 1
    assert "BROKEN  api:" in capsys.readouterr().out


def test_two_releases():
    """Two releases of one name in two namespaces share no object of the whole cluster."""
    names = [
        {
            each["metadata"]["name"]
            for each in template(CHART, namespace=namespace)
            if each["kind"].startswith("Cluster")
        }
        for namespace in ("one", "two")
    ]
    assert len(names[0]) == 2
    assert not names[0] & names[1]


def test_long_names():
    """What is derived from a long release name is still a name."""
    made = template(CHART, "--set", "envoy.enabled=true", name="r" * 53)
    check(made)
    assert all(len(each["metadata"]["name"]) <= 63 for each in made if each["kind"] in {"Service", "Deployment"})


def test_names_that_look_like_numbers():
    """Every name stays text, where it stands alone, too."""
    given = (
        "pool.name=12345",
        "fullnameOverride=1e3",
        "nameOverride=0x1f",
        "serviceAccount.name=077",
        "tls.secretName=1",
    )
    given += ("serviceMonitor.secretName=4", "metrics.readers[0].name=5", "metrics.readers[0].namespace=6")
    given += ("objectives[0].name=2e3", "image.pullSecrets[0]=8", "priorityClassName=9")
    switches = (
        "serviceMonitor.enabled=true",
        "podMonitor.enabled=true",
        "httpRoute.enabled=true",
        "istio.enabled=true",
    )
    switches += ("objectives[0].priority=1", "replicas=2")
    made = template(CHART, "--set-string", ",".join(given), "--set", ",".join(switches), name="10", namespace="123")
    check(made)
    assert {each["metadata"].get("namespace", "123") for each in made} == {"123"}
    (found,) = [each["metadata"]["name"] for each in made if each["kind"] == "InferencePool"]
    assert found == "12345"
