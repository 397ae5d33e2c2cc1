"""fcfs-ordering-policy, edf-ordering-policy, global-strict-fairness-policy and others: policies of flow control.

What it does
    Nothing yet: requests are not queued here, so that there is nothing to order. The types of llm-d's flow control load
    with their parameters, so that a file that has them runs:

    | Type | What it is for |
    |---|---|
    | `global-strict-fairness-policy` | the best request of all flows comes first |
    | `round-robin-fairness-policy` | one flow after the other |
    | `program-aware-fairness` | who has had least service |
    | `fcfs-ordering-policy` | within a flow, who came first |
    | `edf-ordering-policy` | whose time to live ends first |
    | `slo-deadline-ordering-policy` | whose time to the first token ends first |
    | `static-usage-limit-policy` | every priority may fill the pool up to a threshold |
    | `priority-holdback-policy` | lower priorities may fill it less |
    | `soft-reflective-ceiling-policy` | the same, by how full it is |
    | `sheddable-eviction-filter` | who may be taken back: priorities below 0 |
    | `priority-then-time-eviction-order-policy` | who is taken back first: the lowest priority, the latest |

Reads
    Nothing.

Writes
    Nothing.

Parameters
    of `static-usage-limit-policy`: `threshold` (1.0).

    of `priority-holdback-policy`: `minCeiling` (required), from 0 to below 1; `maxCeiling` (1.0); `shape` (linear);
    `domain` (rank), or value.

    of `program-aware-fairness`: `strategy` (las), or drr, rr, turn-priority; `evictionTtlSeconds` (3600),
    `evictionSweepSeconds` (300), `lasWeightService` (0.8), `lasWeightHeadWait` (0.2), `lasHalfLifeSeconds` (60).

    of the others: None.

Example:
    featureGates:
    - flowControl
    plugins:
    - type: queue-scorer
    - type: program-aware-fairness
      parameters:
        lasHalfLifeSeconds: 30
    - type: priority-holdback-policy
      parameters:
        minCeiling: 0.5
    - type: static-usage-limit-policy
      parameters:
        threshold: 0.9
    flowControl:
      priorityBands:
      - priority: 0
        fairnessPolicyRef: program-aware-fairness
      usageLimitPolicyPluginRef: priority-holdback-policy

Where it departs from llm-d, and why
    It has no effect yet.
"""

from typing import Literal

from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import WrongParameters

WHY = "has no effect yet: flow control is not enabled"


class GlobalStrictFairnessPolicy:
    """Takes the best request of all flows; has no effect yet."""

    kind, loads_only = "fairness policy", WHY


class RoundRobinFairnessPolicy:
    """Takes from one flow after the other; has no effect yet."""

    kind, loads_only = "fairness policy", WHY


class ProgramAwareParameters(epp.plugin.Parameters):
    """See the module's manual."""

    strategy: Literal["las", "drr", "rr", "turn-priority"] = "las"
    eviction_ttl_seconds: float = Field(default=3600.0, gt=0)
    eviction_sweep_seconds: float = Field(default=300.0, gt=0)
    las_weight_service: float = Field(default=0.8, ge=0)
    las_weight_head_wait: float = Field(default=0.2, ge=0)
    las_half_life_seconds: float = Field(default=60.0, gt=0)


class ProgramAwareFairness:
    """Takes from whoever has had least service; has no effect yet."""

    kind, loads_only = "fairness policy", WHY
    Parameters = ProgramAwareParameters

    def __init__(self, parameters: ProgramAwareParameters) -> None:
        self.parameters = parameters


class FcfsOrderingPolicy:
    """Orders requests by arrival; has no effect yet."""

    kind, loads_only = "ordering policy", WHY


class EdfOrderingPolicy:
    """Orders requests by the end of their time to live; has no effect yet."""

    kind, loads_only = "ordering policy", WHY


class SloDeadlineOrderingPolicy:
    """Orders requests by when their first token is due; has no effect yet."""

    kind, loads_only = "ordering policy", WHY


class StaticParameters(epp.plugin.Parameters):
    """See the module's manual."""

    threshold: float = Field(default=1.0, ge=0)


class StaticUsageLimitPolicy:
    """Lets every priority fill the pool up to a threshold; has no effect yet."""

    kind, loads_only = "usage limit policy", WHY
    Parameters = StaticParameters

    def __init__(self, parameters: StaticParameters) -> None:
        self.parameters = parameters


class HoldbackParameters(epp.plugin.Parameters):
    """See the module's manual."""

    shape: Literal["linear"] = "linear"
    domain: Literal["rank", "value"] = "rank"
    min_ceiling: float = Field(ge=0, lt=1)
    max_ceiling: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "HoldbackParameters":
        if self.min_ceiling > self.max_ceiling:
            message = f"must not be above maxCeiling: {self.min_ceiling:g} and {self.max_ceiling:g}"
            raise WrongParameters((("minCeiling",), message))
        return self


class PriorityHoldbackPolicy:
    """Lets lower priorities fill the pool less; has no effect yet."""

    kind, loads_only = "usage limit policy", WHY
    stability = "alpha"
    Parameters = HoldbackParameters

    def __init__(self, parameters: HoldbackParameters) -> None:
        self.parameters = parameters


class SoftReflectiveCeilingPolicy:
    """Lets lower priorities fill the pool less, the fuller it is; has no effect yet."""

    kind, loads_only = "usage limit policy", WHY
    stability = "alpha"


class SheddableEvictionFilter:
    """Has requests of priorities below 0 taken back; has no effect yet."""

    kind, loads_only = "eviction policy", WHY
    stability = "alpha"


class PriorityThenTimeEvictionOrderPolicy:
    """Has the latest of the lowest priority taken back first; has no effect yet."""

    kind, loads_only = "eviction policy", WHY
    stability = "alpha"
