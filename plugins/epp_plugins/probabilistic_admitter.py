"""probabilistic-admitter: turns sheddable requests away, the more the busier the pool is.

What it does
    A request of negative priority is turned away with the probability min(sat ** `power` * `k`, 1), where sat is the
    mean over the candidates of max(waiting / `queueDepthThreshold`, kv_usage / `kvCacheUtilThreshold`). With the
    defaults that begins in earnest at a fifth of the thresholds (10 %) and is certain from a third on. The client gets
    429 with the reason `rejected-saturated`. Other requests always pass.

Reads
    - `waiting`, `kv_usage`, as last scraped.
    - the request's priority, which comes from its objective.

Writes
    Nothing.

Parameters
    - `queueDepthThreshold` (5): above 0.
    - `kvCacheUtilThreshold` (0.8): above 0, at most 1.
    - `power` (5): above 0.
    - `k` (300): 0 or more.

Example:
    plugins:
    - type: probabilistic-admitter
      parameters:
        queueDepthThreshold: 10
        k: 100
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    - The client gets 429; there it is a 500, which looks like a fault, and which clients don't wait after.
    - Endpoints whose load isn't known don't count; there they count as idle. Nobody's known: the request passes.
"""

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import KV_USAGE, WAITING, Candidates, Context, Request


class ProbabilisticAdmitter:
    """Turns sheddable requests away, the more the busier the pool is."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        queue_depth_threshold: float = Field(default=5.0, gt=0.0)
        kv_cache_util_threshold: float = Field(default=0.8, gt=0.0, le=1.0)
        power: float = Field(default=5.0, gt=0.0)
        k: float = Field(default=300.0, ge=0.0)

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._parameters = parameters
        self._random = context.random

    def deny(self, request: Request, c: Candidates) -> str | None:
        """Why it is turned away, by chance; None if it isn't."""
        if request.priority >= 0:
            return None
        saturation = self._saturation(c)
        if self._random.random() >= min(saturation**self._parameters.power * self._parameters.k, 1.0):
            return None
        return f"the pool is at {saturation:.0%} of its thresholds, and the request's priority is {request.priority}"

    def _saturation(self, c: Candidates) -> float:
        queue = c[WAITING] / self._parameters.queue_depth_threshold
        load = np.fmax(queue, c[KV_USAGE] / self._parameters.kv_cache_util_threshold)
        known = load[~np.isnan(load)]
        return float(known.mean()) if len(known) else 0.0
