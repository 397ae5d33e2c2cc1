"""Chained block hashes of a prompt: hash ``i`` names the whole prefix up to and including block ``i``.

A block hash is xxh3 under a secret seed that depends on the block's place in its piece; a chain hash is the key of
the piece plus the running sum of its block hashes; the key of the next piece is xxh3 of the piece's text under its own
key. Two prefixes that differ in one block differ by a sum of independent 64-bit hashes from there on, so they collide
with a probability of about 2^-64 for whoever doesn't know the secret.

Two things make it fast. No step needs the previous block's hash, so the loop over the blocks runs in C (``map``). And
the hashes of a piece that was seen before come from a memo, found by its key: one xxh3 pass over the text instead of a
call a block. Medians of ``benchmarks/prefix.py``, 256-byte blocks, two shared cores:

| prompt | first time | repeated | plain ``h = xxh3(block, h)`` |
|--------|------------|----------|------------------------------|
| 400 kB | 190 us     | 24 us    | 240 us                       |
| 1 kB   | 4 us       | 4 us     | 1 us                         |
"""

from functools import lru_cache
from itertools import chain, cycle
from struct import Struct

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

Chain = NDArray[np.uint64]

PIECE_BYTES = 16 * 1024
_MASK = 2**64 - 1
_LENGTH = Struct("<q")


class Hasher:
    """Hashes prompts into chains, and remembers the hashes of text it has seen.

    The state is the memo, bounded by ``memo_bytes``; it changes the time that a call takes, never its result.

    Args:
        secret: what an attacker would have to know to construct two prompts with the same hash. Chains can be compared
            only if they come from hashers with the same secret.
        memo_bytes: bound of the memo. A piece of 16 kB costs about 700 bytes with 256-byte blocks: the default
            remembers 700 MB of text, twice what an index of 1.4 million blocks holds.
    """

    def __init__(self, secret: int = 0, memo_bytes: int = 32 * 2**20) -> None:
        self._secret = secret & _MASK
        self._memo = _Memo(memo_bytes)
        self._seeds: list[int] = []

    def seed(self, *fields: str | None) -> int:
        """The seed of all chains under the same model, cache salt, adapter and whatever else parts two caches.

        Each field is hashed with its length, so ``("ab", "c")``, ``("a", "bc")`` and ``("ab", None, "c")`` differ.
        """
        encoded = [None if field is None else field.encode("utf-8", "surrogatepass") for field in fields]
        parts = [b"\xff" * 8 if data is None else _LENGTH.pack(len(data)) + data for data in encoded]
        return int(xxh3_64_intdigest(b"".join(parts), self._secret))

    def chain(self, seed: int, prompt: bytes | memoryview, block_bytes: int) -> Chain:
        """The hashes of all full blocks; a trailing part of a block has none.

        Args:
            seed: from `seed`.
            prompt: the text; two prompts share hashes as far as they share whole blocks.
            block_bytes: length of a block. Chains of different block lengths have no hash in common.

        Returns:
            Shape (len(prompt) // block_bytes,), read-only.
        """
        span = max(1, PIECE_BYTES // block_bytes)
        size, end = span * block_bytes, len(prompt) // block_bytes * block_bytes
        view, tail = memoryview(prompt), end - end % size
        keys = [xxh3_64_intdigest(_LENGTH.pack(block_bytes), seed)]
        for start in range(0, tail, size):
            keys.append(xxh3_64_intdigest(view[start : start + size], keys[-1]))
        known = self._memo.leading(keys[1:])
        if len(known) * size < tail:
            known.append(self._pieces(view[len(known) * size : tail], keys[len(known) :], block_bytes, span))
        if tail < end:
            known.append(self._tail(view[tail:end], keys[-1], block_bytes))
        return np.frombuffer(b"".join(known), np.uint64)

    def _pieces(self, text: memoryview, keys: list[int], block_bytes: int, span: int) -> bytes:
        """Hashes and remembers whole pieces, whose keys begin with ``keys[0]``."""
        blocks = chain.from_iterable(_layout(block_bytes, span).iter_unpack(text))
        digests = b"".join(map(xxh3_64_digest, blocks, cycle(self._places(span)[:span])))
        sums = np.frombuffer(digests, ">u8").reshape(-1, span).cumsum(axis=1, dtype=np.uint64)
        sums += np.array(keys[:-1], np.uint64)[:, None]
        raw, width = sums.tobytes(), 8 * span
        for i, key in enumerate(keys[1:]):
            self._memo.put(key, raw[width * i : width * (i + 1)])
        return raw

    def _tail(self, text: memoryview, key: int, block_bytes: int) -> bytes:
        """Hashes the blocks of a piece that isn't whole."""
        blocks = len(text) // block_bytes
        hashes = map(xxh3_64_intdigest, _layout(block_bytes, blocks).unpack(text), self._places(blocks))
        return (np.fromiter(hashes, np.uint64, blocks).cumsum() + np.uint64(key)).tobytes()

    def _places(self, span: int) -> list[int]:
        """The seeds of the places in a piece, ``span`` of them or more."""
        while len(self._seeds) < span:
            self._seeds.append(xxh3_64_intdigest(_LENGTH.pack(len(self._seeds)), self._secret))
        return self._seeds


class _Memo:
    """Piece key -> the piece's hashes; about the least recently used are dropped.

    Each shard is two generations of a plain dictionary: a hit in the old one moves to the young one, and when the
    young one is full it becomes the old one. Shards keep that step short (a thousand entries or two are freed at
    once), and dictionaries of integers and bytes are not traversed by the garbage collector.
    """

    _SHARDS = 16
    _ENTRY = 200  # bytes of an entry beside its hashes: key, bytes object, its share of the table

    def __init__(self, limit: int) -> None:
        self._room = limit // (2 * self._SHARDS)  # bytes of one generation of one shard
        self._young: list[dict[int, bytes]] = [{} for _ in range(self._SHARDS)]
        self._old: list[dict[int, bytes]] = [{} for _ in range(self._SHARDS)]
        self._used = [0] * self._SHARDS

    def leading(self, keys: list[int]) -> list[bytes]:
        """The hashes of the pieces up to the first one that is unknown."""
        known: list[bytes] = []
        for key in keys:
            found = self.get(key)
            if found is None:
                break
            known.append(found)
        return known

    def get(self, key: int) -> bytes | None:
        shard = key % self._SHARDS
        found = self._young[shard].get(key)
        if found is None:
            found = self._old[shard].pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: int, hashes: bytes) -> None:
        shard, cost = key % self._SHARDS, len(hashes) + self._ENTRY
        if self._used[shard] + cost > self._room:
            self._old[shard], self._young[shard], self._used[shard] = self._young[shard], {}, 0
        if cost <= self._room:
            self._young[shard][key] = hashes
            self._used[shard] += cost

    def __len__(self) -> int:
        return sum(map(len, self._young)) + sum(map(len, self._old))


@lru_cache(1024)
def _layout(block_bytes: int, blocks: int) -> Struct:
    return Struct(f"{block_bytes}s" * blocks)
