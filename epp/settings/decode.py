"""Values to pydantic models, strictly, with errors that name the place, what is allowed and the nearest known name."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from epp.settings.models import EndpointPickerConfig, keys_at
from epp.settings.problems import Path, Report, listed, suggestion, within
from epp.settings.repair import Repair, meant

Model = TypeVar("Model", bound=BaseModel)

MISSING = "is required"
"""What is said of a key that is missing."""

_ROUNDS = 8
"""How often a file is mended and read again: more than it has levels."""


def decode(model: type[Model], value: Mapping[str, Any]) -> Model:
    """The value as an instance of the model, with JSON's types: no number for a string, no string for a number.

    Raises:
        ValidationError: it doesn't fit.
    """
    text = json.dumps(value, default=str)
    return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)


def explain(error: ValidationError, model: type[BaseModel], at: Path = ()) -> Iterator[tuple[Path, str]]:
    """Each of the error's places, below `at`, with a message; of a validator's that has several lines, each is one."""
    for details in _own(error.errors(include_url=False), model):
        for line in _message(details, model).splitlines():
            yield at + details["loc"], line


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
                report.error(fault["loc"], _message(fault, EndpointPickerConfig))
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


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    match details["type"]:
        case "extra_forbidden":
            known = keys_at(model, details["loc"][:-1])
            hint = suggestion(str(details["loc"][-1]), known) if meant(details, model) else ""
            return f"unknown key; allowed: {listed(known)}{hint}"
        case "missing":
            return MISSING
        case "value_error":
            return str(details["ctx"]["error"])
        case "too_short":
            return f"must have at least {details['ctx']['min_length']} of them, not {details['ctx']['actual_length']}"
        case _:
            message = details["msg"].replace("Input should", "should").replace("should", "must", 1)
            return f"{message[0].lower()}{message[1:]}, not {_shown(details['input'])}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
