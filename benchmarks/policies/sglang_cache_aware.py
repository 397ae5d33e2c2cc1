"""sglang_cache_aware.py: the rule of SGLang's router (now SMG), cache_aware. A baseline.

What it does
    If the loads are unequal, max - min > `balanceAbsThreshold` and max > `balanceRelThreshold` * min, it takes the
    shortest queue. Otherwise, if the best match is more than `cacheThreshold` of the prompt, it takes the endpoint with
    that match, and if not, the one with the least load. Load is the number of requests in flight.

    Source: SMG's documentation, docs/concepts/routing/cache-aware.md, with its defaults. Older versions take the
    smallest tree instead of the least load where nothing matches.

Reads
    - `inflight_requests`: our own count.
    - `matched_tokens`, `matchable_tokens` of approx-prefix-cache-producer.

Writes
    Nothing.

Parameters
    - `cacheThreshold` (0.3), `balanceAbsThreshold` (64), `balanceRelThreshold` (1.5): see above.

Example:
    plugins:
    - type: ./sglang_cache_aware.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: sglang-cache-aware-picker
"""

from collections.abc import Sequence

import numpy as np

import epp.plugin
from epp.plugin import INFLIGHT_REQUESTS, Candidates, Context, Floats, Request, matchable_tokens, matched_tokens


class SglangCacheAwarePicker:
    """The best match while the loads are alike, the shortest queue otherwise."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        cache_threshold: float = 0.3
        balance_abs_threshold: float = 64.0
        balance_rel_threshold: float = 1.5

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._parameters, self._random = parameters, context.random
        self._matched, self._matchable = matched_tokens(), matchable_tokens()
        self.reads = (self._matched, self._matchable)

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index by the manual's rule; ties are broken at random."""
        load = c[INFLIGHT_REQUESTS]
        share = np.nan_to_num(c[self._matched]) / np.fmax(c[self._matchable], 1.0)
        least, most = float(load.min()), float(load.max())
        said = self._parameters
        unequal = most - least > said.balance_abs_threshold and most > said.balance_rel_threshold * least
        if not unequal and share.max() > said.cache_threshold:
            best = np.flatnonzero(share == share.max())
        else:
            best = np.flatnonzero(load == least)
        return [int(self._random.choice(best))]
