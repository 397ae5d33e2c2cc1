"""The JSON Schema of an `EndpointPickerConfig`, for editors: of the file, and of every plugin's parameters.

What loads with a warning, being an old spelling, is valid, and marked as deprecated.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from epp.settings.catalogue import ALIASES
from epp.settings.migrations import DIVIDED, OLD_PARAMETERS
from epp.settings.models import EndpointPickerConfig
from epp.settings.registry import PluginClass

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(plugins: Iterable[PluginClass]) -> dict[str, Any]:
    """The schema; a type that it doesn't know may be a file's, and has any parameters."""
    found = EndpointPickerConfig.model_json_schema(by_alias=True, mode="validation")
    by_type = {plugin.type: plugin for plugin in plugins}
    meant = {**ALIASES, **{old: parts[-1] for old, parts in DIVIDED.items()}}  # the last has the parameters
    renamed = {old: by_type[new] for old, new in meant.items() if new in by_type}
    old = sorted({*renamed, *(name for name, plugin in by_type.items() if plugin.deprecated)})
    spec = found["$defs"]["PluginSpec"]
    spec["properties"]["type"] = {
        "title": "Type",
        "anyOf": [
            {"enum": sorted({*by_type} - {*old})},
            {"enum": old, "deprecated": True},
            {"type": "string", "pattern": r"\.py(:\w+)?$"},
        ],
    }
    spec["allOf"] = [_rule(name, plugin, found["$defs"]) for name, plugin in sorted((by_type | renamed).items())]
    return {"$schema": DIALECT, **found, "title": "EndpointPickerConfig"}


def _rule(name: str, plugin: PluginClass, definitions: dict[str, Any]) -> dict[str, Any]:
    """Entries of this type have these parameters."""
    return {
        "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
        "then": {"properties": {"parameters": _parameters(plugin, definitions)}},
    }


def _parameters(plugin: PluginClass, definitions: dict[str, Any]) -> dict[str, Any]:
    model = getattr(plugin.cls, "Parameters", None)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {"type": "object", "additionalProperties": False, "description": plugin.summary}
    template = "#/$defs/" + plugin.type + ".{model}"
    found = model.model_json_schema(by_alias=True, mode="validation", ref_template=template)
    definitions |= {f"{plugin.type}.{name}": inner for name, inner in found.pop("$defs", {}).items()}
    for *above, key in OLD_PARAMETERS.get(plugin.type, ()):
        _at(found, above, definitions).setdefault(str(key), {"deprecated": True})
    return found | {"description": plugin.summary}


def _at(parameters: dict[str, Any], steps: Sequence[str | int], definitions: dict[str, Any]) -> dict[str, Any]:
    """The properties of the object at a place inside the parameters."""
    found = parameters
    for step in steps:
        reference: str = found["properties"][step]["$ref"]
        found = definitions[reference.removeprefix("#/$defs/")]
    properties: dict[str, Any] = found.setdefault("properties", {})
    return properties
