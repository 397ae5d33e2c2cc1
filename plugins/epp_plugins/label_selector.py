"""label-selector-filter: keeps the endpoints whose labels match a Kubernetes label selector.

What it does
    Keeps an endpoint if its labels meet all of `matchLabels` and all of `matchExpressions`. As in Kubernetes, `NotIn`
    and `DoesNotExist` are met by an endpoint without the label, and a selector without conditions by everybody. If
    nobody matches, the profile finds nobody: a label is a hard condition.

    `by-label` is an older, deprecated form for one label. `by-label-selector` is a deprecated name of
    `label-selector-filter`.

Reads
    The endpoints' labels. The mask is worked out anew only when the pool's membership or labels change.

Writes
    Nothing.

Parameters
    Of `label-selector-filter`: the whole object is the selector.

    - `matchLabels` ({}): for each label the value that it must have.
    - `matchExpressions` ([]): a list of `key`, `operator` (`In`, `NotIn`, `Exists`, `DoesNotExist`) and `values`, which
      `In` and `NotIn` need and the other two must not have.

    Of `by-label`: one of the last two is needed.

    - `label`: the label's name.
    - `validValues` ([]): the values to keep.
    - `allowsNoLabel` (false): whether to keep those without the label.

Example:
    plugins:
    - type: label-selector-filter
      parameters:
        matchLabels:
          llm-d.ai/engine-type: vllm
        matchExpressions:
        - key: llm-d.ai/role
          operator: NotIn
          values: [encode, prefill]
    - type: by-label
      parameters:
        label: zone
        validValues: [a, b]
        allowsNoLabel: true
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: label-selector-filter
      - pluginRef: by-label
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    In nothing that a configuration can show.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

import epp.plugin
from epp.plugin import Candidates, Mask, Pool, Request, WrongParameters

Labels = Mapping[str, str]

# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_NAME = r"(?=.{1,63}$)[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_DOMAIN = r"(?=[^/]{1,253}/)[a-z0-9]([-a-z0-9.]*[a-z0-9])?/"
_KEY = re.compile(rf"({_DOMAIN})?{_NAME}")
_VALUE = re.compile(rf"({_NAME})?")


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no label's name: letters, digits, - _ . up to 63, after a DNS name and / or none")
    return key


def _checked_value(value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise ValueError(f"{value!r} is no label's value: letters, digits, - _ . up to 63, or nothing")
    return value


LabelKey = Annotated[str, AfterValidator(_checked_key)]
LabelValue = Annotated[str, AfterValidator(_checked_value)]


class Requirement(epp.plugin.Parameters):
    """One entry of `matchExpressions`."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[LabelValue, ...] = ()

    @model_validator(mode="after")
    def _values_fit(self) -> "Requirement":
        if self.operator in {"In", "NotIn"} and not self.values:
            raise WrongParameters((("values",), f"must not be empty with the operator {self.operator}"))
        if self.operator in {"Exists", "DoesNotExist"} and self.values:
            raise WrongParameters((("values",), f"must be empty with the operator {self.operator}"))
        return self

    def met_by(self, labels: Labels) -> bool:
        """Whether the labels meet the requirement."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


def _over_slots(selected: Callable[[Labels], bool]) -> Callable[[Pool], Mask]:
    """A function for `Candidates.derived`: whose labels are selected, over the pool's slots."""

    def mask(pool: Pool) -> Mask:
        return np.array([endpoint is not None and selected(endpoint.labels) for endpoint in pool.endpoints], dtype=bool)

    return mask


class LabelSelectorFilter:
    """Keeps the endpoints whose labels match a Kubernetes label selector."""

    mandatory = True

    class Parameters(epp.plugin.Parameters):
        """A `LabelSelector`; see the module's manual."""

        match_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
        match_expressions: tuple[Requirement, ...] = ()

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._mask = _over_slots(self._selects)

    def _selects(self, labels: Labels) -> bool:
        wanted, expressions = self._parameters.match_labels, self._parameters.match_expressions
        return wanted.items() <= dict(labels).items() and all(expression.met_by(labels) for expression in expressions)

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Whose labels match, shape (n,)."""
        return c.derived(self._mask)


class ByLabel:
    """Keeps the endpoints that have one of a label's values, or not the label."""

    mandatory = True

    deprecated = 'write "label-selector-filter"'

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        label: str = Field(min_length=1)
        valid_values: tuple[str, ...] = ()
        allows_no_label: bool = False

        @model_validator(mode="after")
        def _selects_somebody(self) -> "ByLabel.Parameters":
            if not self.valid_values and not self.allows_no_label:
                raise WrongParameters((("validValues",), "must not be empty unless allowsNoLabel is true"))
            return self

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._mask = _over_slots(self._selects)

    def _selects(self, labels: Labels) -> bool:
        value = labels.get(self._parameters.label)
        return self._parameters.allows_no_label if value is None else value in self._parameters.valid_values

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Whose label has one of the values, shape (n,)."""
        return c.derived(self._mask)
