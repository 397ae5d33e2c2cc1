"""lmetric.py: LMetric, the product of new prefill tokens and batch size. A baseline.

What it does
    Takes the lowest (prefill tokens) * (batch size), both with this request: the uncached tokens that wait there for
    their first token and the request's own, times the requests in flight there and one. Ties are broken at random.

    Source: Zhang et al., "LMetric: Simple is Better", arXiv 2603.15202; Dynamo's option `lmetric` is the same product.

Reads
    - `inflight_tokens`, `inflight_requests`: our own counts.
    - `matched_tokens` of approx-prefix-cache-producer.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: ./lmetric.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: lmetric-picker
"""

from collections.abc import Sequence

import numpy as np

from epp.plugin import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, Candidates, Context, Floats, Request, matched_tokens


class LmetricPicker:
    """The lowest product of prefill tokens and batch size."""

    def __init__(self, context: Context) -> None:
        self._generator = np.random.default_rng(context.random.getrandbits(64))
        self._matched = matched_tokens()
        self.reads = (self._matched,)

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index of the lowest product."""
        uncached = np.maximum(request.prompt_tokens - np.nan_to_num(c[self._matched]), 0.0)
        product = (c[INFLIGHT_TOKENS] + uncached) * (c[INFLIGHT_REQUESTS] + 1.0)
        return [int(np.lexsort((self._generator.random(len(c)), product))[0])]
