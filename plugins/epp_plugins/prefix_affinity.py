"""prefix-cache-affinity-filter: keeps the endpoints that have most of the prompt cached, unless they are too busy.

What it does
    The endpoints that are believed to hold at least `affinityThreshold` of the prompt stay, as long as waiting there
    doesn't cost more than it saves. Everybody stays if

    - there is but one candidate, or the threshold is 0 or less,
    - by chance, with `explorationProbability`,
    - nobody holds that much,
    - the best time to the first token among the holders is more than `maxTTFTPenaltyMs` worse than the best one among
      the others.

    That time is estimated from the prompt tokens in flight, tokens / `peakPrefillThroughput` * 1000 milliseconds, or
    with the `ttftSource` latencyPredictor it is the prediction; an endpoint without one counts as endlessly slow.

Reads
    - `matched_tokens`, `matchable_tokens` of the producer that `prefixMatchInfoProducerName` names.
    - `inflight_tokens`: our own count; or `ttft` of the producer that `latencyPredictionInfoProducerName` names.

Writes
    Nothing.

Parameters
    - `affinityThreshold` (0.8): the share of the prompt, at most 1.
    - `explorationProbability` (0): from 0 to 1.
    - `maxTTFTPenaltyMs` (18000): milliseconds; 0 for no such limit.
    - `maxTokensInFlightPenalty` (0): deprecated; the same in prompt tokens in flight, up to v0.9.
    - `ttftSource` (prefillThroughput): or latencyPredictor.
    - `peakPrefillThroughput` (15928): tokens a second, above 0.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer).
    - `latencyPredictionInfoProducerName` (predicted-latency-producer).
    - `inFlightLoadProducerName`: accepted; there is one count, the mechanism's, whatever it is called.

Example:
    plugins:
    - type: prefix-cache-affinity-filter
      parameters:
        affinityThreshold: 0.5
        maxTTFTPenaltyMs: 2000
    - type: active-request-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-affinity-filter
      - pluginRef: active-request-scorer

Where it departs from llm-d, and why
    In nothing.
"""

from typing import Final, Literal

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import LATENCY_PRODUCER, latency
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    INFLIGHT_TOKENS,
    Candidates,
    Context,
    Floats,
    Key,
    Mask,
    Request,
    matchable_tokens,
    matched_tokens,
)

_ENDLESS: Final = float(np.finfo(np.float64).max)


def _worse(costs: Floats, holders: Mask) -> float:
    """How much more the best of the holders costs than the best of the others."""
    return float(costs[holders].min() - costs[~holders].min())


class PrefixAffinityParameters(epp.plugin.Parameters):
    """See the module's manual."""

    affinity_threshold: float = Field(default=0.8, le=1.0)
    exploration_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    max_ttft_penalty_ms: float = Field(default=18_000.0, ge=0.0, alias="maxTTFTPenaltyMs")
    ttft_source: Literal["prefillThroughput", "latencyPredictor"] = "prefillThroughput"
    peak_prefill_throughput: float = Field(default=15_928.0, gt=0.0)
    max_tokens_in_flight_penalty: int = Field(default=0, ge=0, deprecated='write "maxTTFTPenaltyMs"')
    prefix_match_info_producer_name: str | None = None
    latency_prediction_info_producer_name: str | None = None
    in_flight_load_producer_name: str | None = None


class PrefixCacheAffinityFilter:
    """Keeps the endpoints that have most of the prompt cached, unless waiting there costs more than it saves."""

    Parameters = PrefixAffinityParameters

    def __init__(self, parameters: PrefixAffinityParameters, context: Context) -> None:
        producer = parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER
        self._parameters = parameters
        self._random = context.random
        self._tokens: int = dict(parameters)["max_tokens_in_flight_penalty"]  # the attribute would warn of itself
        self._matched, self._matchable = matched_tokens(producer), matchable_tokens(producer)
        self.reads: tuple[Key, ...] = (self._matched, self._matchable)
        self._ttft = None
        if parameters.ttft_source == "latencyPredictor":
            self._ttft = latency(parameters.latency_prediction_info_producer_name or LATENCY_PRODUCER).ttft
            self.reads += (self._ttft,)

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who holds the prompt, or everybody, shape (n,)."""
        everybody: Mask = np.ones(len(c), dtype=bool)
        threshold, explore = self._parameters.affinity_threshold, self._parameters.exploration_probability
        if len(c) == 1 or threshold <= 0 or (explore and self._random.random() < explore):
            return everybody
        holders: Mask = c[self._matched] / np.maximum(c[self._matchable], 1.0) >= threshold
        count = np.count_nonzero(holders)
        return holders if count > 0 and (count == len(c) or not self._too_slow(holders, c)) else everybody

    def _too_slow(self, holders: Mask, c: Candidates) -> bool:
        penalty, tokens = self._parameters.max_ttft_penalty_ms, self._tokens
        if tokens and _worse(c[INFLIGHT_TOKENS], holders) > tokens:
            return True
        return bool(penalty) and _worse(self._times(c), holders) > penalty

    def _times(self, c: Candidates) -> Floats:
        """Milliseconds to the first token, shape (n,)."""
        if self._ttft is None:
            return c[INFLIGHT_TOKENS] * (1000.0 / self._parameters.peak_prefill_throughput)
        times = c[self._ttft]
        return np.where(np.isnan(times), _ENDLESS, times)
