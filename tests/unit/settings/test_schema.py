"""The JSON Schema for editors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from epp.__main__ import main
from epp.settings import Registry
from epp.settings.catalogue import ALIASES
from epp.settings.document import read
from epp.settings.migrations import DIVIDED
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
    names, old, file = SPEC["properties"]["type"]["anyOf"]
    deprecated = {name for name in REGISTRY.types if REGISTRY.find(name).deprecated}
    assert set(names["enum"]) == {*REGISTRY.types} - deprecated
    assert set(old["enum"]) == {*ALIASES, *DIVIDED, *deprecated}
    assert old["deprecated"] is True
    assert file["pattern"] == r"\.py(:\w+)?$"
    assert RULES.keys() == {*REGISTRY.types, *ALIASES, *DIVIDED}


CONFIGS = sorted((Path(__file__).parents[2] / "configs").iterdir())


@pytest.mark.parametrize("file", CONFIGS, ids=[file.name for file in CONFIGS])
def test_what_loads_is_valid(file):
    """Old spellings, too."""
    validator = jsonschema.validators.validator_for(SCHEMA)
    assert [error.message for error in validator(SCHEMA).iter_errors(read(file.read_text(), file.name).value)] == []


@pytest.mark.parametrize(
    ("type_name", "place"),
    [
        ("prefix-cache-scorer", ["lruCapacityPerServer"]),
        ("no-hit-lru-scorer", ["prefixPluginName"]),
        ("precise-prefix-cache-producer", ["indexerConfig", "tokenProcessorConfig"]),
        ("precise-prefix-cache-scorer", ["indexerConfig", "kvBlockIndexConfig", "maxPrefixTokensToMatch"]),
    ],
)
def test_moved_parameters_are_deprecated(type_name, place):
    """They stand where they were read once, marked."""
    found = RULES[type_name]
    for step in place:
        while "$ref" in found:
            found = SCHEMA["$defs"][found["$ref"].removeprefix("#/$defs/")]
        found = found["properties"][step]
    assert found["deprecated"] is True


def test_it_is_a_schema():
    """By the standard's own schema; and what is wrong is invalid."""
    validator = jsonschema.validators.validator_for(SCHEMA)
    validator.check_schema(SCHEMA)
    head = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    assert not validator(SCHEMA).is_valid(head | {"plugins": [{"type": "queue-scorr"}]})
    assert not validator(SCHEMA).is_valid(head | {"plugins": [{"type": "queue-scorer", "parameters": {"a": 1}}]})


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
