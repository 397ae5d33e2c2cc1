"""active-request-scorer: prefers endpoints that have fewer of our requests in flight.

What it does
    Scores each endpoint by the requests that this process has sent it and that have not ended. Up to `idleThreshold` of
    them the score is 1. Above, it is (most - c) / most * `maxBusyScore`, where `most` is the busiest candidate's count:
    the busiest gets 0, and if all are equally busy, all get 0. The count is entered with each pick, so it is right
    within a burst, when scraped metrics are not yet.

Reads
    `inflight_requests`: our own count, never missing and never stale. It knows nothing of other traffic, such as that
    of another replica of this process.

Writes
    Nothing.

Parameters
    - `idleThreshold` (0): the requests up to which an endpoint counts as idle; less than 0 means the default.
    - `maxBusyScore` (1.0): the most that an endpoint which is not idle can get; outside [0, 1] it means the default.
    - `inFlightLoadProducerName`: accepted; there is one count, the mechanism's, whatever it is called.
    - `requestTimeout`: deprecated and ignored; a request is in flight until its stream ends.

Example:
    plugins:
    - type: active-request-scorer
      parameters:
        idleThreshold: 2
        maxBusyScore: 0.8
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: active-request-scorer

Where it departs from llm-d, and why
    No producer is needed: `inflight-load-producer` is part of the mechanism, and a request is counted in the same step
    that picks its endpoint.
"""

from typing import Any

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import INFLIGHT_REQUESTS, Candidates, Floats, Request


class ActiveRequestScorer:
    """Prefers endpoints that have fewer of our requests in flight: 1 for idle ones, 0 for the busiest."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        idle_threshold: int = 0
        max_busy_score: float = 1.0
        in_flight_load_producer_name: str | None = None
        request_timeout: Any = Field(default=None, deprecated="it is ignored, leave it out")

    def __init__(self, parameters: Parameters) -> None:
        self._idle = float(max(parameters.idle_threshold, 0))
        self._most = parameters.max_busy_score if 0.0 <= parameters.max_busy_score <= 1.0 else 1.0

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 where c <= idle, else (max - c) / max * maxBusyScore of the requests in flight, shape (n,)."""
        counts = c[INFLIGHT_REQUESTS]
        busiest = float(counts.max())
        if busiest <= self._idle:
            return np.ones(len(c))
        scores: Floats = (busiest - counts) * (self._most / busiest)
        scores[counts <= self._idle] = 1.0
        return scores
