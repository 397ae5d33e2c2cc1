"""The KV cache's blocks: reference counts, and the prefix cache over the blocks that nobody uses any more.

A block that is released keeps its content until somebody needs the room. Released blocks wait in one queue, least
recently used first; a request's blocks enter it tail first, so that a chain loses its end before its head and what
is left of it can still be matched.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import xxhash


def root_hash(*names: str | None) -> int:
    """The parent of a chain's first block; a LoRA adapter or a cache salt gives a chain of its own."""
    return xxhash.xxh3_64_intdigest("\0".join(name or "" for name in names).encode())


def extend_chain(chain: list[int], tokens: "array[int]", block_size: int, root: int) -> None:
    """Appends to ``chain`` the hashes of the full blocks of ``tokens`` that it lacks; each covers its whole prefix."""
    parent = chain[-1] if chain else root
    for start in range(len(chain) * block_size, len(tokens) - block_size + 1, block_size):
        parent = xxhash.xxh3_64_intdigest(tokens[start : start + block_size], seed=parent)
        chain.append(parent)


class BlockPool:
    """The blocks of one engine, by number from 0.

    State: ``_references`` (users a block), ``_hashes`` (content a block, once computed), ``_cached`` (content to a
    block that has it), ``_twins`` (further blocks with the same content) and ``_idle`` (blocks without a user, next
    victim first).
    """

    def __init__(self, size: int) -> None:
        """All ``size`` blocks are idle and empty."""
        self.size = size
        self._references = [0] * size
        self._hashes: list[int | None] = [None] * size
        self._cached: dict[int, int] = {}
        self._twins: dict[int, list[int]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict.fromkeys(range(size))

    def __repr__(self) -> str:
        return f"<BlockPool {self.used} of {self.size} in use, {len(self._cached)} cached>"

    @property
    def used(self) -> int:
        """The number of blocks that a request holds."""
        return self.size - len(self._idle)

    @property
    def usage(self) -> float:
        """The share of blocks that a request holds, 0 to 1; cached blocks without a user count as free."""
        return self.used / self.size

    def match(self, chain: Sequence[int], limit: int) -> list[int]:
        """The cached blocks of the longest prefix of ``chain``, at most ``limit``; they are not yet held."""
        blocks = []
        for content in chain[:limit]:
            block = self._cached.get(content)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def can_allocate(self, count: int, hits: Iterable[int] = ()) -> bool:
        """Whether ``count`` blocks can be had besides the matched ones, which may themselves be idle."""
        return count <= len(self._idle) - sum(not self._references[block] for block in hits)

    def allocate(self, count: int, hits: Iterable[int] = ()) -> list[int]:
        """Takes hold of the matched blocks and of ``count`` more, evicting what was used longest ago.

        Returns:
            The new blocks; ``can_allocate`` must have said yes.
        """
        for block in hits:
            if not self._references[block]:
                del self._idle[block]
            self._references[block] += 1
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        self._references[block] = 1
        return block

    def commit(self, block: int, content: int) -> None:
        """Offers a held block, now computed, to later requests. Two blocks may have the same content."""
        self._hashes[block] = content
        if self._cached.setdefault(content, block) != block:
            self._twins.setdefault(content, []).append(block)

    def _forget(self, block: int) -> None:
        content = self._hashes[block]
        if content is None:
            return
        self._hashes[block] = None
        twins = self._twins.get(content)
        if twins is None:
            del self._cached[content]
            return
        if self._cached[content] == block:
            self._cached[content] = twins.pop(0)
        else:
            twins.remove(block)
        if not twins:
            del self._twins[content]

    def release(self, blocks: Sequence[int]) -> None:
        """Lets go of a request's blocks, given in the order of its tokens."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._idle[block] = None

    def clear(self) -> None:
        """Forgets the content of the blocks without a user, as after a change of weights."""
        for block in self._idle:
            self._forget(block)
