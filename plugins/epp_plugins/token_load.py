"""token-load-scorer: prefers endpoints with fewer prompt tokens to compute.

What it does
    Scores each endpoint by the prompt tokens that it has still to compute for our requests, and those that this request
    would add there: 1 - min(in flight + uncached, T) / T, with T = `queueThresholdTokens`. The score is absolute; with
    the default T of four million tokens, a prompt of 4,000 tokens is worth a thousandth of a point.

    Two requests of 100 and of 100,000 tokens are one request each for `queue-scorer`; here they aren't.

Reads
    - `inflight_tokens`: our own count, never missing and never stale. It knows nothing of other traffic, such as that
      of another replica of this process.
    - `uncached_tokens` of the producer that `inFlightLoadProducerName` names.

Writes
    Nothing.

Parameters
    - `queueThresholdTokens` (4194304): the tokens from which on an endpoint gets no points; 0 or less means this
      default.
    - `inFlightLoadProducerName` (inflight-load-producer): who tells which tokens the request would add.

Example:
    plugins:
    - type: token-load-scorer
      parameters:
        queueThresholdTokens: 100000
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: token-load-scorer
        weight: 2

Where it departs from llm-d, and why
    In nothing.
"""

import numpy as np

import epp.plugin
from epp.keys import INFLIGHT_LOAD_PRODUCER, uncached_tokens
from epp.plugin import INFLIGHT_TOKENS, Candidates, Floats, Request

_DEFAULT = 4_194_304


class TokenLoadScorer:
    """Prefers endpoints with fewer prompt tokens to compute: 1 for none, 0 from the threshold on."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        queue_threshold_tokens: int = _DEFAULT
        in_flight_load_producer_name: str | None = None

    def __init__(self, parameters: Parameters) -> None:
        threshold = parameters.queue_threshold_tokens
        self._threshold = float(threshold if threshold > 0 else _DEFAULT)
        self._uncached = uncached_tokens(parameters.in_flight_load_producer_name or INFLIGHT_LOAD_PRODUCER)
        self.reads = (self._uncached,)

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 - min(in flight + uncached, T) / T of the tokens, shape (n,); what the producer doesn't know counts 0."""
        tokens = c[INFLIGHT_TOKENS] + np.fmax(c[self._uncached], 0.0)
        load: Floats = np.minimum(np.maximum(tokens, 0.0), self._threshold)
        return 1.0 - load / self._threshold
