"""Makes a plugin of its class and its parameters; what is wrong with one of them hides nothing about the others.

A parameter that can't be is told, left out, and the rest is tried without it.
"""

import inspect
import json
import re
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from epp.errors import ConfigError, UnknownPlugin
from epp.plugin import Context
from epp.settings.decode import MISSING, decode, explain
from epp.settings.problems import Path, listed, within

_ROUNDS = 8
"""How often the rest is tried."""

_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(slots=True)
class Built:
    """What came of it.

    Attributes:
        plugin: the object; with faults it is one of the parameters without those that have them, or None.
        parameters: with their defaults; None for a class without.
        faults: what is wrong, each below the parameters.
        written: the parameters as they were written, without those that have faults.
        left_out: the places of those.
    """

    plugin: Any = None
    parameters: BaseModel | None = None
    faults: list[tuple[Path, str]] = field(default_factory=list)
    written: dict[str, Any] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)

    def follows(self, message: str) -> bool:
        """Whether a complaint is only about what was left out: then it names it, or nothing that is written."""
        if not self.left_out:
            return False
        quoted = _QUOTED.findall(message)
        if any(place_of(word, self.written) is not None for word in quoted):
            return False
        names = {str(place[-1]) for place in self.left_out}
        return bool(quoted) or any(re.search(rf"\b{re.escape(name)}\b", message) for name in names)


def build(cls: type, raw: dict[str, Any], context: Context, name: str) -> Built:
    """The plugin with everything that is wrong with its parameters.

    Args:
        cls: of the plugin.
        raw: the parameters as they are written.
        context: for the constructor.
        name: of the plugin, for messages.
    """
    built = Built(written=deepcopy(raw))
    for _ in range(_ROUNDS):
        try:
            built.parameters = _parameters(cls, built.written)
            built.plugin = _construct(cls, built.parameters, context)
            break
        except ValidationError as error:
            wrong = _take(error, cls, built)
        except UnknownPlugin as error:
            place = place_of(error.name, built.written)
            if str(error):
                built.faults.append((place or (), str(error)))
            wrong = [place] if place else []
        except Exception as error:  # noqa: BLE001 (somebody else's constructor may raise anything)
            reason = str(error) if isinstance(error, ConfigError | ValueError) else f"{type(error).__name__}: {error}"
            if not built.follows(reason):
                built.faults.append(((), f'"{name}" can\'t be built: {reason}'))
            named = [place_of(word, built.written) for word in _QUOTED.findall(reason)]
            wrong = [place for place in named if place][:1]
        before = len(built.left_out)
        for place in wrong:
            _leave_out(place, built)
        if len(built.left_out) == before:
            break
    return built


def _take(error: ValidationError, cls: Any, built: Built) -> list[Path]:
    """The places of what doesn't fit, which goes to the faults."""
    places: list[Path] = []
    for place, message in explain(error, cls.Parameters):
        if any(within(place, gone) for gone in built.left_out):
            places.append(place[:-1])  # required, and left out: so is what it is a part of
            continue
        if not built.follows(message):
            built.faults.append((place, message))
        places.append(place if message != MISSING else place[:-1])
    return places


def _leave_out(place: Path, built: Built) -> None:
    """Leaves it out where that can be; an item goes with the list that it is in."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    parent: Any = built.written
    for step in place[:-1]:
        parent = _step(parent, step)
    if place and isinstance(parent, dict) and place[-1] in parent:
        del parent[place[-1]]
        built.left_out.append(place)


def _step(value: Any, step: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    return value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None


def place_of(name: str, value: Any) -> Path | None:
    """Where in the parameters the name stands; None if it doesn't."""
    if value == name:
        return ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        if (found := place_of(name, inner)) is not None:
            return step, *found
    return None


def _parameters(cls: type, raw: dict[str, Any]) -> BaseModel | None:
    model = getattr(cls, "Parameters", None)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return decode(model, raw)
    if raw:
        raise ConfigError(f"takes no parameters, but got {listed(map(json.dumps, raw))}")
    return None


def _construct(cls: type, parameters: BaseModel | None, context: Context) -> Any:
    arguments = () if parameters is None else (parameters,)
    wants_context = "context" in inspect.signature(cls).parameters
    return cls(*arguments, context=context) if wants_context else cls(*arguments)
