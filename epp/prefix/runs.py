"""The store of runs: stretches of chain hashes that are shared or parted as a whole, in a tree.

A run is a small integer, an index into columns. Neither the columns (buffers and arrays of objects), nor the
dictionaries of integers are traversed by the garbage collector, so that a full collection costs the same with a
million runs as with none. The columns are reserved for the largest number of runs at the start (the pages are touched
only when used) and the dictionary is sharded: nothing here ever grows in one long step.

Holders are bits: ``full[run]`` has the bit of each holder that has all of the run, ``partly[run]`` of those that
have only its beginning. Whoever has any of a run has all of its parent.
"""

from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np

NONE: Final = -1
RUN_BYTES: Final = 250
"""Estimate of the memory of a run beside its hashes: columns, bytes object, entry of ``heads``, bitset."""


class Runs:
    """Runs with their hashes, parents and holders. See the module."""

    def __init__(self, most: int, shards: int) -> None:
        self.most: Final = most
        self.heads: Final[list[dict[int, int]]] = [{} for _ in range(shards)]  # first hash -> run, by hash % shards
        self.parent: Final = np.zeros(most, np.int32).data
        self.length: Final = np.zeros(most, np.int32).data  # blocks
        self.children: Final = np.zeros(most, np.int32).data
        self.first: Final = np.zeros(most, np.uint64).data  # the first hash, the run's key in heads
        self.last: Final = np.zeros(most, np.uint64).data  # the last hash, which names the run and all before
        self.hashes: Final = np.empty(most, object)  # bytes, 8 a block
        self.full: Final = np.empty(most, object)  # int
        self.partly: Final[dict[int, int]] = {}
        self.count = 0
        self.blocks = 0
        self._free: Final = array("i")
        self._used = 0  # runs ever made: the rows from here on are untouched

    def columns(self) -> tuple[memoryview, ...]:
        """The numbers that are kept of each run."""
        return self.parent, self.length, self.children, self.first, self.last

    def create(self, parent: int, hashes: bytes, holders: int) -> int:
        """Adds a run at the end of ``parent`` (or `NONE`)."""
        if self._free:
            run = self._free.pop()
        else:
            run, self._used = self._used, self._used + 1
        words = memoryview(hashes).cast("Q")
        first = words[0]
        self.parent[run], self.length[run], self.children[run] = parent, len(words), 0
        self.first[run], self.last[run] = first, words[-1]
        self.hashes[run], self.full[run] = hashes, holders
        self.heads[first % len(self.heads)][first] = run
        if parent != NONE:
            self.children[parent] += 1
        self.count += 1
        self.blocks += len(words)
        return run

    def extend(self, run: int, hashes: bytes) -> None:
        """Lengthens a run; right only where nobody would then have a part of it, and it has no children."""
        self.hashes[run] += hashes
        self.last[run] = memoryview(hashes).cast("Q")[-1]
        self.length[run] += len(hashes) // 8
        self.blocks += len(hashes) // 8

    def truncate(self, run: int, length: int) -> None:
        """Shortens a run that nobody has in full, so that it has no children."""
        self.blocks -= self.length[run] - length
        self.hashes[run] = kept = self.hashes[run][: 8 * length]
        self.last[run] = memoryview(kept).cast("Q")[-1]
        self.length[run] = length

    def split(self, run: int, at: int) -> int:
        """Parts a run: a new run, its parent, takes the first ``at`` blocks. Returns the new one.

        Whoever has all of the run has all of both; the caller sorts out who has a part.
        """
        hashes, grandparent = self.hashes[run], self.parent[run]
        upper = self.create(grandparent, hashes[: 8 * at], self.full[run])
        if grandparent != NONE:
            self.children[grandparent] -= 1
        self.parent[run], self.children[upper] = upper, 1
        self.hashes[run] = rest = hashes[8 * at :]
        self.first[run] = first = memoryview(rest).cast("Q")[0]
        self.heads[first % len(self.heads)][first] = run
        self.length[run] -= at
        self.blocks -= at
        return upper

    def delete(self, run: int) -> None:
        """Removes a run that nobody has, so that it has no children."""
        first, parent = self.first[run], self.parent[run]
        del self.heads[first % len(self.heads)][first]
        if parent != NONE:
            self.children[parent] -= 1
        self.count -= 1
        self.blocks -= self.length[run]
        self.hashes[run] = self.full[run] = None
        self._free.append(run)

    def add_part(self, run: int, bit: int) -> None:
        """The holder has only a part of the run now."""
        self.full[run] &= ~bit
        self.partly[run] = self.partly.get(run, 0) | bit

    def drop_part(self, run: int, bit: int) -> None:
        """The holder has no longer a part of the run, but all of it or nothing."""
        rest = self.partly[run] & ~bit
        if rest:
            self.partly[run] = rest
        else:
            del self.partly[run]

    def common(self, run: int, words: memoryview) -> int:
        """How many of these hashes (at least one) begin the run. Equal hashes have equal hashes before them."""
        own = memoryview(self.hashes[run]).cast("Q")
        low, high = 1, min(len(own), len(words))
        while low < high:
            middle = (low + high + 1) // 2
            if own[middle - 1] == words[middle - 1]:
                low = middle
            else:
                high = middle - 1
        return low


def bits(mask: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
