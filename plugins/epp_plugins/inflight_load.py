"""inflight-load-producer: tells how many prompt tokens a request would add, and what is charged for it.

What it does
    The pool counts, for each endpoint, the requests and tokens that we have sent there and that are in flight; that
    needs no plugin. This one says what a request adds: the prompt tokens that the endpoint is not known to have cached.
    A pick charges its first endpoint with one request and those tokens. The tokens are given back at the first byte of
    the response, when the prompt has been computed, the request at its end.

    With `addEstimatedOutputTokens` the charge grows by the tokens that the answer may have,
    min(`outputRatio` * prompt tokens, `maxEstimatedOutputTokens`), and all of it is held until the response ends.

    Tokens are estimated at 4 bytes of prompt each.

Reads
    `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.

Writes
    - `uncached_tokens`: the prompt tokens that the endpoint would have to compute.
    - with each pick, `inflight_requests` and `inflight_tokens` of the pool, through the mechanism.

Parameters
    - `addEstimatedOutputTokens` (false): charge for the answer too.
    - `outputRatio` (1.5): the answer's length by the prompt's; 0 or more.
    - `maxEstimatedOutputTokens`: the most that is charged for an answer; none by default.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose figures to use.
    - `syncCrossReplicaState` (true): accepted; replicas don't share their counts.

Example:
    plugins:
    - type: inflight-load-producer
      parameters:
        addEstimatedOutputTokens: true
        outputRatio: 2
        maxEstimatedOutputTokens: 1000
    - type: token-load-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: token-load-scorer

Where it departs from llm-d, and why
    - The answer is charged to the destination alone: a prefill writes none.
    - A request that Envoy sends to a fallback is moved there with its tokens; there the load stays where it isn't.
    - What the client itself allows an answer, such as `max_tokens`, bounds the estimate: it can't be longer.
    - A prefix producer that fails leaves the rest alone: the whole prompt counts. There one failed producer stops all
      that follow, and every endpoint looks idle.
"""

from collections.abc import Mapping

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import uncached_tokens
from epp.plugin import APPROX_PREFIX_PRODUCER, Candidates, Context, Floats, Key, Request, matched_tokens


class InflightLoadProducer:
    """Tells how many prompt tokens a request would add at each endpoint, and what an answer is charged with."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        add_estimated_output_tokens: bool = False
        output_ratio: float = Field(default=1.5, ge=0.0)
        max_estimated_output_tokens: int | None = Field(default=None, ge=0)
        prefix_match_info_producer_name: str | None = None
        sync_cross_replica_state: bool = True

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self.charges_answers = parameters.add_estimated_output_tokens
        self._ratio = parameters.output_ratio
        self._most = parameters.max_estimated_output_tokens
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self._uncached = uncached_tokens(context.name)
        self.reads = (self._matched,)
        self.writes = (self._uncached,)

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """The prompt tokens that an endpoint is not known to hold, shape (n,)."""
        uncached: Floats = request.prompt_tokens - np.fmax(c[self._matched], 0.0)
        return {self._uncached: np.maximum(uncached, 0.0)}

    def answer_tokens(self, request: Request) -> float:
        """The tokens that the answer is charged with, if `charges_answers`."""
        bounds = [self._ratio * request.prompt_tokens]
        bounds += [float(most) for most in (self._most, request.body.max_tokens) if most is not None]
        return min(bounds)
