"""burst-prefix-cache-producer: sends requests that come at once with one prompt to one place.

What it does
    When many requests with the same prompt come together, such as the samples of one step of reinforcement learning, no
    endpoint has the prompt cached yet, and a scorer of cached prefixes spreads them: each endpoint computes the prompt
    anew. This producer holds requests for a window from the first one's arrival and then places all of the window
    together. Each request's assigned endpoint has a full match, the others have none; `prefix-cache-scorer` makes
    points of that, if its `prefixMatchInfoProducerName` names this producer.

    Placed are groups: requests of one model, adapter and cache salt whose prompts have the same whole blocks (or are
    equal, if they are shorter than a block). They come first, those with the longest prompts before others, each at the
    endpoint that has got least in this window; beyond `maxPerReplica` the rest of a group goes to the next such
    endpoint. With `minColocateBlocks` a group rather goes where another one is that begins with at least as many
    blocks alike, as long as that endpoint has got less than its share of the window; and a request alone in its group
    is placed in the same way, after the groups, if it begins like any other one. All others get no match anywhere.

    Of endpoints that have got the same, the one with the fewest requests in flight counts as the least loaded.

Reads
    The prompts, and `inflight_requests`.

Writes
    - `matched_tokens`: the prompt's tokens for the assigned endpoint, 0 for others.
    - `matchable_tokens`: the prompt's tokens.

Parameters
    - `windowDurationMs` (100): how long a window lasts, 1 to 10000. Every request waits up to that long; Envoy's
      `message_timeout` must be longer.
    - `maxPerReplica` (-1): the most of one group at one endpoint; -1 for all.
    - `blockSizeTokens` (64): the length of a block.
    - `maxPrefixTokensToMatch` (0): what comes after in a prompt is not looked at; 0 for 2048 blocks.
    - `minColocateBlocks` (0): see above; 0 for groups alone.
    - `maxBatchSize` (1000): a window with so many requests is placed at once; -1 for no limit.
    - `balanceBy` (requests): what is least at the least loaded endpoint: `requests`, or `tokens`, which are the blocks
      of the groups at an endpoint, those that it has from others already counted once.

Example:
    plugins:
    - type: burst-prefix-cache-producer
      parameters:
        windowDurationMs: 50
        minColocateBlocks: 4
    - type: prefix-cache-scorer
      parameters:
        prefixMatchInfoProducerName: burst-prefix-cache-producer
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: prefix-cache-scorer
        weight: 3
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    - A window that is full is placed, and the next one begins; there every further request of the window fails.
    - Requests in flight decide between equals; there a burst begins where the last one did, however busy that is.
    - Prompts that differ in their last block only are one group: all of their whole blocks are shared.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

import epp.plugin
from epp.plugin import (
    BYTES_PER_TOKEN,
    INFLIGHT_REQUESTS,
    Candidates,
    Chain,
    Context,
    Floats,
    Hasher,
    Key,
    Request,
    WrongParameters,
    matchable_tokens,
    matched_tokens,
)

MOST_BLOCKS = 2048
PATIENCE = 0.4
"""Seconds beyond the window that a request waits for its place."""


def _limit(limit: int) -> int:
    if limit < -1 or limit == 0:
        raise ValueError(f"must be above 0, or -1 for no limit, not {limit}")
    return limit


Limit = Annotated[int, AfterValidator(_limit)]


class BurstParameters(epp.plugin.Parameters):
    """See the module's manual."""

    window_duration_ms: int = Field(default=100, ge=1, le=10_000)
    max_per_replica: Limit = -1
    block_size_tokens: int = Field(default=64, gt=0)
    max_prefix_tokens_to_match: int = Field(default=0, ge=0)
    min_colocate_blocks: int = Field(default=0, ge=0)
    max_batch_size: Limit = 1000
    balance_by: Literal["requests", "tokens"] = "requests"

    @model_validator(mode="after")
    def _fits(self) -> "BurstParameters":
        if 0 < self.max_prefix_tokens_to_match < self.block_size_tokens:
            message = "must be 0, or at least blockSizeTokens: else no block is looked at"
            raise WrongParameters((("maxPrefixTokensToMatch",), message))
        return self

    @property
    def most_blocks(self) -> int:
        """The blocks of a prompt that are looked at."""
        return self.max_prefix_tokens_to_match // self.block_size_tokens or MOST_BLOCKS


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in a window: what tells its group, its chain of blocks, who may serve it, and where it is to go."""

    identity: bytes
    chain: Chain
    slots: frozenset[int]
    place: "asyncio.Future[int | None]"


@dataclass(slots=True, eq=False)
class Endpoints:
    """What the endpoints have got in this window, by slot; `held` are the hashes of the blocks placed there."""

    load: dict[int, float]
    share: float
    held: dict[int, set[int]] = field(default_factory=dict)

    def shared(self, slot: int, chain: Sequence[int]) -> int:
        """How many leading blocks are there: hashes are chained, so that one names all before it."""
        held = self.held.get(slot)
        if not held:
            return 0
        low, high = 0, len(chain)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if chain[middle] in held else (low, middle)
        return low


class BurstPrefixCacheProducer:
    """Places requests that come at once together, those with one prompt at one endpoint.

    State: the requests of the window, and the timer that ends it.
    """

    Parameters = BurstParameters
    stability = "alpha"

    def __init__(self, parameters: BurstParameters, context: Context) -> None:
        self._parameters = parameters
        self._block_bytes = parameters.block_size_tokens * BYTES_PER_TOKEN
        self._window = parameters.window_duration_ms / 1e3
        self._hasher = Hasher(secret=context.random.getrandbits(64))
        self._pool = context.pool
        self._matched, self._matchable = matched_tokens(context.name), matchable_tokens(context.name)
        self.writes = (self._matched, self._matchable)
        self.deadline = self._window + PATIENCE
        self._waiting: list[Waiting] = []
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<BurstPrefixCacheProducer: {len(self._waiting)} requests in its window>"

    async def fetch(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """Waits for the window's end: the prompt's tokens at the place that it is given, shape (n,)."""
        tokens = request.prompt_tokens
        place = await self._placed(request, c) if tokens else None
        matched = np.zeros(len(c)) if place is None else np.where(c.slots == place, tokens, 0.0)
        return {self._matched: matched, self._matchable: np.full(len(c), tokens)}

    async def _placed(self, request: Request, c: Candidates) -> int | None:
        loop = asyncio.get_running_loop()
        identity, chain = self._identity(request)
        mine = Waiting(identity, chain, frozenset(map(int, c.slots)), loop.create_future())
        self._waiting.append(mine)
        if len(self._waiting) == self._parameters.max_batch_size:
            self._close()
        elif self._timer is None:
            self._timer = loop.call_later(self._window, self._close)
        try:
            return await mine.place
        finally:
            if mine in self._waiting:
                self._waiting.remove(mine)  # the client has gone

    def _identity(self, request: Request) -> tuple[bytes, Chain]:
        """What is equal for equal prompts, as far as they are looked at; and the chain of the first one's blocks."""
        seed = self._hasher.seed(request.model, request.body.cache_salt)
        most = self._parameters.most_blocks * self._block_bytes
        views = [memoryview(prompt)[:most] for prompt in request.body.prompts]
        chains = [self._hasher.chain(seed, view, self._block_bytes) for view in views]
        whole = [
            chain if len(chain) else self._hasher.chain(seed, view, max(len(view), 1))
            for chain, view in zip(chains, views, strict=True)
        ]
        return b"".join(bytes(chain[-1:]) + len(chain).to_bytes(4, "big") for chain in whole), chains[0]

    def _close(self) -> None:
        """Places the window's requests, and lets them go."""
        if self._timer is not None:
            self._timer.cancel()
        batch, self._waiting, self._timer = self._waiting, [], None
        inflight = self._pool.column(INFLIGHT_REQUESTS)
        for waiting, slot in zip(batch, placed(batch, self._parameters, inflight), strict=True):
            if not waiting.place.done():
                waiting.place.set_result(slot)


def placed(batch: Sequence[Waiting], parameters: BurstParameters, inflight: Floats) -> list[int | None]:
    """Where each of the batch goes; None for where it may.

    Args:
        batch: in the order of arrival.
        parameters: see the manual.
        inflight: requests in flight by slot.
    """
    units = _units(batch, parameters.min_colocate_blocks)
    by_tokens = parameters.balance_by == "tokens"
    slots = sorted({slot for waiting in batch for slot in waiting.slots})
    total = sum(len(batch[unit[0]].chain) if by_tokens else len(unit) for unit in units)
    endpoints = Endpoints(dict.fromkeys(slots, 0.0), total / max(len(slots), 1))
    places: list[int | None] = [None] * len(batch)
    for unit in units:
        chain: list[int] = batch[unit[0]].chain.tolist()
        left, used = list(unit), set[int]()
        while left:
            allowed = set.intersection(*[set(batch[index].slots) for index in left]) - used or set(batch[left[0]].slots)
            slot = _choose(allowed, chain, endpoints, parameters.min_colocate_blocks, inflight)
            most = len(left) if parameters.max_per_replica < 0 else parameters.max_per_replica
            here, left = left[:most], left[most:]
            for index in here:
                places[index] = slot
            used.add(slot)
            added = len(chain) - endpoints.shared(slot, chain) if by_tokens else len(here)
            endpoints.load[slot] += added
            if by_tokens or parameters.min_colocate_blocks:
                endpoints.held.setdefault(slot, set()).update(chain)
    return places


def _units(batch: Sequence[Waiting], colocate: int) -> list[list[int]]:
    """What is placed together, in order: groups, then single requests that begin like others; the longest first."""
    groups: dict[tuple[bytes, frozenset[int]], list[int]] = {}
    for index, waiting in enumerate(batch):
        groups.setdefault((waiting.identity, waiting.slots), []).append(index)
    several = [group for group in groups.values() if len(group) > 1]
    single: list[list[int]] = []
    if colocate:
        begin = [int(waiting.chain[colocate - 1]) if len(waiting.chain) >= colocate else None for waiting in batch]
        counts: dict[int | None, int] = {}
        for head in begin:
            counts[head] = counts.get(head, 0) + 1
        alone = [group for group in groups.values() if len(group) == 1]
        single = [group for group in alone if begin[group[0]] is not None and counts[begin[group[0]]] > 1]
    return [*_longest_first(several, batch), *_longest_first(single, batch)]


def _longest_first(units: Iterable[list[int]], batch: Sequence[Waiting]) -> list[list[int]]:
    return sorted(units, key=lambda unit: -len(batch[unit[0]].chain))


def _choose(allowed: set[int], chain: Sequence[int], endpoints: Endpoints, colocate: int, inflight: Floats) -> int:
    """The least loaded; of those with enough of the prompt's beginning and less than their share, if there are any."""
    near = allowed
    if colocate and len(chain) >= colocate:
        head = chain[colocate - 1]
        near = {slot for slot, held in endpoints.held.items() if slot in allowed and head in held}
        near = {slot for slot in near if endpoints.load[slot] < endpoints.share} or allowed
    return min(near, key=lambda slot: (endpoints.load[slot], inflight[slot], slot))
