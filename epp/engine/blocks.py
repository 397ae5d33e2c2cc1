"""The KV cache's blocks: reference counts, and the prefix cache over the blocks that nobody uses any more.

A block that is released keeps its content until somebody needs the room. Released blocks wait in one queue, least
recently used first; a request's blocks enter it tail first, so that a chain loses its end before its head and what
is left of it can still be matched. Blocks without content, which nobody can match, are taken before all others.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True, slots=True, eq=False)
class BlockStored:
    """Blocks ``start`` to ``stop`` of a request's contents have entered the prefix cache."""

    contents: Sequence[int]
    start: int
    stop: int

    @property
    def hashes(self) -> list[int]:
        """What was stored, in order."""
        return [self.contents[index] for index in range(self.start, self.stop)]

    @property
    def parent(self) -> int | None:
        """The content before the first of them; None at the start of a prompt."""
        return self.contents[self.start - 1] if self.start else None


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """A block with this content was evicted. Another one may still have the same content."""

    content: int


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """The prefix cache is empty."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class BlockPool:
    """The blocks of one engine, by number from 0.

    State: ``_references`` (users a block), ``_hashes`` (content a block, once computed), ``_cached`` (content to a
    block that has it), ``_twins`` (further blocks with the same content), ``_events``; and the blocks without a user,
    in the order in which they are taken: ``_empty`` (without content, from its end), those from ``_fresh`` on (never
    used), ``_idle`` (those with content, and it; next victim first).
    """

    def __init__(self, size: int, *, record: bool = False) -> None:
        """All ``size`` blocks are idle and empty; ``record`` keeps events for ``take_events``."""
        self.size = size
        self._record = record
        self._references = [0] * size
        self._hashes: list[int | None] = [None] * size
        self._cached: dict[int, int] = {}
        self._twins: dict[int, list[int]] = {}
        self._empty: list[int] = []
        self._fresh = 0
        self._idle: OrderedDict[int, int] = OrderedDict()
        self._events: list[KvEvent] = []

    def __repr__(self) -> str:
        return f"<BlockPool {self.used} of {self.size} in use, {len(self._cached)} cached>"

    @property
    def free(self) -> int:
        """The number of blocks without a user, cached or not."""
        return len(self._empty) + self.size - self._fresh + len(self._idle)

    @property
    def used(self) -> int:
        """The number of blocks that a request holds."""
        return self.size - self.free

    @property
    def usage(self) -> float:
        """The share of blocks that a request holds, 0 to 1; cached blocks without a user count as free."""
        return self.used / self.size

    def match(self, contents: Sequence[int], limit: int) -> list[int]:
        """The cached blocks of the longest prefix of ``contents``, at most ``limit``; they are not yet held."""
        found = map(self._cached.get, islice(contents, limit))
        return list(iter(found.__next__, None))

    def can_allocate(self, count: int, hits: Iterable[int] = ()) -> bool:
        """Whether ``count`` blocks can be had besides the matched ones, which may themselves be idle."""
        return count <= self.free - [self._references[block] for block in hits].count(0)

    def allocate(self, count: int, hits: Iterable[int] = ()) -> list[int]:
        """Takes hold of the matched blocks and of ``count`` more, evicting what was used longest ago.

        Returns:
            The new blocks; ``can_allocate`` must have said yes.
        """
        references, idle = self._references, self._idle
        for block in hits:
            if not references[block]:
                del idle[block]
            references[block] += 1
        empty = min(count, len(self._empty))
        taken = [self._empty.pop() for _ in range(empty)] if empty else []
        if len(taken) < count and self._fresh < self.size:
            fresh = min(self._fresh + count - len(taken), self.size)
            taken += range(self._fresh, fresh)
            self._fresh = fresh
        if len(taken) < count:
            taken += self._evict(count - len(taken))
        for block in taken:
            references[block] = 1
        return taken

    def _evict(self, count: int) -> list[int]:
        """Takes blocks that were used longest ago from the prefix cache."""
        hashes, cached, twins, pop = self._hashes, self._cached, self._twins, self._idle.popitem
        evicted: list[int] = []
        for _ in range(count):
            block, content = pop(last=False)
            evicted.append(block)
            hashes[block] = None
            if content in twins:
                self._forget(block, content)
            else:
                del cached[content]
            if self._record:
                self._events.append(BlockRemoved(content))
        return evicted

    def commit(self, blocks: Sequence[int], contents: Sequence[int], start: int, stop: int) -> None:
        """Offers held blocks to later requests: those at ``start`` to ``stop`` of a request's blocks and contents.

        Two blocks may have the same content.
        """
        hashes, enter = self._hashes, self._cached.setdefault
        for index in range(start, stop):
            block, content = blocks[index], contents[index]
            hashes[block] = content
            if enter(content, block) != block:
                self._twins.setdefault(content, []).append(block)
        if self._record:
            self._events.append(BlockStored(contents, start, stop))

    def _forget(self, block: int, content: int) -> None:
        """One of several blocks with the same content no longer has it."""
        twins = self._twins[content]
        if self._cached[content] == block:
            self._cached[content] = twins.pop(0)
        else:
            twins.remove(block)
        if not twins:
            del self._twins[content]

    def release(self, blocks: Sequence[int]) -> None:
        """Lets go of a request's blocks, given in the order of its tokens."""
        references, hashes, idle = self._references, self._hashes, self._idle
        for block in reversed(blocks):
            references[block] = users = references[block] - 1
            if not users:
                content = hashes[block]
                if content is None:
                    self._empty.append(block)
                else:
                    idle[block] = content

    def clear(self) -> bool:
        """Forgets all content, as after a change of weights; False, and nothing done, while a request holds a block."""
        if self.used:
            return False
        self._hashes = [None] * self.size
        self._cached.clear()
        self._twins.clear()
        self._empty.clear()
        self._idle.clear()
        self._fresh = 0
        if self._record:
            self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[KvEvent]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events
