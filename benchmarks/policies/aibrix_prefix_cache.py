"""aibrix_prefix_cache.py: AIBrix's prefix-cache rule. A baseline.

What it does
    If max - min of the requests in flight is above `imbalance`, it takes the least loaded. Otherwise it goes through
    the endpoints with a match, longest match first and of equal matches the least loaded first, and takes the first
    whose load is at most mean + `deviations` * sigma of all loads. If there is none, it takes the least loaded.

    Source: AIBrix, pkg/plugins/gateway/algorithms/prefix_cache.go and the README beside it.

Reads
    - `inflight_requests`: our own count.
    - `matched_tokens` of approx-prefix-cache-producer.

Writes
    Nothing.

Parameters
    - `imbalance` (16), `deviations` (2): see above. (8 and 1 in older versions.)

Example:
    plugins:
    - type: ./aibrix_prefix_cache.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: aibrix-prefix-cache-picker
"""

from collections.abc import Sequence

import numpy as np

import epp.plugin
from epp.plugin import INFLIGHT_REQUESTS, Candidates, Context, Floats, Request, matched_tokens


class AibrixPrefixCachePicker:
    """The longest match that isn't overloaded, or else the least loaded."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        imbalance: float = 16.0
        deviations: float = 2.0

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._parameters = parameters
        self._generator = np.random.default_rng(context.random.getrandbits(64))
        self._matched = matched_tokens()
        self.reads = (self._matched,)

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index by the manual's rule; ties are broken at random."""
        load, matched = c[INFLIGHT_REQUESTS], np.nan_to_num(c[self._matched])
        chance = self._generator.random(len(c))
        if load.max() - load.min() <= self._parameters.imbalance:
            bearable = load <= load.mean() + self._parameters.deviations * load.std()
            fit = np.flatnonzero(bearable & (matched > 0))
            if len(fit):
                return [int(fit[np.lexsort((chance[fit], load[fit], -matched[fit]))[0]])]
        return [int(np.lexsort((chance, load))[0])]
