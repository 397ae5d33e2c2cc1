"""load-aware-scorer: prefers endpoints whose queue is far from a threshold.

What it does
    Scores each endpoint by its waiting requests q against a threshold T: 0.5 * (1 - min(q, T) / T). An empty queue is
    worth 0.5, one of T or more nothing. The score is absolute: it does not depend on the other candidates. As it ends
    at 0.5, a weight of 2 here is as much as a weight of 1 of a scorer that goes up to 1.

Reads
    `waiting`: `vllm:num_requests_waiting` as last scraped.

Writes
    Nothing.

Parameters
    - `threshold` (128): the waiting requests from which on an endpoint gets no points; 0 or less means the default.

Example:
    plugins:
    - type: load-aware-scorer
      parameters:
        threshold: 64
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: load-aware-scorer
        weight: 2

Where it departs from llm-d, and why
    An endpoint that was never scraped, or missed its last scrape, gets no points. There it counts as an empty queue.
"""

import numpy as np

import epp.plugin
from epp.plugin import WAITING, Candidates, Floats, Request

_DEFAULT = 128


class LoadAwareScorer:
    """Prefers endpoints whose queue is far from a threshold: 0.5 for an empty queue, 0 from the threshold on."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        threshold: int = _DEFAULT

    def __init__(self, parameters: Parameters) -> None:
        self._threshold = float(parameters.threshold if parameters.threshold > 0 else _DEFAULT)

    def score(self, request: Request, c: Candidates) -> Floats:
        """0.5 * (1 - min(q, T) / T) of the waiting requests, shape (n,); NaN where unknown."""
        waiting: Floats = np.minimum(c[WAITING], self._threshold)
        return 0.5 - waiting * (0.5 / self._threshold)
