"""The JSON Schema of an `EndpointPickerConfig`, for editors: of the file, and of every plugin's parameters."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from epp.settings.catalogue import ALIASES
from epp.settings.models import EndpointPickerConfig
from epp.settings.registry import PluginClass

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(plugins: Iterable[PluginClass]) -> dict[str, Any]:
    """The schema; a type that it doesn't know may be a file's, and has any parameters."""
    found = EndpointPickerConfig.model_json_schema(by_alias=True, mode="validation")
    by_type = {plugin.type: plugin for plugin in plugins}
    renamed = {old: by_type[new] for old, new in ALIASES.items() if new in by_type}
    spec = found["$defs"]["PluginSpec"]
    names = sorted({*by_type, *renamed})
    spec["properties"]["type"] = {
        "title": "Type",
        "anyOf": [{"enum": names}, {"type": "string", "pattern": r"\.py(:\w+)?$"}],
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
    return found | {"description": plugin.summary}
