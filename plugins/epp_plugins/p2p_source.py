"""p2p-source-producer: names an endpoint that the computing one can fetch cached KV blocks from.

What it does
    Where another endpoint has more of the prompt cached than the one that will compute it, the header
    `x-kv-cache-source-host-port` names that one, so that the engine fetches the blocks in place of computing them. The
    computing endpoint is the prefill profile's pick if that profile ran, else the destination.

    The source is one of the endpoints that have cached as much as the best of all, give or take a block, at random by
    weights 1 / (1 + waiting requests): the same one each time for one request id. It is named if it is another endpoint
    and has at least `minCachedTokenDelta` tokens more. A block is as long as the endpoint's engine says, or 64 tokens
    where it doesn't.

Reads
    - `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.
    - `cache_block_size`.
    - `waiting`. Endpoints that don't report it are chosen only where none does.

Writes
    The request header `x-kv-cache-source-host-port`; a client's own copy never passes.

Parameters
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer): whose figures to use.
    - `minCachedTokenDelta` (1): the tokens that make a transfer worthwhile.
    - `prefillProfileName` (prefill): the profile that picks the computing endpoint; the primary one where it
      didn't run. One that isn't there is a warning, unless it is the default.

Example:
    plugins:
    - type: p2p-source-producer
      parameters:
        minCachedTokenDelta: 512
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    An endpoint whose load isn't known is no source where others' is; there it counts as idle.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    CACHE_BLOCK_SIZE,
    WAITING,
    Candidates,
    Context,
    Decision,
    Floats,
    Request,
    absent_profiles,
    matched_tokens,
)

HEADER: Final = "x-kv-cache-source-host-port"
BLOCK: Final = 64.0
"""Tokens, where the engine doesn't say: the smallest block of the approximate index."""


class P2pParameters(epp.plugin.Parameters):
    """See the module's manual."""

    prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER
    min_cached_token_delta: int = Field(default=1, ge=0)
    prefill_profile_name: str = "prefill"


class P2pSourceProducer:
    """Names an endpoint to fetch the cached beginning of the prompt from.

    State: between `picked` and `request_headers` of one decision, the decision and its source.
    """

    Parameters = P2pParameters
    stability = "alpha"

    def __init__(self, parameters: P2pParameters, context: Context) -> None:
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self._delta = parameters.min_cached_token_delta
        self._prefill = parameters.prefill_profile_name
        self.remarks = absent_profiles(context, {"prefillProfileName": self._prefill}, "prefill")
        self._found: tuple[Decision, str] | None = None
        self.reads = (self._matched,)

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Chooses the source."""
        matched = np.nan_to_num(c[self._matched])
        best = matched.max()
        if best <= 0:
            return
        block = c[CACHE_BLOCK_SIZE]
        near = np.flatnonzero(matched >= best - np.where(block > 0, block, BLOCK))
        source = int(near[_chosen(request.id, _weights(c[WAITING][near]))])
        computing = (decision.picks.get(self._prefill) or decision.primary).slots[0]
        has = matched[c.index(computing)]
        if c.slots[source] != computing and matched[source] - has >= self._delta:
            self._found = (decision, c.endpoints[source].hostport)

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """The source, if there is one."""
        found, self._found = self._found, None
        return {HEADER: found[1]} if found is not None and found[0] is decision else {}


def _weights(waiting: Floats) -> Floats:
    """1 / (1 + waiting), shape (n,); 0 where it isn't known, unless it isn't known of anybody."""
    weights = np.nan_to_num(1.0 / (1.0 + waiting))
    return weights if weights.any() else np.ones(len(waiting))


def _chosen(request_id: str, weights: Floats) -> int:
    """An index by these weights, the same one for one id."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, _fnv1a(request_id.encode()) / 2**32 * sums[-1], "right")), len(sums) - 1)


def _fnv1a(data: bytes) -> int:
    """FNV-1a, 32 bits."""
    digest = 0x811C9DC5
    for byte in data:
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    return digest
