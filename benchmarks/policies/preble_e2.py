"""preble_e2.py: Preble's E2, exploitation and exploration. A baseline.

What it does
    If the longest cached prefix is longer than the rest of the prompt, the request goes to the least loaded of those
    that hold it (exploit). Otherwise it goes where load + eviction + own prefill is lowest (explore). All are seconds
    of an engine's time:

    - load: for the requests sent there within the last `windowSeconds`, their uncached tokens * `prefillSeconds` and
      their answers * `decodeSeconds`; the answer's length is the mean of those seen.
    - eviction: tokens that the prompt drives out of a full cache * `prefillSeconds` * the share of tokens there that
      were hits within the window, which is how likely they are to be asked for again.
    - own prefill: uncached tokens * `prefillSeconds`.

    If the most loaded has more than `balance` times the load of the least loaded, requests that would be exploited
    there go to the least loaded.

    Source: Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving", ICLR 2025, arXiv
    2407.00023, section on E2. Its radix tree knows what would be evicted; here the cache counts as full once as many
    tokens as it holds were sent there within the window. Its replication of hot prefixes follows from exploring.

Reads
    - `cache_blocks`, `cache_block_size`.
    - `matched_tokens` of approx-prefix-cache-producer.

Writes
    Nothing.

Parameters
    - `windowSeconds` (180), `balance` (2): see above.
    - `prefillSeconds` (35e-6), `decodeSeconds` (5e-4): of engine time a token, from a profile of the engine, as there;
      these are of an 8B model on an H100.

Example:
    plugins:
    - type: ./preble_e2.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: preble-e2-picker
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

import epp.plugin
from epp.plugin import (
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    Candidates,
    Context,
    Decision,
    Floats,
    Outcome,
    Request,
    matched_tokens,
)

_ANSWER = 256.0
"""Tokens of an answer before any has been seen."""


class PrebleE2Picker:
    """Exploits a prefix that is longer than the rest, or else explores the lowest cost."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        window_seconds: float = 180.0
        balance: float = 2.0
        prefill_seconds: float = 35e-6
        decode_seconds: float = 5e-4

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._parameters, self._now = parameters, context.now
        self._generator = np.random.default_rng(context.random.getrandbits(64))
        self._sent: deque[tuple[float, int, float, float]] = deque()  # when, slot, uncached and cached tokens
        self._sums = np.zeros((3, 0))  # by slot: uncached tokens, cached tokens, requests within the window
        self._answer, self._answers = _ANSWER, 1.0
        self._matched = matched_tokens()
        self.reads = (self._matched,)

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index by the manual's rule; ties are broken at random."""
        said = self._parameters
        self._expire(self._now() - said.window_seconds)
        self._hold(int(c.slots.max()))
        computed, cached, requests = self._sums[:, c.slots]
        load = computed * said.prefill_seconds + requests * self._answer * said.decode_seconds
        matched = np.minimum(np.nan_to_num(c[self._matched]), request.prompt_tokens)
        longest = float(matched.max())
        cost = load
        which = np.arange(len(c))
        if longest > request.prompt_tokens - longest:
            holders = np.flatnonzero(matched == longest)
            balanced = load[holders].min() <= said.balance * load.min()
            which = holders if balanced else which
        else:
            uncached = request.prompt_tokens - matched
            capacity = np.nan_to_num(c[CACHE_BLOCKS] * c[CACHE_BLOCK_SIZE], nan=np.inf)
            evicted = np.clip(computed + uncached - capacity, 0.0, uncached)
            reused = cached / np.maximum(computed + cached, 1.0)
            cost = load + (evicted * reused + uncached) * said.prefill_seconds
        return [int(which[np.lexsort((self._generator.random(len(which)), cost[which]))[0]])]

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """The request is a part of the load from now on."""
        slot = decision.primary.slots[0]
        matched = float(np.nan_to_num(c[self._matched])[c.slots == slot][0])
        uncached = max(request.prompt_tokens - matched, 0.0)
        self._hold(slot)
        self._sums[:, slot] += (uncached, matched, 1.0)
        self._sent.append((self._now(), slot, uncached, matched))

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        """Learns the length of answers."""
        if outcome.usage.completion_tokens is not None:
            self._answers = min(self._answers + 1.0, 1000.0)
            self._answer += (outcome.usage.completion_tokens - self._answer) / self._answers

    def _expire(self, before: float) -> None:
        while self._sent and self._sent[0][0] < before:
            _, slot, uncached, matched = self._sent.popleft()
            self._sums[:, slot] -= (uncached, matched, 1.0)

    def _hold(self, slot: int) -> None:
        missing = slot + 1 - self._sums.shape[1]
        if missing > 0:
            self._sums = np.concatenate([self._sums, np.zeros((3, missing))], axis=1)
