"""What doesn't fit `EndpointPickerConfig` replaced by what may have been meant: one slip hides no other error."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from epp.settings.models import API_VERSION, KIND, EndpointPickerConfig, keys_at
from epp.settings.problems import BROKEN, Path, nearest, within

_FILLED = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "type": BROKEN,
    "name": BROKEN,
    "pluginRef": BROKEN,
}
"""What stands for a required key whose value is missing, or can't be read."""

_LISTS = {
    "plugins": [{"type": BROKEN, "name": BROKEN}],
    "schedulingProfiles": [{"name": BROKEN}],
    "sources": [{"pluginRef": BROKEN}],
}
"""What stands for a list that is none: anything may have been in it."""

_OF_KUBERNETES = frozenset({"metadata", "spec", "status"})
"""Keys of Kubernetes' objects: who writes one doesn't mean a key of ours that is spelt alike."""

_PLUGINS = {("plugins",), ("shadow", "plugins")}


class Repair:
    """One value on its way to a configuration; `value` is how far it is, `replaced` the places that were filled.

    `respelt` has the places of what was read under another key, each with its place in the file.

    Args:
        value: of the file, not yet decoded; it is changed.
    """

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.replaced: set[Path] = set()
        self.respelt: dict[Path, Path] = {}

    def take(self, faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
        """Mends what these are about; gives back those that don't only follow from what was mended."""
        told = [fault for fault in faults if not any(within(fault["loc"], place) for place in self.replaced)]
        for fault in faults:
            if fault["type"] == "extra_forbidden":
                self.respelt |= respell(self.value, fault, EndpointPickerConfig)
            else:
                self._fill(fault)
        return told

    def _fill(self, fault: ErrorDetails) -> None:
        *above, key = place = fault["loc"]
        parent = stands_at(self.value, above)
        if isinstance(parent, list) and isinstance(key, int):
            item = BROKEN if fault["type"] == "string_type" else {}
            parent[key] = _LISTS["plugins"][0] if place[:-1] in _PLUGINS else item
        elif isinstance(parent, dict):
            self._fill_key(parent, str(key), fault)
        self.replaced.add(place)

    def _fill_key(self, parent: dict[str, Any], key: str, fault: ErrorDetails) -> None:
        wrong, place = parent.pop(key, None), fault["loc"]
        if key == "name" and place[:-2] in _PLUGINS:
            parent[key] = str(wrong) if isinstance(wrong, int | float) else BROKEN  # a number as others refer to it
        elif place in _PLUGINS or key in {"schedulingProfiles", "sources"}:
            parent[key] = _LISTS[key]
        elif key == "priority":
            parent[key] = -len(self.replaced) - 2**40  # nobody else's
        elif fault["type"] == "missing" or place in {("apiVersion",), ("kind",)}:
            parent[key] = _FILLED[key]


def respell(value: dict[str, Any], fault: ErrorDetails, model: type[BaseModel]) -> dict[Path, Path]:
    """Puts the value of an unknown key under the one that is meant, or away; the new place, with the one it had."""
    *above, key = fault["loc"]
    parent, place = stands_at(value, above), meant(fault, model)
    wrong = parent.pop(str(key), None)
    if place is None or place[-1] in parent:
        return {}
    parent[str(place[-1])] = wrong
    return {place: fault["loc"]}


def meant(fault: ErrorDetails, model: type[BaseModel]) -> Path | None:
    """Of an unknown key the place of the known one that it is most like; None if there is none."""
    if fault["type"] != "extra_forbidden":
        return None
    *above, key = fault["loc"]
    if not above and key in _OF_KUBERNETES:
        return None
    spelt = nearest(str(key), keys_at(model, above))
    return (*above, spelt) if spelt else None


def stands_at(value: Any, path: Sequence[str | int]) -> Any:
    """What stands at a place of a value; or as near to it as there is something."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(str(step))
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
    return value
