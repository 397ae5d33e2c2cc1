"""Makes a plugin of its class and its parameters; what is wrong with one of them hides nothing about the others."""

import inspect
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from epp.errors import ConfigError, UnknownPlugin, WrongParameters
from epp.plugin import Context
from epp.settings.decode import decode, explain, faults_of, message
from epp.settings.problems import Fault, Path, within
from epp.settings.repair import respell, stands_at
from epp.settings.rules import Rules


@dataclass(slots=True)
class Built:
    """What came of it.

    Attributes:
        plugin: the object; with faults it is one of the parameters without those that have them, or None.
        parameters: with their defaults, of those that are right; None for a class without.
        faults: what is wrong, each below the parameters.
        left_out: the places of those that the plugin was made without.
        respelt: places that are written under a misspelt key, each with its place as it is written.
    """

    plugin: Any = None
    parameters: BaseModel | None = None
    faults: list[Fault] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    respelt: dict[Path, Path] = field(default_factory=dict)

    def told(self, error: Exception) -> list[Fault]:
        """Of what a constructor or `bind` complains of, all that can't only follow from what was left out."""
        if self.left_out and not isinstance(error, WrongParameters):
            return []
        return [fault for fault in faults_of(error) if not any(within(fault[0], gone) for gone in self.left_out)]


def build(cls: type, raw: dict[str, Any], context: Context, name: str) -> Built:
    """The plugin with everything that is wrong with its parameters.

    Args:
        cls: of the plugin.
        raw: the parameters as they are written.
        context: for validators and the constructor.
        name: of the plugin, for messages.
    """
    built = Built()
    model = getattr(cls, "Parameters", None)
    arguments = []
    if isinstance(model, type) and issubclass(model, BaseModel):
        if not _decode(model, deepcopy(raw), context, built):
            return built
        arguments.append(built.parameters)
    else:
        built.faults = [((key,), f'"{name}" takes no parameters: leave it out') for key in raw]
    wanted = {"context": context} if "context" in inspect.signature(cls).parameters else {}
    try:
        built.plugin = cls(*arguments, **wanted)
    except UnknownPlugin as error:
        built.faults += [(place_of(error.name, raw) or (), str(error))] if str(error) else []
    except WrongParameters as error:
        built.faults += built.told(error)
    except Exception as error:  # noqa: BLE001 (somebody else's constructor may raise anything)
        reason = str(error) if isinstance(error, ConfigError | ValueError) else f"{type(error).__name__}: {error}"
        built.faults += [((), f'"{name}" can\'t be built: {reason}')] if not built.left_out else []
    return built


def _decode(model: type[BaseModel], value: dict[str, Any], context: Context, built: Built) -> bool:
    """Takes the parameters; whether a plugin can be made of them: not if one that is needed is missing, or wrong."""
    error = _fault(model, value, context, built)
    while error and (unknown := [each for each in error.errors() if each["type"] == "extra_forbidden"]):
        for each in unknown:
            built.faults.append((each["loc"], message(each, model)))
            built.respelt |= respell(value, each, model)
        error = _fault(model, value, context, built)
    if error is None:
        return True
    found = list(explain(error, model))
    rules = Rules(model, value, {place for place, _ in found})
    for place, what in dict.fromkeys((*found, *rules.broken)):
        built.faults += [(place, what)] if what else []
        _leave_out(place, value)
        built.left_out.append(place)
    if _fault(model, value, context, built) is None:
        return True
    built.parameters = rules.part
    return False


def _fault(model: type[BaseModel], value: dict[str, Any], context: Context, built: Built) -> ValidationError | None:
    """Takes the parameters if nothing is wrong with them."""
    try:
        built.parameters = decode(model, value, context)
    except ValidationError as error:
        return error
    return None


def _leave_out(place: Path, value: Any) -> None:
    """Leaves it out where that can be; an item goes with the list that it is in."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    parent = stands_at(value, place[:-1])
    if place and isinstance(parent, dict):
        parent.pop(place[-1], None)


def place_of(name: str, value: Any) -> Path | None:
    """Where in the parameters the name stands; None if it doesn't."""
    if value == name or (isinstance(value, str) and value.endswith(f"/{name}")):  # an attribute's "NAME/PRODUCER"
        return ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        if (found := place_of(name, inner)) is not None:
            return step, *found
    return None
