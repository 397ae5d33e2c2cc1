"""The JSON Schema for editors."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from epp.__main__ import main
from epp.settings import Registry
from epp.settings.catalogue import ALIASES
from epp.settings.schema import schema

REGISTRY = Registry.installed()
SCHEMA = schema(map(REGISTRY.find, REGISTRY.types))
SPEC = SCHEMA["$defs"]["PluginSpec"]
RULES = {rule["if"]["properties"]["type"]["const"]: rule["then"]["properties"]["parameters"] for rule in SPEC["allOf"]}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from references(inner)


def test_it_hangs_together():
    """Every reference leads to a definition, and all of it is JSON."""
    assert {reference.removeprefix("#/$defs/") for reference in references(SCHEMA)} <= SCHEMA["$defs"].keys()
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_the_file():
    """The keys of the file, and no others."""
    assert SCHEMA["required"] == ["apiVersion", "kind"]
    assert SCHEMA["additionalProperties"] is False
    assert {"plugins", "schedulingProfiles", "dataLayer", "flowControl", "saturationDetector"} <= SCHEMA[
        "properties"
    ].keys()
    assert SCHEMA["$defs"]["FlowControl"]["properties"]["defaultRequestTTL"]["type"] == "string"


def test_types():
    """Every type, old names too, has its parameters; a file is one as well."""
    names, file = SPEC["properties"]["type"]["anyOf"]
    assert set(names["enum"]) == {*REGISTRY.types, *ALIASES}
    assert file["pattern"] == r"\.py(:\w+)?$"
    assert RULES.keys() == {*REGISTRY.types, *ALIASES}


@pytest.mark.parametrize(
    ("type_name", "parameters"),
    [
        ("queue-scorer", set()),
        ("max-score-picker", {"maxNumOfEndpoints"}),
        ("metrics-data-source", {"scheme", "path", "port", "interval"}),
        ("disagg-profile-handler", {"stageOrder", "profiles", "deciders", "decodeProfile"}),
        ("model-server-protocol-metrics", {"engineConfigs", "defaultEngine"}),
    ],
)
def test_parameters(type_name, parameters):
    """The parameters as they are written in the file, no others."""
    found = RULES[type_name]
    assert found["additionalProperties"] is False
    assert parameters <= found.get("properties", {}).keys()
    assert bool(found.get("properties")) is bool(parameters)


def test_durations_are_text():
    """A duration is written as one."""
    assert {"type": "string"} in RULES["metrics-data-source"]["properties"]["interval"]["anyOf"]


def test_command(capsys):
    """`epp config schema` prints it."""
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
