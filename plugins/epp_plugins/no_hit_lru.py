"""no-hit-lru-scorer: spreads the requests that nobody has anything cached for.

What it does
    If any candidate is believed to have a part of the prompt, every candidate gets 0.5: the scorer has no say. If
    nobody has, it ranks them by how long ago they were last given such a cold request: first those that never were,
    then the one that has waited longest, last the one that got the latest. The best of n gets 1, the next
    1 - 1 / (n - 1), and so on down to 0; a single candidate gets 1.

    So new prefixes, each of which will draw its followers to where it went, are dealt out in turn. Only cold requests
    count as use, for the target of every profile that ran and has the prompt computed: encoding media is no use.

Reads
    `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.

Writes
    Nothing.

Parameters
    - `lruSize` (1024): the endpoints whose last use is remembered; beyond, the one used longest ago counts as never
      used. 0 or less means the default, with a warning.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose figures to use.
    - `prefixPluginName`, `prefixPluginType`: deprecated; a scorer of prefixes, whose producer counts.

Example:
    plugins:
    - type: prefix-cache-scorer
    - type: no-hit-lru-scorer
      parameters:
        lruSize: 2048
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-scorer
        weight: 3
      - pluginRef: no-hit-lru-scorer
        weight: 2

Where it departs from llm-d, and why
    - The rank is among the candidates. There it is among all endpoints that were ever used, so that where filters leave
      a few of many, most of those few get 0.
    - Endpoints that were never used are ranked in the order in which they came, whatever the order of the candidates.
    - The target of every profile counts, whatever its name; there the primary's and that of one named `prefill`.
    - An endpoint that leaves or restarts counts as never used.
"""

from collections import OrderedDict
from typing import Final, Self

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import APPROX_PREFIX_PRODUCER, Candidates, Context, Decision, Floats, Pool, Request, matched_tokens

_DEFAULT: Final = 1024
_NOW = 'write "prefixMatchInfoProducerName"'


class _Uses:
    """By slot the number of its last cold request, 0 for never; and the slots, used longest ago first."""

    def __init__(self, size: int, pool: Pool) -> None:
        self._size = size
        self._pool = pool
        self._last = np.zeros(len(pool.endpoints))
        self._order: OrderedDict[int, None] = OrderedDict()
        self._count = 0

    def __repr__(self) -> str:
        return f"<{len(self._order)} endpoints used, {self._count} cold requests>"

    @property
    def last(self) -> Floats:
        """Shape (slots,)."""
        missing = len(self._pool.endpoints) - len(self._last)
        if missing > 0:
            self._last = np.concatenate([self._last, np.zeros(missing)])
        return self._last

    def use(self, slot: int) -> None:
        """A cold request goes there."""
        self._count += 1
        self.last[slot] = self._count
        self._order[slot] = None
        self._order.move_to_end(slot)
        if len(self._order) > self._size:
            oldest, _ = self._order.popitem(last=False)
            self._last[oldest] = 0.0

    def forget(self, slot: int) -> None:
        """Its cache is empty: it is as good as new."""
        if slot in self._order:
            del self._order[slot]
            self._last[slot] = 0.0


class NoHitLruScorer:
    """Prefers endpoints that have waited longest for a request without a prefix hit; 0.5 for all if there is a hit."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        lru_size: int = _DEFAULT
        prefix_match_info_producer_name: str | None = None
        prefix_plugin_type: str | None = Field(default=None, deprecated=_NOW)
        prefix_plugin_name: str | None = Field(default=None, deprecated=_NOW)

        def effective(self) -> Self:
            """With the size that counts."""
            return self.model_copy(update={"lru_size": self.lru_size if self.lru_size > 0 else _DEFAULT})

    def __init__(self, parameters: Parameters, context: Context) -> None:
        size = parameters.effective().lru_size
        given = parameters.lru_size
        self.remarks = () if given > 0 else (f"lruSize is {given}: the default counts, {size}",)
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,)
        self._uses = context.state(size, lambda: _Uses(size, context.pool))
        context.pool.watch(self._uses)

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 - rank / (n - 1) of the cold request's candidates, shape (n,); 0.5 for all if anybody has a hit."""
        count = len(c)
        if self._hit(c):
            return np.full(count, 0.5)
        if count == 1:
            return np.ones(1)
        scores = np.empty(count)
        # Of equal last uses, which only "never" has, the lower slot comes first.
        scores[np.lexsort((c.slots, self._uses.last[c.slots]))] = np.linspace(1.0, 0.0, count)
        return scores

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Puts the targets of a cold request last in line."""
        if not self._hit(c):
            for pick in decision.computing.values():
                self._uses.use(pick.slots[0])

    def _hit(self, c: Candidates) -> bool:
        return bool(np.count_nonzero(c[self._matched] > 0))
