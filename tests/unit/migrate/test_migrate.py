"""`epp migrate`: what becomes of each kind, valid by the CRDs, and what is refused."""

import io
import textwrap

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.__main__ import main
from epp.errors import ConfigError
from epp.migrate import migrate
from tests.manifests.schemas import check

OLD = "inference.networking.x-k8s.io"
NEW = "inference.networking.k8s.io"
KNOWN = "InferenceModel v1alpha1, InferenceModel v1alpha2, InferencePool v1alpha2"

POOL = f"""
apiVersion: {OLD}/v1alpha2
kind: InferencePool
metadata: {{name: pool, namespace: llm}}
spec:
  selector: {{app: vllm}}
  targetPortNumber: 8000
  extensionRef: {{name: epp}}
"""

MODEL = f"""
apiVersion: {OLD}/v1alpha2
kind: InferenceModel
metadata: {{name: chat, labels: {{team: a}}}}
spec:
  modelName: chat-model
  criticality: Critical
  poolRef: {{name: pool}}
  targetModels: [{{name: v1, weight: 90}}, {{name: v2, weight: 10}}]
"""


def converted(source):
    return list(yaml.safe_load_all(migrate([("file", source)]).text))


def with_spec(source, **spec):
    document = yaml.safe_load(source)
    document["spec"] |= spec
    return yaml.safe_dump({**document, "spec": {key: value for key, value in document["spec"].items() if value != ...}})


def test_pool():
    """A whole pool; the port that v1alpha2 leaves to gateways is written down."""
    migration = migrate([("file", POOL)])
    document = yaml.safe_load(migration.text)
    assert document == {
        "apiVersion": f"{NEW}/v1",
        "kind": "InferencePool",
        "metadata": {"name": "pool", "namespace": "llm"},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }
    check([document])
    place = "file:8: InferencePool pool: spec.extensionRef.portNumber"
    assert migration.notes == (f"{place}: is left out, which means 9002; v1 wants it written down, so it is now",)


LABEL = st.from_regex(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,5})?[A-Za-z0-9]", fullmatch=True)
PORT = st.integers(1, 65535)


@settings(max_examples=25)  # each is checked against the CRDs
@given(
    st.dictionaries(LABEL, LABEL, min_size=1, max_size=4),
    PORT,
    st.fixed_dictionaries(
        {"name": st.just("epp")},
        optional={
            "group": st.just(""),
            "kind": st.just("Service"),
            "portNumber": PORT,
            "failureMode": st.sampled_from(["FailOpen", "FailClose"]),
        },
    ),
    st.dictionaries(LABEL, LABEL, max_size=2),
)
def test_any_pool(selector, port, ref, labels):
    """Every valid v1alpha2 pool becomes a valid v1 pool that says the same."""
    document = yaml.safe_load(POOL)
    document["metadata"]["labels"] = labels
    document["spec"] = {"selector": selector, "targetPortNumber": port, "extensionRef": ref}
    check([document])
    (made,) = converted(yaml.safe_dump(document))
    check([made])
    spec = made["spec"]
    assert spec["selector"]["matchLabels"] == selector
    assert spec["targetPorts"] == [{"number": port}]
    new = spec["endpointPickerRef"]
    assert new.pop("port") == {"number": ref.pop("portNumber", 9002)}
    assert (new, made["metadata"]["labels"]) == (ref, labels)


def test_what_a_server_wrote():
    """An object as `kubectl get -o yaml` prints it: its status and identity are the old object's."""
    document = yaml.safe_load(POOL)
    document["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 2, "annotations": {"a": "b"}}
    document["status"] = {"parent": []}
    source = yaml.safe_dump(
        {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [document]}
    )
    (made,) = converted(source)
    assert made["kind"] == "List"
    assert made["items"][0]["metadata"] == {"name": "pool", "namespace": "llm", "annotations": {"a": "b"}}
    check(made["items"])


@pytest.mark.parametrize("named", [True, False], ids=["each with its kind", "kinds only in the list's"])
def test_lists_of_a_kind(named):
    """As an API server answers; what they become is of several kinds, and so a plain List."""
    spec = {"modelName": "chat", "poolRef": {"name": "pool"}, "targetModels": [{"name": "a", "weight": 1}]}
    model = {"apiVersion": f"{OLD}/v1alpha2", "kind": "InferenceModel", "metadata": {"name": "m"}, "spec": spec}
    source = []
    for item in (yaml.safe_load(POOL), model):
        listed = {"apiVersion": item["apiVersion"], "kind": f"{item['kind']}List", "metadata": {"resourceVersion": "7"}}
        left = item if named else {key: item[key] for key in ("metadata", "spec")}
        source.append(listed | {"items": [left]})
    pools, models, empty = converted(yaml.safe_dump_all([*source, source[0] | {"items": None}]))
    assert [(each["apiVersion"], each["kind"]) for each in (pools, models, empty)] == [("v1", "List")] * 3
    assert [each["kind"] for each in pools["items"]] == ["InferencePool"]
    assert [each["kind"] for each in models["items"]] == ["InferenceObjective", "InferenceModelRewrite"]
    assert empty["items"] == []
    check([*pools["items"], *models["items"]])


def test_other_lists():
    """Items follow the pool to its new group; what is only called a list is somebody's object, and stays."""
    ref = {"group": OLD, "kind": "InferencePool", "name": "pool"}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"}}
    route["spec"] = {"rules": [{"backendRefs": [ref]}]}
    routes = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRouteList", "items": [route]}
    hosts = {"apiVersion": "example.com/v1", "kind": "AllowList", "metadata": {"name": "a"}, "items": ["a", "b"]}
    made, kept = converted(yaml.safe_dump_all([routes, hosts]))
    assert made["kind"] == "HTTPRouteList"
    assert made["items"][0]["spec"]["rules"][0]["backendRefs"][0]["group"] == NEW
    assert kept == hosts


def test_two_of_a_name_in_lists():
    """However they are wrapped."""
    pool = yaml.safe_load(POOL)
    listed = {"apiVersion": pool["apiVersion"], "kind": "InferencePoolList", "items": [pool]}
    with pytest.raises(ConfigError, match="there are two of that name now"):
        converted(yaml.safe_dump_all([pool, listed]))


def test_other_extension():
    """A picker that is no Service has no port to be inferred."""
    (made,) = converted(with_spec(POOL, extensionRef={"group": "example.com", "kind": "Picker", "name": "epp"}))
    assert made["spec"]["endpointPickerRef"] == {"group": "example.com", "kind": "Picker", "name": "epp"}
    check([made])


def test_textbook_spellings():
    """What no API server takes but some texts have is understood."""
    source = with_spec(
        POOL, selector={"matchLabels": {"app": "vllm"}}, extensionRef={"name": "epp", "failureMode": "FailClosed"}
    )
    (made,) = converted(source)
    assert made["spec"]["selector"] == {"matchLabels": {"app": "vllm"}}
    assert made["spec"]["endpointPickerRef"]["failureMode"] == "FailClose"
    check([made])


def test_model():
    """The criticality becomes a priority, the targets a rewrite; both carry the model's metadata."""
    objective, rewrite = converted(MODEL)
    pool = {"group": NEW, "kind": "InferencePool", "name": "pool"}
    assert objective["kind"] == "InferenceObjective"
    assert objective["spec"] == {"poolRef": pool, "priority": 10}
    assert objective["metadata"] == rewrite["metadata"] == {"name": "chat", "labels": {"team": "a"}}
    assert rewrite["spec"] == {
        "poolRef": pool,
        "rules": [
            {
                "matches": [{"model": {"type": "Exact", "value": "chat-model"}}],
                "targets": [{"modelRewrite": "v1", "weight": 90}, {"modelRewrite": "v2", "weight": 10}],
            }
        ],
    }
    check([objective, rewrite])


@pytest.mark.parametrize(
    ("criticality", "priority"), [("Critical", 10), ("Standard", 0), ("Normal", 0), ("Sheddable", -10), (None, None)]
)
def test_criticality(criticality, priority):
    objective, _ = converted(with_spec(MODEL, criticality=criticality))
    assert objective["spec"].get("priority") == priority
    check([objective])


def test_model_without_targets():
    """Its name goes to the engines as it is: there is nothing to rewrite."""
    assert [each["kind"] for each in converted(with_spec(MODEL, targetModels=...))] == ["InferenceObjective"]


def test_old_weights():
    """In v1alpha1 a target without a weight has weight 1, and one of weight 0 gets nothing."""
    source = with_spec(MODEL, targetModels=[{"name": "a"}, {"name": "b", "weight": 0}, {"name": "c", "weight": 3}])
    migration = migrate([("file", source.replace("v1alpha2", "v1alpha1"))])
    rewrite = list(yaml.safe_load_all(migration.text))[1]
    targets = [{"modelRewrite": "a", "weight": 1}, {"modelRewrite": "c", "weight": 3}]
    assert rewrite["spec"]["rules"][0]["targets"] == targets
    assert any("targetModels[1].weight: 0: gets no request" in note for note in migration.notes)
    check([rewrite])


def test_references_follow():
    """Routes and policies that refer to an InferencePool refer to it in its new group; the rest stays."""
    route = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: route}}
spec:
  rules:
  - backendRefs:
    - {{group: {OLD}, kind: InferencePool, name: pool}}
    - {{name: service, port: 8000}}
---
apiVersion: {OLD}/v1alpha2
kind: InferenceObjective
metadata: {{name: high}}
spec: {{priority: 5, poolRef: {{group: {OLD}, name: pool}}}}
"""
    made, objective = converted(route)
    assert made["spec"]["rules"][0]["backendRefs"] == [
        {"group": NEW, "kind": "InferencePool", "name": "pool"},
        {"name": "service", "port": 8000},
    ]
    assert (objective["apiVersion"], objective["spec"]["poolRef"]["group"]) == ("llm-d.ai/v1alpha2", NEW)
    check([made, objective])


def test_what_is_left_to_do():
    """Flags and roles that name the old group are pointed at, and not touched."""
    source = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: epp}}
spec:
  template: {{spec: {{containers: [{{args: [--pool-group={OLD}]}}]}}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: epp}}
rules:
- apiGroups: ["{OLD}"]
"""
    migration = migrate([("file", source)])
    flag = f"still says {OLD}: leave --pool-group out, or set it to {NEW}"
    group = f"still says {OLD}: add {NEW} (InferencePools) and llm-d.ai (the others) beside it"
    assert list(yaml.safe_load_all(migration.text)) == list(yaml.safe_load_all(source))
    assert migration.converted == 0
    assert migration.notes == (
        f"file:6: Deployment epp: spec.template.spec.containers[0].args[0]: {flag}",
        f"file:12: Role epp: rules[0].apiGroups[0]: {group}",
    )


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (with_spec(POOL, targetPortNumber=...), "spec.targetPortNumber: is missing"),
        (
            with_spec(POOL, targetPortNumber="8000"),
            "spec.targetPortNumber: must be a number from 1 to 65535, not '8000'",
        ),
        (
            with_spec(POOL, targetPortNumber=70000),
            "spec.targetPortNumber: must be a number from 1 to 65535, not '70000'",
        ),
        (
            with_spec(POOL, selector={}),
            "spec.selector: v1 takes 1 to 64 labels; name one that the model servers' pods have",
        ),
        (
            with_spec(POOL, selector={"a": None}),
            'spec.selector.a: has no value: give it one ("" for an empty one), or leave a out',
        ),
        (with_spec(POOL, selector={"a": 1}), 'spec.selector.a: must be text: put "1" in quotes'),
        (with_spec(POOL, selector=["a"]), "spec.selector: must be a mapping, not a list"),
        (
            with_spec(POOL, targetPort=1),
            "spec.targetPort: unknown field, which would be lost; did you mean targetPortNumber?",
        ),
        (with_spec(POOL, extensionRef=...), "spec.extensionRef: is missing"),
        (
            with_spec(POOL, extensionRef={"name": "epp", "failureMode": "Open"}),
            "spec.extensionRef.failureMode: 'Open' is none of FailOpen, FailClose, FailClosed; did you mean FailOpen?",
        ),
        (
            with_spec(MODEL, criticality="High"),
            "spec.criticality: 'High' is none of Critical, Standard, Default, Normal, Sheddable",
        ),
        (with_spec(MODEL, modelName=...), "spec.modelName: is missing"),
        (
            with_spec(MODEL, targetModels=[{"name": "a", "weight": 1}, {"name": "b"}]),
            "spec.targetModels: some have a weight and some have none: give all of them one, or none",
        ),
        (
            with_spec(MODEL, targetModels=[{"name": "a", "weight": 0}]),
            "spec.targetModels: no target gets a request, which only reserved the name; leave the object out",
        ),
        (with_spec(MODEL, targetModels=[1]), "spec.targetModels[0]: must be a mapping, not '1'"),
        (
            with_spec(MODEL, poolRef={"name": "p", "kind": "Service"}),
            f"spec.poolRef: refers to no InferencePool of {OLD}; only those can be followed to their new group",
        ),
        (POOL.replace("{name: pool, namespace: llm}", "{}"), "metadata.name: is missing"),
        (
            POOL.replace("v1alpha2", "v1alpha3"),
            f"apiVersion: {OLD}/v1alpha3 InferencePool is not known; what can be converted: {KNOWN}",
        ),
    ],
)
def test_refused(source, problem):
    """What would lose something, or can't be meant, is refused with its place."""
    with pytest.raises(ConfigError) as caught:
        migrate([("file", source)])
    (line,) = str(caught.value).splitlines()
    place, about, message = line.split(": ", 2)
    assert place.startswith("file:")
    assert about.split()[0] in {"InferencePool", "InferenceModel"}
    assert message == problem


def test_two_of_a_name():
    """An InferenceObjective that is there already can't be made a second time."""
    with pytest.raises(ConfigError, match="InferenceObjective chat: there are two of that name now"):
        migrate(
            [("file", MODEL + f"---\napiVersion: {OLD}/v1alpha2\nkind: InferenceObjective\nmetadata: {{name: chat}}\n")]
        )


def test_every_problem_at_once():
    source = with_spec(POOL, targetPortNumber=0, selector={}) + "---\n" + with_spec(MODEL, criticality="High")
    with pytest.raises(ConfigError) as caught:
        migrate([("file", source)])
    assert len(str(caught.value).splitlines()) == 3


def test_command(tmp_path, capsys, monkeypatch):
    """Files and standard input in their order; notes go to stderr."""
    file = tmp_path / "pool.yaml"
    file.write_text(POOL)
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: ConfigMap\napiVersion: v1\nmetadata: {name: other}\n"))
    assert main(["migrate", str(file), "-"]) == 0
    out, err = capsys.readouterr()
    assert [each["kind"] for each in yaml.safe_load_all(out)] == ["InferencePool", "ConfigMap"]
    assert err.startswith(f"note: {file}:8: InferencePool pool: spec.extensionRef.portNumber: is left out")


def test_command_with_nothing_to_do(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: ConfigMap\napiVersion: v1\nmetadata: {name: other}\n"))
    assert main(["migrate"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["kind"] == "ConfigMap"
    assert err == "note: nothing of it is of the old inference APIs; it is passed through\n"


def test_command_refuses(tmp_path, capsys):
    """Nothing is printed then, and the status is 1."""
    file = tmp_path / "pool.yaml"
    file.write_text(textwrap.dedent(with_spec(POOL, targetPortNumber=0)))
    assert main(["migrate", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "targetPortNumber: must be a number from 1 to 65535" in err
    assert main(["migrate", str(tmp_path / "none.yaml")]) == 1
