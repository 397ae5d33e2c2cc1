"""Values to pydantic models, strictly, with errors that name the place, what is allowed and the nearest known name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from epp.settings.models import API_VERSION, KIND, EndpointPickerConfig
from epp.settings.problems import Path, Report, listed, nearest, suggestion

Model = TypeVar("Model", bound=BaseModel)

_IDENTITY = {"name", "type", "pluginRef", "plugins", "schedulingProfiles"}
"""Keys that others refer to: with one of them broken, the checks of references would report errors that are none."""


def decode(model: type[Model], value: Mapping[str, Any]) -> Model:
    """The value as an instance of the model, with JSON's types: no number for a string, no string for a number.

    Raises:
        ValidationError: it doesn't fit.
    """
    text = json.dumps(value, default=str)
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


def explain(error: ValidationError, model: type[BaseModel], at: Path = ()) -> Iterator[tuple[Path, str]]:
    """Each of the error's places, below `at`, with a message."""
    for details in error.errors(include_url=False):
        yield at + details["loc"], _message(details, model)


def decode_config(value: dict[str, Any], report: Report) -> EndpointPickerConfig | None:
    """The whole file; None if what is wrong with it is such that further checks would mislead.

    What is wrong is otherwise read as what was meant, or left out, so that one slip doesn't hide the other errors.
    """
    try:
        return decode(EndpointPickerConfig, value)
    except ValidationError as error:
        details = error.errors(include_url=False)
    wrong, meant = _repaired(value, details)
    for fault in wrong:
        report.error(fault["loc"], _message(fault, EndpointPickerConfig))
    if any(fault["loc"][-1] in _IDENTITY for fault in wrong):
        return None
    try:
        return decode(EndpointPickerConfig, meant)
    except ValidationError:
        return None


def _repaired(value: dict[str, Any], details: Sequence[ErrorDetails]) -> tuple[list[ErrorDetails], dict[str, Any]]:
    """The details without those that only follow from a misspelt key; and the value as it may have been meant."""
    meant: dict[str, Any] = json.loads(json.dumps(value, default=str))
    filled: set[Path] = set()
    for fault in details:
        *parents, key = fault["loc"]
        parent = _at(meant, parents)
        if not isinstance(parent, dict):
            continue
        wrong = parent.pop(str(key), None)
        spelt = nearest(str(key), _keys(EndpointPickerConfig, tuple(parents)))
        if fault["type"] == "extra_forbidden" and spelt and spelt not in parent:
            parent[spelt] = wrong
            filled.add((*parents, spelt))
        elif fault["loc"] in {("apiVersion",), ("kind",)}:
            parent[str(key)] = API_VERSION if key == "apiVersion" else KIND
    return [fault for fault in details if fault["type"] != "missing" or fault["loc"] not in filled], meant


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        if isinstance(value, dict):
            value = value.get(str(step))
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
    return value


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    match details["type"]:
        case "extra_forbidden":
            known = _keys(model, details["loc"][:-1])
            return f"unknown key; allowed: {listed(known)}{suggestion(str(details['loc'][-1]), known)}"
        case "missing":
            return "is required"
        case "value_error":
            return str(details["ctx"]["error"])
        case _:
            message = details["msg"].replace("Input should", "should").replace("should", "must", 1)
            return f"{message[0].lower()}{message[1:]}, not {_shown(details['input'])}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that are known at a place inside the model."""
    found: type[BaseModel] | None = model
    for step in path:
        if found is None or isinstance(step, int):
            continue
        by_key = {field.alias or name: field.annotation for name, field in found.model_fields.items()}
        found = _model_in(by_key.get(str(step)))
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for inner in get_args(annotation) if (model := _model_in(inner))), None)
