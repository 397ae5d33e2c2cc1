"""Chained block hashes of a prompt: hash ``i`` names the whole prefix up to and including block ``i``.

A prompt is taken in pieces of 16 kB. A block's hash depends on its text and on its place in its piece; a chain hash is
the key of the piece plus the running sum of its block hashes; the key of the next piece is xxh3 of the piece's text
under its own key. Two prefixes that differ in one block differ by a sum of hashes that know nothing of one another from
there on, so whoever doesn't know the secret can't make them collide.

The blocks of the first piece are hashed with xxh3 under a secret seed, a call a block; those of the others by two
multilinear forms with secret odd coefficients, two array products for all of them: ``sum a_i x_i mod 2^64`` over the
words of a block (Lemire and Kaser, Strongly universal string hashing is fast, 2014). The low bits of such a sum know
nothing of the words' high bits, so there are two, over the words and over their upper halves. Blocks that differ in one
word never collide; those whose lowest differing bit is bit p of some word do with a probability of 2^-(64 - p) for p
below 32, of 2^-(160 - 2p) otherwise (2^-48 if only last bytes of words differ).

What makes it fast: no step needs the previous block's hash, and the hashes of a piece that was seen before come from a
memo, found by its key, with one xxh3 pass over the text. Medians of ``benchmarks/prefix.py``, 256-byte blocks, two
shared cores:

| prompt | first time | repeated | plain ``h = xxh3(block, h)`` |
|--------|------------|----------|------------------------------|
| 400 kB | 150 us     | 40 us    | 240 us                       |
| 1 kB   | 4 us       | 4 us     | 1 us                         |
"""

from functools import lru_cache
from struct import Struct

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Chain = NDArray[np.uint64]

PIECE_BYTES = 16 * 1024
_MASK = 2**64 - 1
_LENGTH = Struct("<q")
_HALF = np.uint64(32)
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio


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
        self._coefficients: dict[int, Chain] = {}
        self._multipliers: dict[int, Chain] = {}

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
        if not known and end:
            known.append(self._remember(self._first(view[: min(size, end)], keys[0], block_bytes), keys[1:2]))
        if len(known) * size < end:
            first = len(known)
            rest = self._later(view[first * size : end], np.array(keys[first:], np.uint64), block_bytes, span)
            known.append(self._remember(rest, keys[first + 1 :], 8 * span))
        return np.frombuffer(b"".join(known), np.uint64)

    def _remember(self, hashes: bytes, keys: list[int], width: int | None = None) -> bytes:
        """Enters the hashes of whole pieces, ``width`` bytes each (all of them by default), under their keys."""
        width = len(hashes) if width is None else width
        for i, key in enumerate(keys):
            self._memo.put(key, hashes[width * i : width * (i + 1)])
        return hashes

    def _first(self, text: memoryview, key: int, block_bytes: int) -> bytes:
        """The first piece, or what there is of it: most prompts are no longer, and then a call a block is less."""
        blocks = len(text) // block_bytes
        hashes = map(xxh3_64_intdigest, _layout(block_bytes, blocks).unpack(text), self._places(blocks))
        return (np.fromiter(hashes, np.uint64, blocks).cumsum() + np.uint64(key)).tobytes()

    def _later(self, text: memoryview, keys: Chain, block_bytes: int, span: int) -> bytes:
        """The pieces after the first, the last of which may not be whole; ``keys`` has the key of each."""
        words = _words(text, block_bytes)
        forms = self._forms(words.shape[1])
        hashes = words @ forms[0]
        hashes ^= hashes >> _HALF
        hashes *= _ODD
        hashes += (words >> _HALF) @ forms[1]
        hashes ^= hashes >> _HALF
        blocks, pieces = len(words), -(-len(words) // span)
        sums = np.zeros((pieces, span), np.uint64)
        sums.reshape(-1)[:blocks] = hashes
        summands, factors = self._by_place(span)
        sums += summands
        sums *= factors
        sums ^= sums >> _HALF
        np.cumsum(sums, axis=1, out=sums)
        sums += keys[:pieces, None]
        return sums.tobytes()[: 8 * blocks]

    def _forms(self, words: int) -> Chain:
        """The odd coefficients of the two forms over blocks of so many words, shape (2, words)."""
        forms = self._coefficients.get(words)
        if forms is None:
            drawn = [xxh3_64_intdigest(b"form" + _LENGTH.pack(i), self._secret) for i in range(2 * words)]
            forms = self._coefficients[words] = np.array(drawn, np.uint64).reshape(2, words) | np.uint64(1)
        return forms

    def _by_place(self, span: int) -> Chain:
        """What tells the places in a piece apart: a summand and an odd factor each, shape (2, span)."""
        found = self._multipliers.get(span)
        if found is None:
            places = np.array(self._places(span)[:span], np.uint64)
            found = self._multipliers[span] = np.stack([places, places | np.uint64(1)])
        return found

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


def _words(text: memoryview, block_bytes: int) -> Chain:
    """The blocks of a text as rows of words, filled up with zeros."""
    if block_bytes % 8 == 0:
        return np.frombuffer(text, np.uint64).reshape(-1, block_bytes // 8)
    blocks = np.frombuffer(text, np.uint8).reshape(-1, block_bytes)
    rows = np.zeros((len(blocks), -(-block_bytes // 8) * 8), np.uint8)
    rows[:, :block_bytes] = blocks
    return rows.view(np.uint64)


@lru_cache(1024)
def _layout(block_bytes: int, blocks: int) -> Struct:
    return Struct(f"{block_bytes}s" * blocks)
