"""Of any two parameters of a plugin that are wrong both are told at once: to mend one brings nothing new to light."""

import json
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from pydantic import BaseModel

from epp.contract.manual import example
from epp.settings import InvalidConfig, Registry, resolve
from epp.settings.models import model_in
from epp.testing import context

REGISTRY = Registry.installed()
HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
WRONG = ({"no": "such"}, "no such: {", -7)
"""Values that a parameter may refuse whatever the others are."""

Place = tuple[str, ...]


def leaves(model: type[BaseModel], above: Place = ()) -> list[Place]:
    """The places of the parameters that are no models themselves."""
    found = []
    for name, field in model.model_fields.items():
        key, inner = (*above, field.alias or name), model_in(field.annotation)
        found += [key] if inner is None or field.deprecated else leaves(inner, key)
    return found


manual = cache(example)


def told(type_name: str, breaks: dict[Place, Any]) -> set[str]:
    """The places of the errors in the manual's example with those values; of a list of models in its first item."""
    config = HEAD | deepcopy(manual(REGISTRY.find(type_name).manual))
    entry = next((entry for entry in config["plugins"] if entry["type"] == type_name), {"type": type_name})
    config["plugins"] = [entry, *(each for each in config["plugins"] if each is not entry)]
    for place, value in breaks.items():
        inside = entry.setdefault("parameters", {})
        for step in place[:-1]:
            inside = inside.setdefault(step, {})
            inside = inside[0] if isinstance(inside, list) else inside
        inside[place[-1]] = value
    try:
        resolve(json.dumps(config), "f", REGISTRY, context)
    except InvalidConfig as error:
        return {problem.place for problem in error.problems}
    return set()


@pytest.mark.parametrize("type_name", REGISTRY.types)
def test_none_hides_another(type_name: str) -> None:
    """What is told of each of two alone is told of both, whether they are of the wrong type or have no such value."""
    model = getattr(REGISTRY.find(type_name).cls, "Parameters", None)
    alone: dict[Place, list[tuple[Any, set[str]]]] = {}
    for place in leaves(model) if model is not None else ():
        tried = [(value, told(type_name, {place: value})) for value in WRONG]
        refused = [(value, places) for value, places in tried if any(at.endswith(place[-1]) for at in places)]
        if refused:
            alone[place] = [refused[0], refused[-1]]
    for one, other in pairwise(alone):
        for (value, of_one), (another, of_other) in zip(alone[one], reversed(alone[other]), strict=True):
            assert of_one | of_other <= told(type_name, {one: value, other: another}), (one, other)
