"""Values to pydantic models, strictly, with errors that name the place, what is allowed and the nearest known name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from epp.errors import WrongParameters
from epp.settings.models import EndpointPickerConfig, keys_at
from epp.settings.problems import Fault, Report, listed, suggestion, within
from epp.settings.repair import Repair, meant

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

_ROUNDS = 8
"""How often a file is mended and read again: more than it has levels."""


def decode(model: type[Model], value: Mapping[str, Any], context: object = None) -> Model:
    """The value as an instance of the model, with JSON's types: no number for a string, no string for a number.

    Args:
        model: the class.
        value: what there is for it.
        context: for its validators.

    Raises:
        ValidationError: it doesn't fit.
    """
    return validated(TypeAdapter(model), value, context)


def validated(adapter: TypeAdapter[T], value: Any, context: object = None) -> T:
    """The same of any type."""
    text = json.dumps(value, default=str)
    return adapter.validate_json(text, strict=True, context=context, by_alias=True, by_name=False)


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[Fault]:
    """Everything that the error tells."""
    for details in _own(error.errors(include_url=False), model):
        for place, what in faults_of(details.get("ctx", {}).get("error")) or [((), message(details, model))]:
            yield details["loc"] + place, what


def faults_of(error: object) -> Sequence[Fault]:
    """What a validator's error tells; nothing of what is none."""
    if isinstance(error, WrongParameters):
        return error.faults
    return [((), str(error))] if isinstance(error, ValueError | AssertionError) else ()


def decode_config(value: dict[str, Any], report: Report) -> EndpointPickerConfig | None:
    """The whole file. What is wrong in it is read as what was meant, or left out, so that it hides no other error.

    None if that doesn't help.
    """
    repair = Repair(json.loads(json.dumps(value, default=str)))
    report.respelt = repair.respelt
    for _ in range(_ROUNDS):
        try:
            config = decode(EndpointPickerConfig, repair.value)
            report.replaced = repair.replaced
            return config
        except ValidationError as error:
            for fault in repair.take(_own(error.errors(include_url=False), EndpointPickerConfig)):
                report.error(fault["loc"], message(fault, EndpointPickerConfig))
    return None


def _own(faults: Sequence[ErrorDetails], model: type[BaseModel]) -> list[ErrorDetails]:
    """The faults without those that follow from others: lists too short for a fault in an item, keys misspelt."""
    places = [fault["loc"] for fault in faults]
    respelt = {place for fault in faults if (place := meant(fault, model))}
    return [
        fault
        for fault in faults
        if not (fault["type"] == "too_short" and any(within(p, fault["loc"]) and p != fault["loc"] for p in places))
        and not (fault["type"] == "missing" and fault["loc"] in respelt)
    ]


def message(details: ErrorDetails, model: type[BaseModel]) -> str:
    """What is wrong by one of pydantic's errors."""
    match details["type"]:
        case "extra_forbidden":
            known = keys_at(model, details["loc"][:-1])
            hint = suggestion(str(details["loc"][-1]), known) if meant(details, model) else ""
            return f"unknown key; allowed: {listed(known)}{hint}"
        case "missing":
            return "is required"
        case "value_error":
            return str(details["ctx"]["error"])
        case "too_short":
            return f"must have at least {details['ctx']['min_length']} of them, not {details['ctx']['actual_length']}"
        case _:
            said = details["msg"].replace("Input should", "should").replace("should", "must", 1)
            return f"{said[0].lower()}{said[1:]}, not {_shown(details['input'])}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
