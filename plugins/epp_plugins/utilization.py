"""utilization-filter: keeps endpoints whose load is within bounds.

What it does
    Keeps the endpoints for which every condition holds: the metric is at most `maxValue`. If that is nobody, nobody is
    kept, and the client gets 429; with `fallbackOnEmpty` everybody is kept instead.

    | `metric` | What it is |
    |---|---|
    | `active-requests` | our own requests in flight there |
    | `running-requests` | the requests that the engine runs |
    | `waiting-queue` | the requests that wait in the engine |
    | `kv-cache-utilization` | the used share of the KV cache, 0 to 1 |

Reads
    `inflight_requests`, `running`, `waiting` and `kv_usage`, those that the conditions name.

Writes
    Nothing.

Parameters
    - `conditions`: one or more of `metric` and `maxValue`, which is 0 or more, and at most 1 for
      `kv-cache-utilization`.
    - `fallbackOnEmpty` (false): keep everybody where the conditions leave nobody.
    - `inFlightLoadProducerName`: accepted; there is one count, the mechanism's, whatever it is called.

Example:
    plugins:
    - type: utilization-filter
      parameters:
        conditions:
        - metric: waiting-queue
          maxValue: 10
        - metric: kv-cache-utilization
          maxValue: 0.95
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: utilization-filter
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    A metric that is missing or stale meets no condition, as long as somebody else's does; if nobody is known to meet
    them, those stay who aren't known not to. There a missing metric is 0: an engine that hangs looks idle.
"""

from typing import Final, Literal

import numpy as np
from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import INFLIGHT_REQUESTS, KV_USAGE, RUNNING, WAITING, Candidates, Key, Mask, Request, WrongParameters

_COLUMNS: Final[dict[str, Key]] = {
    "active-requests": INFLIGHT_REQUESTS,
    "running-requests": RUNNING,
    "waiting-queue": WAITING,
    "kv-cache-utilization": KV_USAGE,
}


class Condition(epp.plugin.Parameters):
    """One entry of `conditions`."""

    metric: Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]
    max_value: float = Field(ge=0.0)

    @model_validator(mode="after")
    def _share(self) -> "Condition":
        if self.metric == "kv-cache-utilization" and self.max_value > 1:
            raise WrongParameters((("maxValue",), "must be at most 1: kv-cache-utilization is a share"))
        return self


class UtilizationFilter:
    """Keeps the endpoints whose load is within bounds."""

    load_based = True
    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        conditions: tuple[Condition, ...] = Field(min_length=1)
        fallback_on_empty: bool = False
        in_flight_load_producer_name: str | None = None

    def __init__(self, parameters: Parameters) -> None:
        self._bounds = [(_COLUMNS[condition.metric], condition.max_value) for condition in parameters.conditions]
        self._fallback = parameters.fallback_on_empty

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who is within all bounds, shape (n,)."""
        kept: Mask = np.logical_and.reduce([c[key] <= most for key, most in self._bounds])
        if not kept.any():
            # NaN exceeds nothing: those about whom nothing is known are better than nobody.
            kept = ~np.logical_or.reduce([c[key] > most for key, most in self._bounds])
        return np.ones(len(c), dtype=bool) if self._fallback and not kept.any() else kept
