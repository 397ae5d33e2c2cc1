"""utilization-detector, concurrency-detector: say how busy the pool is, and keep the endpoints that have room.

What it does
    As filters in a profile they keep the endpoints below their limits, raised by `headroom`.

    utilization-detector goes by what engines report: an endpoint stays with waiting < `queueDepthThreshold` *
    (1 + `headroom`) and kv_usage < `kvCacheUtilThreshold` * (1 + `headroom`). Where nobody has room everybody stays.

    concurrency-detector goes by our own requests and tokens in flight: an endpoint stays with requests <
    int(`maxConcurrency` * (1 + `headroom`)), with tokens < int(`maxTokenConcurrency` * (1 + `headroom`)), or with
    both, as `concurrencyMode` says. It may leave nobody; the client then gets 429.

    As saturation detectors of flow control they have no effect yet. What they will say there: utilization-detector the
    mean of max(waiting / `queueDepthThreshold`, kv_usage / `kvCacheUtilThreshold`), with 1 for an endpoint that isn't
    known; concurrency-detector what is in flight by what could be, or in hybrid mode the mean of each endpoint's larger
    share; both 1 for an empty pool.

Reads
    - utilization-detector: `waiting`, `kv_usage`.
    - concurrency-detector: `inflight_requests`, `inflight_tokens`.

Writes
    Nothing.

Parameters
    of both: `headroom` (0): how far beyond its limit the filter lets an endpoint go, 0 or more.

    of utilization-detector:

    - `queueDepthThreshold` (5): above 0.
    - `kvCacheUtilThreshold` (0.8): above 0, at most 1.
    - `metricsStalenessThreshold` (200ms): accepted, a duration above 0.

    of concurrency-detector:

    - `maxConcurrency` (100), `maxTokenConcurrency` (1000000): of one endpoint, above 0.
    - `concurrencyMode` (requests): or tokens, or hybrid for both.
    - `inFlightLoadProducerName`: accepted; there is one count, the mechanism's, whatever it is called.

Example:
    plugins:
    - type: utilization-detector
      parameters:
        queueDepthThreshold: 10
    - type: concurrency-detector
      parameters:
        maxConcurrency: 64
        headroom: 0.25
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: utilization-detector
      - pluginRef: concurrency-detector

Where it departs from llm-d, and why
    What an endpoint reported is stale once it has missed its own next scrape, however long that takes. There it is
    after `metricsStalenessThreshold`, which a large pool, or a pause of the collector, exceeds for everybody at once.
"""

from typing import Literal

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_USAGE,
    WAITING,
    Candidates,
    Floats,
    Mask,
    PositiveDuration,
    Request,
)


class UtilizationParameters(epp.plugin.Parameters):
    """See the module's manual."""

    queue_depth_threshold: float = Field(default=5.0, gt=0.0)
    kv_cache_util_threshold: float = Field(default=0.8, gt=0.0, le=1.0)
    metrics_staleness_threshold: PositiveDuration = 0.2
    headroom: float = Field(default=0.0, ge=0.0)


class UtilizationDetector:
    """Keeps the endpoints whose queue and cache have room, or everybody if nobody's have."""

    load_based = True
    Parameters = UtilizationParameters

    def __init__(self, parameters: UtilizationParameters) -> None:
        self._queue, self._cache = parameters.queue_depth_threshold, parameters.kv_cache_util_threshold
        self._most = 1.0 + parameters.headroom

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who is known to have room, or everybody, shape (n,)."""
        roomy: Mask = (c[WAITING] < self._queue * self._most) & (c[KV_USAGE] < self._cache * self._most)
        return roomy if roomy.any() else np.ones(len(c), dtype=bool)

    def saturation(self, c: Candidates) -> float:
        """From 0, idle, to 1, at the limits, and beyond."""
        load: Floats = np.maximum(c[WAITING] / self._queue, c[KV_USAGE] / self._cache)
        return float(np.where(np.isnan(load), 1.0, load).mean()) if len(c) else 1.0


class ConcurrencyParameters(epp.plugin.Parameters):
    """See the module's manual."""

    max_concurrency: int = Field(default=100, gt=0)
    max_token_concurrency: int = Field(default=1_000_000, gt=0)
    concurrency_mode: Literal["requests", "tokens", "hybrid"] = "requests"
    headroom: float = Field(default=0.0, ge=0.0)
    in_flight_load_producer_name: str | None = None


class ConcurrencyDetector:
    """Keeps the endpoints that have less of ours in flight than they may."""

    load_based = True
    Parameters = ConcurrencyParameters

    def __init__(self, parameters: ConcurrencyParameters) -> None:
        requests = (INFLIGHT_REQUESTS, parameters.max_concurrency)
        tokens = (INFLIGHT_TOKENS, parameters.max_token_concurrency)
        limits = {"requests": [requests], "tokens": [tokens], "hybrid": [requests, tokens]}
        self._limits = limits[parameters.concurrency_mode]
        self._most = 1.0 + parameters.headroom

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who is below every limit, shape (n,)."""
        mask: Mask = np.logical_and.reduce([c[key] < int(limit * self._most) for key, limit in self._limits])
        return mask

    def saturation(self, c: Candidates) -> float:
        """From 0, idle, to 1, at the limits, and beyond."""
        if not len(c):
            return 1.0
        return float(np.maximum.reduce([c[key] / limit for key, limit in self._limits]).mean())
