"""Whether a manifest is what an API server would take: Kubernetes' own schemas, and those of CRDs with their rules.

Built-in kinds are checked by kubernetes-validate's schemas, the strict ones: unknown fields are errors. The CRDs of
the inference APIs are those that their projects publish, in `shared/data/crds`. Of the kinds of other projects (Gateway
API, Istio, Prometheus operator, KServe) nothing published can be had from a package registry; `crds/` beside this file
describes the fields that our manifests use, after the projects' documentation, and refuses all others.
"""

import copy
import functools
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = "1.37"
SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"
ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "crds"
OURS = Path(__file__).parent / "crds"

Document = dict[str, Any]


def problems(document: Document) -> list[str]:
    """What is wrong with a manifest, each with its place; [] for nothing."""
    group = document["apiVersion"].rpartition("/")[0]
    kind = (document["apiVersion"], document["kind"])
    if kind in custom():
        return list(_custom(document, custom()[kind]))
    if "." in group and not group.endswith(".k8s.io"):
        return [f"{'/'.join(kind)}: no schema"]
    return list(_built_in(document))


def check(documents: list[Document]) -> None:
    """Fails if one of them is wrong, or if two have one name."""
    found = [f"{each['kind']} {each['metadata']['name']}: {text}" for each in documents for text in problems(each)]
    assert found == []
    keys = [(each["kind"], each["apiVersion"], each["metadata"]) for each in documents]
    names = [(kind, version, meta.get("namespace"), meta["name"]) for kind, version, meta in keys]
    assert len(set(names)) == len(names)


@functools.cache
def custom() -> dict[tuple[str, str], Any]:
    """The schema of each custom kind by apiVersion and kind."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"{PUBLISHED} with the CRDs of the inference APIs is absent")
    found = {}
    for file in sorted([*PUBLISHED.glob("*.yaml"), *OURS.glob("*.yaml")]):
        crd = yaml.safe_load(file.read_text("utf-8"))["spec"]
        for version in crd["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            for kind in (crd["names"]["kind"], crd.get("alsoKind")):
                found[f"{crd['group']}/{version['name']}", kind] = schema
    return found


def _built_in(document: Document) -> Iterator[str]:
    group, _, version = document["apiVersion"].rpartition("/")
    validator = _validator("-".join(part for part in (document["kind"].lower(), group.split(".")[0], version) if part))
    if validator is None:
        yield f"{document['apiVersion']} {document['kind']}: unknown to Kubernetes {KUBERNETES}"
    else:
        for error in validator.iter_errors(document):
            yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


@functools.cache
def _validator(name: str) -> Draft202012Validator | None:
    """As kubernetes-validate makes one, which it does again for every document."""
    file = SCHEMAS / f"{name}.json"
    return Draft202012Validator(json.loads(file.read_text()), registry=_definitions()) if file.is_file() else None


@functools.cache
def _definitions() -> Registry:
    return Resource.from_contents(json.loads((SCHEMAS / "_definitions.json").read_text())) @ Registry()


def _custom(document: Document, schema: Any) -> Iterator[str]:
    validator = Draft202012Validator(_closed(schema))
    errors = list(validator.iter_errors({key: value for key, value in document.items() if key != "metadata"}))
    yield from (f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors)
    # The metadata of every kind is that of the built-in ones.
    yield from _built_in({"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]})
    if not errors:
        defaulted = copy.deepcopy(document)
        _default(defaulted, schema)
        yield from _rules(defaulted, schema, "")


def _closed(schema: Any) -> Any:
    """The schema as JSON Schema, without unknown fields: an API server would drop those."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items() if key != "description" or isinstance(value, dict)}
    open_ended = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_ended:
        made["additionalProperties"] = False
    if made.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    return made


def _default(value: Any, schema: Any) -> None:
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key not in value and "default" in inner and key != "status":
                value[key] = copy.deepcopy(inner["default"])
            if key in value:
                _default(value[key], inner)
    elif isinstance(value, list):
        for item in value:
            _default(item, schema.get("items", {}))


def _rules(value: Any, schema: Any, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if not _rule(rule["rule"]).eval(data={"self": value}).value():
            yield f"{path}: {rule['message']}"
    if schema.get("x-pod-spec"):
        yield from (f"{path}: {text}" for text in _pod(value))
    if isinstance(value, dict):
        for key, inner in schema.get("properties", {}).items():
            if key in value:
                yield from _rules(value[key], inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rules(item, schema.get("items", {}), f"{path}[{index}]")


def _pod(spec: Any) -> Iterator[str]:
    """A PodSpec inside of another object, which is merged with others before it has to be whole."""
    return _built_in(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inner"}, "spec": {"containers": []} | spec}
    )


@functools.cache
def _rule(text: str) -> Any:
    return cel.NewEnv(variables={"self": cel.Type.DYN}).compile(text)
