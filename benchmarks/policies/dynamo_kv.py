"""dynamo_kv.py: the cost function of Dynamo's KV router. A baseline.

What it does
    Takes the lowest `overlapScoreWeight` * prefill + decode, in blocks. Prefill is the uncached part of the prompts
    that were sent there and have not had their first token, this one's included. Decode is the blocks of the requests
    that are active there, this one's included; a block that several of them share counts once. The temperature is 0,
    its default: the lowest cost wins, ties are broken at random.

    Source: Dynamo, docs/components/router (router-concepts, router-design), with its defaults.

Reads
    - `inflight_tokens`: our own count of uncached prompt tokens without a first token yet.
    - `matched_tokens` of approx-prefix-cache-producer.

Writes
    Nothing.

Parameters
    - `overlapScoreWeight` (1).
    - `blockSizeTokens` (64): the length of a block.

Example:
    plugins:
    - type: ./dynamo_kv.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: dynamo-kv-picker
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import (
    BYTES_PER_TOKEN,
    INFLIGHT_TOKENS,
    Candidates,
    Context,
    Decision,
    Floats,
    Hasher,
    Outcome,
    Request,
    matched_tokens,
)


class DynamoKvPicker:
    """The lowest sum of prefill and decode blocks."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        overlap_score_weight: float = 1.0
        block_size_tokens: int = Field(default=64, gt=0)

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._weight, self._block = parameters.overlap_score_weight, parameters.block_size_tokens
        self._generator = np.random.default_rng(context.random.getrandbits(64))
        self._hasher = Hasher(secret=context.random.getrandbits(64))
        self._active: dict[int, Counter[int]] = {}  # by slot: how many active requests have each block
        self._blocks: tuple[Request, list[list[int]]] | None = None
        self._sent: dict[int, tuple[Decision, int, list[list[int]]]] = {}
        self._matched = matched_tokens()
        self.reads = (self._matched,)

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index of the lowest cost."""
        blocks = self._chains(request)
        self._blocks = (request, blocks)
        uncached = np.maximum(request.prompt_tokens - np.nan_to_num(c[self._matched]), 0.0)
        prefill = (c[INFLIGHT_TOKENS] + uncached) / self._block
        decode = np.array([self._with(int(slot), blocks) for slot in c.slots], dtype=np.float64)
        cost = self._weight * prefill + decode
        return [int(np.lexsort((self._generator.random(len(c)), cost))[0])]

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """The request is active from now on."""
        known, self._blocks = self._blocks, None
        blocks = known[1] if known is not None and known[0] is request else self._chains(request)
        slot = decision.primary.slots[0]
        active = self._active.setdefault(slot, Counter())
        for chain in blocks:
            active.update(chain)
        self._sent[id(decision)] = (decision, slot, blocks)

    def done(self, request: Request, decision: Decision, outcome: Outcome, now: float) -> None:
        """The request is active no longer."""
        _, slot, blocks = self._sent.pop(id(decision), (None, 0, []))
        for chain in blocks:
            active = self._active[slot]
            active.subtract(chain)
            for block in chain:
                if active[block] <= 0:
                    del active[block]

    def _chains(self, request: Request) -> list[list[int]]:
        seed = self._hasher.seed(request.model, request.body.cache_salt)
        size = self._block * BYTES_PER_TOKEN
        return [self._hasher.chain(seed, memoryview(prompt), size).tolist() for prompt in request.body.prompts]

    def _with(self, slot: int, blocks: list[list[int]]) -> int:
        """Active blocks there with these; a chained hash is active only if all before it are."""
        active = self._active.get(slot, Counter[int]())
        new = sum(len(chain) - bisect_left(chain, True, key=lambda block: block not in active) for chain in blocks)
        return len(active) + new
