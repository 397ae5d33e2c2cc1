"""mm-embeddings-cache-producer, mm-embeddings-cache-scorer: send pictures to where they are already encoded.

What it does
    The producer remembers for each endpoint which pictures, sounds and videos have been sent there, least recently used
    first out, and tells of how many of a request's an endpoint should hold the embeddings. They are told apart by their
    content, whatever the prompt around them. If a profile for encoding has run, those are remembered for whom it
    chose, since that is where they are encoded; else for the target of every profile.

    It is an endpoint extractor: it hears of endpoints that go, whether or not `dataLayer.sources` names it at an
    `endpoint-notification-source`.

    The scorer gives an endpoint the share of the request's media that it holds; nobody gets points for a request
    without media.

Reads
    The request's media, and the scorer `matched_media` of the producer that `producerName` names.

Writes
    - `matched_media`: how many of the request's media the endpoint should hold.

Parameters
    of mm-embeddings-cache-producer:

    - `cacheSizeInMBPerServer` (4096): the cache of an endpoint, at 2 MB for each; above 0.
    - `cacheSizeInMB`: deprecated, the same; it counts if the other one isn't given.

    of mm-embeddings-cache-scorer:

    - `producerName` (mm-embeddings-cache-producer): whose figures to use.

Example:
    plugins:
    - type: mm-embeddings-cache-producer
      parameters:
        cacheSizeInMBPerServer: 8192
    - type: mm-embeddings-cache-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: mm-embeddings-cache-scorer
        weight: 2

Where it departs from llm-d, and why
    - The endpoints that encode are credited. There it is the destination's whole fallback list, which mostly never
      sees the request, while the encoder is never credited.
    - An endpoint that leaves or restarts is forgotten.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, Self

import numpy as np
from pydantic import Field

import epp.plugin
from epp.keys import MEDIA_PRODUCER, matched_media
from epp.plugin import Candidates, Context, Decision, Floats, Key, Request

MB_EACH: Final = 2
DEFAULT_MB: Final = 4096


class _Held:
    """Who holds what: by slot its media, used longest ago first; and by medium the slots."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._by_slot: dict[int, OrderedDict[bytes, None]] = {}
        self._holders: dict[bytes, set[int]] = {}

    def __repr__(self) -> str:
        return f"<{len(self._holders)} media at {len(self._by_slot)} endpoints>"

    def holders(self, medium: bytes) -> Iterable[int]:
        """The slots that hold it."""
        return self._holders.get(medium, ())

    def add(self, slot: int, media: Iterable[bytes]) -> None:
        """They have been sent there."""
        held = self._by_slot.setdefault(slot, OrderedDict())
        for medium in media:
            held[medium] = None
            held.move_to_end(medium)
            self._holders.setdefault(medium, set()).add(slot)
            if len(held) > self._capacity:
                self._drop(slot, held.popitem(last=False)[0])

    def forget(self, slot: int) -> None:
        """Its cache is gone."""
        for medium in self._by_slot.pop(slot, ()):
            self._drop(slot, medium)

    def _drop(self, slot: int, medium: bytes) -> None:
        holders = self._holders[medium]
        holders.discard(slot)
        if not holders:
            del self._holders[medium]


class MmEmbeddingsCacheProducer:
    """Tells how many of a request's pictures and other media each endpoint has encoded already."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        cache_size_in_mb_per_server: int = Field(default=DEFAULT_MB, gt=0, alias="cacheSizeInMBPerServer")
        cache_size_in_mb: int | None = Field(
            default=None, gt=0, alias="cacheSizeInMB", deprecated='write "cacheSizeInMBPerServer"'
        )

        @property
        def cache_mb(self) -> int:
            """The cache of an endpoint in MB; the old spelling counts where the new one isn't given."""
            old: int | None = dict(self)["cache_size_in_mb"]  # the attribute would warn of itself
            given = "cache_size_in_mb_per_server" in self.model_fields_set
            return self.cache_size_in_mb_per_server if given or old is None else old

        def effective(self) -> Self:
            """In the new spelling."""
            return self.model_validate({"cache_size_in_mb_per_server": self.cache_mb})

    def __init__(self, parameters: Parameters, context: Context) -> None:
        capacity = max(parameters.cache_mb // MB_EACH, 1)
        self._held = context.state(capacity, lambda: _Held(capacity))
        self._key = matched_media(context.name)
        self.writes = (self._key,)
        context.pool.watch(self)

    def forget(self, slot: int) -> None:
        """The endpoint has gone, or has restarted: it holds nothing any more."""
        self._held.forget(slot)

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """The request's media that an endpoint should hold, shape (n,)."""
        counts: dict[int, int] = {}
        for medium in request.body.media:
            for slot in self._held.holders(medium):
                counts[slot] = counts.get(slot, 0) + 1
        matched = np.zeros(len(c))
        for slot, count in counts.items():
            matched[c.slots == slot] = count
        return {self._key: matched}

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """The media are on their way."""
        if not request.body.media:
            return
        encoding = {slot for pick in decision.encoding.values() for slot in pick.slots}
        targets = encoding or {pick.slots[0] for pick in decision.picks.values()}
        for slot in targets:
            self._held.add(slot, request.body.media)


class MmEmbeddingsCacheScorer:
    """Prefers endpoints that have encoded the request's pictures and other media already: 1 for all of them."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        producer_name: str | None = None

    def __init__(self, parameters: Parameters) -> None:
        self._matched = matched_media(parameters.producer_name or MEDIA_PRODUCER)
        self.reads = (self._matched,)

    def score(self, request: Request, c: Candidates) -> Floats:
        """The share of the media that an endpoint holds, shape (n,)."""
        shares: Floats = np.fmax(c[self._matched], 0.0) / max(len(request.body.media), 1)
        return np.minimum(shares, 1.0)
