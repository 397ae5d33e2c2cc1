"""bounded_hash.py: consistent hashing of the prompt's beginning, with bounded loads. A baseline.

What it does
    Each endpoint stands at `replicas` places of a ring. A request goes to the first endpoint at or after the hash of
    its first `prefixTokens` tokens whose requests in flight, with this one, are at most `bound` times the average, with
    this one. So equal beginnings go to one endpoint as long as it isn't overloaded, and nobody keeps a table of what is
    cached.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018; 256 tokens and 1.25
    are those of SMG's policy `prefix_hash`.

Reads
    `inflight_requests`: our own count.

Writes
    Nothing.

Parameters
    - `prefixTokens` (256), `bound` (1.25), `replicas` (100): see above.

Example:
    plugins:
    - type: ./bounded_hash.py
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: bounded-hash-picker
"""

from bisect import bisect_left
from collections.abc import Sequence
from hashlib import blake2b
from math import ceil

from pydantic import Field

import epp.plugin
from epp.plugin import BYTES_PER_TOKEN, INFLIGHT_REQUESTS, Candidates, Floats, Request


def _place(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest())


class BoundedHashPicker:
    """The first endpoint on the ring that isn't overloaded."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        prefix_tokens: int = Field(default=256, gt=0)
        bound: float = Field(default=1.25, gt=1.0)
        replicas: int = Field(default=100, gt=0)

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._ring: tuple[tuple[str, ...], list[int], list[int]] = ((), [], [])

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index by the manual's rule."""
        _, places, owners = self._ring_of(c)
        load = c[INFLIGHT_REQUESTS]
        most = ceil(self._parameters.bound * (float(load.sum()) + 1.0) / len(c))
        beginning = b"".join(request.body.prompts)[: self._parameters.prefix_tokens * BYTES_PER_TOKEN]
        start = bisect_left(places, _place(request.model.encode() + b"\0" + beginning))
        for step in range(len(places)):
            index = owners[(start + step) % len(places)]
            if load[index] + 1.0 <= most:
                return [index]
        return [int(load.argmin())]

    def _ring_of(self, c: Candidates) -> tuple[tuple[str, ...], list[int], list[int]]:
        ids = tuple(endpoint.id for endpoint in c.endpoints)
        if ids != self._ring[0]:
            each = [
                (_place(f"{name} {n}".encode()), i)
                for i, name in enumerate(ids)
                for n in range(self._parameters.replicas)
            ]
            places, owners = zip(*sorted(each), strict=True)
            self._ring = (ids, list(places), list(owners))
        return self._ring
