"""The rules of a model that a value breaks, though some of its fields may be wrong.

A rule is a validator of the model in pydantic's mode "after". pydantic runs them where all fields are right, up to the
first that complains. Here all of them run, on an instance that has no attribute for a field that is wrong: a rule that
needs such a field fails on it, and has nothing to say. Names of plugins and profiles are taken as they are.
"""

from collections.abc import Container, Iterator, Mapping
from typing import Any, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from epp.settings.decode import faults_of, validated
from epp.settings.models import model_in
from epp.settings.problems import Fault, Path

_WRONG = object()
"""Stands for the value of a field that is wrong."""


class Rules:
    """The rules of a value.

    Attributes:
        part: an instance with those of the fields that are right.
        broken: what the rules complain of.

    Args:
        model: the class of the value.
        value: what there is for it.
        wrong: the places of what pydantic has found.
    """

    def __init__(self, model: type[BaseModel], value: Mapping[str, Any], wrong: Container[Path]) -> None:
        self._wrong = wrong
        self.broken: list[Fault] = []
        self.part = self._part(model, value, ())

    def _part(self, model: type[BaseModel], value: Any, at: Path) -> BaseModel:
        keys = {name: field.alias or name for name, field in model.model_fields.items()}
        written = {name: key for name, key in keys.items() if isinstance(value, dict) and key in value}
        found = {n: self._field(model.model_fields[n], value[key], (*at, key)) for n, key in written.items()}
        for rule in model.__pydantic_decorators__.field_validators.values():
            found |= {n: _WRONG for n in rule.info.fields if n in written and (*at, written[n]) in self._wrong}
        right = {written[name]: each for name, each in found.items() if each is not _WRONG}
        part = model.model_construct(set(written), **right)
        for name, each in found.items():
            if each is _WRONG:
                part.__dict__.pop(name, None)  # the default isn't what is meant
        self.broken += [(at + place, what) for place, what in _complaints(part)]
        return part

    def _field(self, field: FieldInfo, value: Any, at: Path) -> Any:
        """The value, or as much of the models in it as is right."""
        try:
            return validated(TypeAdapter(field.rebuild_annotation()), value)
        except ValidationError:
            inner = model_in(field.annotation)
        if inner is not None and isinstance(value, list) and get_origin(field.annotation) is tuple:
            return tuple(self._part(inner, item, (*at, index)) for index, item in enumerate(value))
        return self._part(inner, value, at) if inner is not None and isinstance(value, dict) else _WRONG


def _complaints(part: BaseModel) -> Iterator[Fault]:
    for name, rule in type(part).__pydantic_decorators__.model_validators.items():
        if rule.info.mode == "after":
            try:
                getattr(part, name)()
            except Exception as error:  # noqa: BLE001 (of what isn't there anything may come)
                yield from faults_of(error)
