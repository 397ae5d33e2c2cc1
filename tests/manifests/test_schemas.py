"""The checks of manifests are worth something."""

import copy

import pytest
import yaml

from tests.manifests.schemas import check, problems

POOL = yaml.safe_load("""
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: pool}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
""")


def changed(path, value):
    made = copy.deepcopy(POOL)
    *parents, last = path.split(".")
    place = made
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return made


def test_good():
    check([POOL])


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("spec.targetPorts", [], "spec.targetPorts: [] should be non-empty"),
        ("spec.targetPorts", [{"number": 1}, {"number": 1}], "spec.targetPorts: port number must be unique"),
        ("spec.targetPort", 1, "spec: Additional properties are not allowed ('targetPort' was unexpected)"),
        (
            "spec.endpointPickerRef.port",
            None,
            "spec.endpointPickerRef: port is required when kind is 'Service' or unspecified (defaults to 'Service')",
        ),
        ("metadata.label", {}, "metadata: Additional properties are not allowed ('label' was unexpected)"),
        ("metadata.labels", {"a": 1}, "metadata.labels.a: 1 is not of type 'string', 'null'"),
    ],
)
def test_bad(path, value, problem):
    """What the CRD's schema, its rules or the metadata don't allow."""
    assert problems(changed(path, value)) == [problem]


def test_built_in():
    """Unknown fields and unknown kinds are seen."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "epp"}, "spec": {"port": []}}
    assert problems(service) == ["spec: Additional properties are not allowed ('port' was unexpected)"]
    assert problems(service | {"apiVersion": "v2"}) == ["v2 Service: unknown to Kubernetes 1.37"]
    assert problems(service | {"apiVersion": "example.com/v2"}) == ["example.com/v2/Service: no schema"]


def test_two_of_a_name():
    with pytest.raises(AssertionError):
        check([POOL, POOL])
