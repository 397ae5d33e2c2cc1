"""latency-scorer, slo-headroom-tier-filter, latency-slo-admitter: decide by predicted latencies.

What it does
    A prediction says how far an endpoint would stay below what the request asks for, its headroom, for the first token
    and for each further one. Headrooms may be negative.

    The scorer gives points to one group alone: the endpoints where neither headroom is negative, if there are any. If
    there are none, those with no request of ours, or else the first group that isn't empty of: only the further tokens
    are late, only the first is, both are. Within the group each headroom's size is put on the scale from 0, the
    smallest, to 1 (0.5 if all are equal), and mixed: x = `ttftWeight` * first + `tpotWeight` * further, where one that
    is the same for all leaves its weight to the other. With the strategy `least` the score is
    (int((1 - x) * 100) + 1) / 100, so that endpoints are filled up one after the other; with `most` it is
    (int(x * 100) + 1) / 100. Groups that are late are always scored by `least`.

    If nobody has a prediction, the score is round(100 * s) / 100 of

        s = kv * (1 - kv_usage) + queue * (longest - waiting) / longest + prefix * matched / matchable

    with the three composite weights, made to add up to 1.

    The filter keeps the endpoints where neither headroom is negative, or with the probability `epsilonExploreNeg` the
    others; everybody if either group is empty.

    The admitter turns away a request of negative priority that asks for a latency, if there are predictions, none of
    them is in time, and no endpoint is idle (running nothing) or cold (less than 2 % of its cache in use). The client
    gets 429.

Reads
    - the columns of the producer that `latencyPredictionInfoProducerName` names.
    - the scorer: `kv_usage`, `waiting`, and `matched_tokens`, `matchable_tokens` of the producer that
      `prefixMatchInfoProducerName` names.
    - the admitter: `running`, `kv_usage`, the request's priority, and the headers `x-llm-d-slo-ttft-ms`,
      `x-llm-d-slo-tpot-ms`, `x-slo-ttft-ms`, `x-slo-tpot-ms`.

Writes
    Nothing.

Parameters
    of all three: `latencyPredictionInfoProducerName` (predicted-latency-producer).

    of latency-scorer:

    - `ttftWeight` (0.8), `tpotWeight` (0.2): 0 or more; they are made to add up to 1.
    - `headroomSelectionStrategy` (least): or most.
    - `compositeKVWeight`, `compositeQueueWeight`, `compositePrefixWeight` (1 each): without predictions; if they add up
      to 0 or less, the cache alone counts.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer).

    of slo-headroom-tier-filter:

    - `epsilonExploreNeg` (0.01): from 0 to 1.

Example:
    plugins:
    - type: slo-headroom-tier-filter
      parameters:
        epsilonExploreNeg: 0.02
    - type: latency-scorer
      parameters:
        headroomSelectionStrategy: most
    - type: latency-slo-admitter
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: slo-headroom-tier-filter
      - pluginRef: latency-scorer

Where it departs from llm-d, and why
    - An endpoint without a prediction gets no points while others have one. There its headroom counts as 0, which is
      the least: it wins.
    - Scores end at 1; there at 1.01.
    - Without predictions, an endpoint whose cache or queue isn't known gets no points; there it counts as idle.
    - The admitter's answer is 429; there it is a 500.
"""

from collections.abc import Iterator
from math import isfinite
from typing import Final, Literal

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import LATENCY_PRODUCER, Latency, latency
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    KV_USAGE,
    RUNNING,
    WAITING,
    Candidates,
    Context,
    Floats,
    Mask,
    Request,
    matchable_tokens,
    matched_tokens,
)

COLD: Final = 0.02
SLO_HEADERS: Final = ("x-llm-d-slo-ttft-ms", "x-llm-d-slo-tpot-ms", "x-slo-ttft-ms", "x-slo-tpot-ms")
_SAME: Final = 1e-9


class Reader(epp.plugin.Parameters):
    """The parameter that all have in common."""

    latency_prediction_info_producer_name: str | None = None

    @property
    def keys(self) -> Latency:
        """The columns of the predictions."""
        return latency(self.latency_prediction_info_producer_name or LATENCY_PRODUCER)


def _late(c: Candidates, keys: Latency) -> tuple[Mask, Mask]:
    """Where the first token, and where the further ones would come too late."""
    return c[keys.ttft_headroom] < 0, c[keys.tpot_headroom] < 0


class ScorerParameters(Reader):
    """See the module's manual."""

    ttft_weight: float = Field(default=0.8, ge=0.0)
    tpot_weight: float = Field(default=0.2, ge=0.0)
    headroom_selection_strategy: Literal["least", "most"] = "least"
    composite_kv_weight: float = Field(default=1.0, alias="compositeKVWeight")
    composite_queue_weight: float = 1.0
    composite_prefix_weight: float = 1.0
    prefix_match_info_producer_name: str | None = None


class LatencyScorer:
    """Prefers endpoints that are predicted to be just fast enough, or fastest; without predictions, those with room."""

    Parameters = ScorerParameters

    def __init__(self, parameters: ScorerParameters) -> None:
        self._keys = parameters.keys
        producer = parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER
        self._matched, self._matchable = matched_tokens(producer), matchable_tokens(producer)
        self._most = parameters.headroom_selection_strategy == "most"
        self._weights = _shares(parameters.ttft_weight, parameters.tpot_weight)
        self._composite = _shares(
            parameters.composite_kv_weight, parameters.composite_queue_weight, parameters.composite_prefix_weight
        )
        self.reads = (*self._keys, self._matched, self._matchable)

    def score(self, request: Request, c: Candidates) -> Floats:
        """The manual's points, shape (n,); NaN only where nobody has a prediction and cache or queue are unknown."""
        predicted = ~np.isnan(c[self._keys.ttft])
        if not predicted.any():
            return self._without_predictions(c)
        scores = np.zeros(len(c))
        group, most = self._group(c, predicted)
        x = self._mixed(c, group)
        scores[group] = np.minimum((np.floor((x if most else 1.0 - x) * 100.0 + _SAME) + 1.0) / 100.0, 1.0)
        return scores

    def _group(self, c: Candidates, predicted: Mask) -> tuple[Mask, bool]:
        """Who gets points, and whether those with most headroom get most."""
        first, further = _late(c, self._keys)
        in_time: Mask = predicted & ~first & ~further
        if in_time.any():
            return in_time, self._most
        idle = predicted & (c[self._keys.dispatched] == 0)
        groups = (idle, predicted & further & ~first, predicted & first & ~further, predicted & first & further)
        return next(group for group in groups if group.any()), False

    def _mixed(self, c: Candidates, group: Mask) -> Floats:
        """The headrooms' sizes on a scale from 0 to 1, shape (members,)."""
        sizes = [np.abs(c[key][group]) for key in (self._keys.ttft_headroom, self._keys.tpot_headroom)]
        sizes = [np.where(np.isnan(size), 0.0, size) for size in sizes]
        ranges = [float(size.max() - size.min()) for size in sizes]
        scaled = [
            (size - size.min()) / width if width > _SAME else np.full(len(size), 0.5)
            for size, width in zip(sizes, ranges, strict=True)
        ]
        if ranges[0] > _SAME >= ranges[1]:
            return scaled[0]
        if ranges[1] > _SAME >= ranges[0]:
            return scaled[1]
        mixed: Floats = self._weights[0] * scaled[0] + self._weights[1] * scaled[1]
        return mixed

    def _without_predictions(self, c: Candidates) -> Floats:
        total = sum(weight * part for weight, part in zip(self._composite, self._parts(c), strict=True) if weight)
        scores: Floats = np.floor(np.asarray(total) * 100.0 + 0.5) / 100.0
        return np.clip(scores, 0.0, 1.0)

    def _parts(self, c: Candidates) -> Iterator[Floats]:
        yield 1.0 - c[KV_USAGE]
        waiting = c[WAITING]
        longest = np.fmax.reduce(waiting)
        yield (longest - waiting) / longest if longest > 0 else waiting + 1.0  # 1, or NaN
        yield np.fmax(c[self._matched], 0.0) / np.fmax(c[self._matchable], 1.0)


def _shares(*weights: float) -> tuple[float, ...]:
    """The weights made to add up to 1; the first alone if they can't."""
    total = sum(weights)
    return tuple(weight / total for weight in weights) if total > 0 else (1.0, *[0.0] * (len(weights) - 1))


class FilterParameters(Reader):
    """See the module's manual."""

    epsilon_explore_neg: float = Field(default=0.01, ge=0.0, le=1.0)


class SloHeadroomTierFilter:
    """Keeps the endpoints that are predicted to be fast enough, and now and then the others."""

    Parameters = FilterParameters

    def __init__(self, parameters: FilterParameters, context: Context) -> None:
        self._keys = parameters.keys
        self._epsilon = parameters.epsilon_explore_neg
        self._random = context.random
        self.reads = tuple(self._keys)

    def keep(self, request: Request, c: Candidates) -> Mask:
        """One of the two groups, or everybody if there is but one, shape (n,)."""
        first, further = _late(c, self._keys)
        in_time: Mask = ~(first | further | np.isnan(c[self._keys.ttft]))
        if in_time.all() or not in_time.any():
            return np.ones(len(c), dtype=bool)
        return ~in_time if self._random.random() < self._epsilon else in_time


class LatencySloAdmitter:
    """Turns sheddable requests away whose latency nobody is predicted to keep."""

    Parameters = Reader

    def __init__(self, parameters: Reader) -> None:
        self._keys = parameters.keys
        self.reads = tuple(self._keys)

    def deny(self, request: Request, c: Candidates) -> str | None:
        """Why it is turned away; None if it isn't."""
        if request.priority >= 0 or not any(_positive(request.headers.get(name)) for name in SLO_HEADERS):
            return None
        predicted = ~np.isnan(c[self._keys.ttft])
        first, further = _late(c, self._keys)
        if not predicted.any() or (predicted & ~first & ~further).any():
            return None
        if (c[RUNNING] == 0).any() or (c[KV_USAGE] < COLD).any():
            return None
        return "no endpoint is predicted to keep the latency that the request asks for"


def _positive(text: str | None) -> bool:
    try:
        number = float(text or 0)
    except ValueError:
        return False
    return isfinite(number) and number > 0
