"""endpoint-attribute-filter, endpoint-attribute-scorer: keep or prefer endpoints by any number that is known of them.

What it does
    The filter compares an attribute with a value: `LessThan`, `LessThanOrEqual`, `GreaterThan`, `GreaterThanOrEqual`,
    `Equal` or `NotEqual`. Endpoints for which the comparison holds stay.

    The scorer makes points of an attribute x: (high - x) / (high - low) with `linear_lower_is_better`, and
    (x - low) / (high - low) with `linear_higher_is_better`, cut off at 0 and 1. Low and high are those of `fixedRange`,
    or with `adaptiveRange` the candidates' own; if those are equal, everybody gets 1.

Reads
    The attribute. Those of `core-metrics-extractor` are `WaitingQueueSize`, `RunningRequestsSize` and
    `KVCacheUsagePercent`, which are `waiting`, `running` and `kv_usage`; that of `dcgm-extractor` is `GPUUtilization`.
    Other names are metrics that an extractor is configured to take.

Writes
    Nothing.

Parameters
    of endpoint-attribute-filter:

    - `attribute`: required. `NAME/PRODUCER` is deprecated, but for `producer` "": write the producer there.
    - `producer` (core-metrics-extractor): the extractor whose attribute it is; "" for any.
    - `onMissing` (Pass): `Pass` or `Fail`: what becomes of an endpoint without the attribute, or with a stale one.
    - `fallbackOnEmpty` (false): keep everybody where nobody would be left.
    - `algorithm`: `type` (threshold) and `threshold`, with `operator` and `value`.

    of endpoint-attribute-scorer:

    - `attributeKey`, `producer`: as above.
    - `algorithm`: `type`, and `normalization` with `fixedRange` (`min`, `max`) or `adaptiveRange` ({}).

Example:
    plugins:
    - type: endpoint-attribute-filter
      parameters:
        attribute: KVCacheUsagePercent
        onMissing: Fail
        fallbackOnEmpty: true
        algorithm:
          type: threshold
          threshold:
            operator: LessThan
            value: 0.9
    - type: endpoint-attribute-scorer
      parameters:
        attributeKey: WaitingQueueSize
        algorithm:
          type: linear_lower_is_better
          normalization:
            fixedRange:
              min: 0
              max: 50
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: endpoint-attribute-filter
      - pluginRef: endpoint-attribute-scorer

Where it departs from llm-d, and why
    - A value of an endpoint that missed its last scrape is missing; there the old one counts for ever.
    - `NAME/PRODUCER` without `producer` is read as llm-d's own samples mean it; there releases since v0.10 refuse it.
    - The client gets 429 if the filter judges by one of the attributes named above and leaves nobody, else 503.
"""

import operator
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

import epp.plugin
from epp.keys import CORE_METRICS_EXTRACTOR, GPU_UTILIZATION, attribute
from epp.plugin import (
    KV_USAGE,
    RUNNING,
    WAITING,
    Candidates,
    Floats,
    Mask,
    Request,
    WrongParameters,
    higher_is_better,
    lower_is_better,
)

_OPERATORS: Final[dict[str, Callable[[Floats, float], Any]]] = {
    "LessThan": operator.lt,
    "LessThanOrEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqual": operator.ge,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
}
_LOAD = frozenset({WAITING, RUNNING, KV_USAGE, GPU_UTILIZATION})


def _of(name: str, producer: str | None) -> tuple[str, str]:
    """The attribute's name and its producer's.

    A name with a slash names its producer itself, as it had to before there was `producer`.
    """
    if not producer and "/" in name:
        name, _, producer = name.rpartition("/")
    return name, CORE_METRICS_EXTRACTOR if producer is None else producer


def _remarks(name: str, producer: str | None) -> tuple[str, ...]:
    """What is old about the spelling."""
    if producer is not None or "/" not in name:
        return ()
    short, named = _of(name, producer)
    return (
        f'"{name}" names its producer after a slash, which is deprecated: write "{short}", and "{named}" as producer',
    )


def _whole(name: str) -> str:
    if name.startswith("/") or name.endswith("/"):
        raise ValueError(f'"{name}": before a slash stands a name, and after it its producer; one of them is missing')
    return name


AttributeName = Annotated[str, Field(min_length=1), AfterValidator(_whole)]


class Threshold(epp.plugin.Parameters):
    """`algorithm.threshold`."""

    operator: Literal["LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"]
    value: float


class Comparison(epp.plugin.Parameters):
    """The filter's `algorithm`."""

    type: Literal["threshold"] = "threshold"
    threshold: Threshold


class EndpointAttributeFilter:
    """Keeps the endpoints for which an attribute compares with a value as it should."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        attribute: AttributeName
        producer: str | None = None
        on_missing: Literal["Pass", "Fail"] = "Pass"
        fallback_on_empty: bool = False
        algorithm: Comparison

        def effective(self) -> Self:
            """With the producer under its own key."""
            name, producer = _of(self.attribute, self.producer)
            return self.model_copy(update={"attribute": name, "producer": producer})

    def __init__(self, parameters: Parameters) -> None:
        threshold = parameters.algorithm.threshold
        self._key = attribute(*_of(parameters.attribute, parameters.producer))
        self.remarks = _remarks(parameters.attribute, parameters.producer)
        self._holds, self._value = _OPERATORS[threshold.operator], threshold.value
        self._passes = parameters.on_missing == "Pass"
        self._fallback = parameters.fallback_on_empty
        self.load_based = self._key in _LOAD

    def keep(self, request: Request, c: Candidates) -> Mask:
        """For whom the comparison holds, shape (n,)."""
        values = c[self._key]
        kept: Mask = np.where(np.isnan(values), self._passes, self._holds(values, self._value))
        return np.ones(len(c), dtype=bool) if self._fallback and not kept.any() else kept


class FixedRange(epp.plugin.Parameters):
    """`algorithm.normalization.fixedRange`."""

    min: float
    max: float

    @model_validator(mode="after")
    def _some(self) -> "FixedRange":
        if not self.min < self.max:
            raise WrongParameters((("min",), f"must be below max: {self.min:g} and {self.max:g}"))
        return self


class AdaptiveRange(epp.plugin.Parameters):
    """`algorithm.normalization.adaptiveRange`."""


class Normalization(epp.plugin.Parameters):
    """`algorithm.normalization`."""

    fixed_range: FixedRange | None = None
    adaptive_range: AdaptiveRange | None = None

    @model_validator(mode="after")
    def _one(self) -> "Normalization":
        if len(self.model_fields_set) != 1:
            raise ValueError("needs either fixedRange or adaptiveRange")
        return self


class Linear(epp.plugin.Parameters):
    """The scorer's `algorithm`."""

    type: Literal["linear_lower_is_better", "linear_higher_is_better"]
    normalization: Normalization


class EndpointAttributeScorer:
    """Prefers endpoints by an attribute, linearly: 1 at the better end of a range, 0 at the other."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        attribute_key: AttributeName
        producer: str | None = None
        algorithm: Linear

        def effective(self) -> Self:
            """With the producer under its own key."""
            name, producer = _of(self.attribute_key, self.producer)
            return self.model_copy(update={"attribute_key": name, "producer": producer})

    def __init__(self, parameters: Parameters) -> None:
        self._key = attribute(*_of(parameters.attribute_key, parameters.producer))
        self.remarks = _remarks(parameters.attribute_key, parameters.producer)
        self._lower = parameters.algorithm.type == "linear_lower_is_better"
        self._range = parameters.algorithm.normalization.fixed_range

    def score(self, request: Request, c: Candidates) -> Floats:
        """The attribute's place in its range, shape (n,); 0 where it is missing, NaN where it is stale."""
        values = c[self._key]
        if self._range is None:
            scores = lower_is_better(values) if self._lower else higher_is_better(values)
        else:
            low, width = self._range.min, self._range.max - self._range.min
            share = np.clip((values - low) / width, 0.0, 1.0)
            scores = 1.0 - share if self._lower else share
        scores[np.isnan(scores) & c.fresh] = 0.0
        return scores
