"""The KV cache's blocks: reference counts, and the prefix cache over the blocks that nobody uses any more.

A block that is released keeps its content until somebody needs the room. Released blocks wait in one queue, least
recently used first; a request's blocks enter it tail first, so that a chain loses its end before its head and what
is left of it can still be matched. Blocks without content, which nobody can match, are taken before all others.

Contents are chained, so blocks come and go in runs: the pool has an object for each run, not for each block, and does
with it at once what befalls all of its blocks alike. A run is split where requests part that had it in common.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


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


@dataclass(slots=True, eq=False)
class Run:
    """Neighbouring blocks with content, at places ``start`` to ``stop`` of their requests, which have the same users.

    Attributes:
        contents: one a block.
        users: requests that hold it.
        released: without users: the release that it waits under.
        before: what was last split off its beginning; whoever held both then has only this one in their list.
    """

    start: int
    stop: int
    contents: list[int]
    users: int = 1
    released: int = 0
    before: "Run | None" = None

    def __len__(self) -> int:
        return self.stop - self.start

    def extend(self, contents: Sequence[int], stop: int) -> None:
        """Adds the blocks after it, up to that place."""
        self.contents += contents[self.stop : stop]
        self.stop = stop

    def shorten(self, stop: int) -> None:
        """Drops the blocks from that place on."""
        del self.contents[stop - self.start :]
        self.stop = stop

    def split(self, place: int) -> "Run":
        """Leaves only the blocks from that place on, and returns a run of the others."""
        length = place - self.start
        head = Run(self.start, place, self.contents[:length], self.users, self.released, self.before)
        del self.contents[:length]
        self.start, self.before = place, head
        return head


class BlockPool:
    """The blocks of one engine.

    A request holds a list of runs, which ``match`` begins and ``commit`` goes on with, and so many blocks without
    content. Two runs have either all contents in common or none.

    State: ``_blank`` (number of blocks without user and content), ``_unused`` (number of those with content and without
    a user), ``_idle`` (their runs by release, next victim last of the first), ``_releases`` (so many so far),
    ``_cached`` (first content of a run to all runs with equal contents, the one that is matched first), ``_events``.
    """

    def __init__(self, size: int, *, record: bool = False) -> None:
        """All ``size`` blocks are idle and empty; ``record`` keeps events for ``take_events``."""
        self.size = size
        self._record = record
        self._blank = size
        self._unused = 0
        self._idle: OrderedDict[int, list[Run]] = OrderedDict()
        self._releases = 0
        self._cached: dict[int, list[Run]] = {}
        self._events: list[KvEvent] = []

    def __repr__(self) -> str:
        cached = sum(len(copies[0]) for copies in self._cached.values())
        return f"<BlockPool {self.used} of {self.size} in use, {cached} cached>"

    @property
    def free(self) -> int:
        """The number of blocks without a user, cached or not."""
        return self._blank + self._unused

    @property
    def used(self) -> int:
        """The number of blocks that a request holds."""
        return self.size - self.free

    @property
    def usage(self) -> float:
        """The share of blocks that a request holds, 0 to 1; cached blocks without a user count as free."""
        return self.used / self.size

    def match(self, contents: Sequence[int], limit: int) -> list[Run]:
        """The cached runs of the longest prefix of ``contents``, at most ``limit`` blocks; they are not yet held."""
        limit = min(limit, len(contents))
        place, hits = 0, list[Run]()
        while place < limit and (copies := self._agreeing(contents, place, limit)):
            hits.append(copies[0])
            place = copies[0].stop
        return hits

    def can_allocate(self, count: int, hits: Iterable[Run] = ()) -> bool:
        """Whether ``count`` blocks can be had besides the matched ones, which may themselves be idle."""
        return count <= self.free - sum([len(run) for run in hits if not run.users])

    def allocate(self, count: int, hits: Iterable[Run] = ()) -> None:
        """Takes hold of the matched runs and of ``count`` blocks more, evicting what was used longest ago.

        ``can_allocate`` must have said yes.
        """
        for run in hits:
            if not run.users:
                self._leave_queue(run)
            run.users += 1
        evicted = max(count - self._blank, 0)
        self._blank -= count - evicted
        if evicted:
            self._evict(evicted)

    def commit(self, runs: list[Run], contents: Sequence[int], start: int, stop: int) -> None:
        """Offers held blocks to later requests: those at ``start`` to ``stop`` of a request's blocks and contents.

        Two blocks may have the same content. ``runs`` are the request's up to ``start``, and afterwards up to ``stop``.
        """
        if self._record:
            self._events.append(BlockStored(contents, start, stop))
        while start < stop and (copies := self._agreeing(contents, start, stop)):
            start = copies[0].stop
            copies.append(Run(copies[0].start, start, copies[0].contents.copy()))
            runs.append(copies[-1])
        if start == stop:
            return
        if runs and runs[-1].users == 1 and len(self._cached[runs[-1].contents[0]]) == 1:  # it is nobody else's
            runs[-1].extend(contents, stop)
        else:
            runs.append(Run(start, stop, list(contents[start:stop])))
            self._cached[contents[start]] = [runs[-1]]

    def release(self, runs: Sequence[Run], blank: int) -> None:
        """Lets go of all that a request holds: its runs, and so many blocks without content."""
        self._blank += blank
        self._releases += 1
        idle: list[Run] = []
        for run in parts(runs):
            run.users -= 1
            if not run.users:
                run.released = self._releases
                self._unused += len(run)
                idle.append(run)
        if idle:
            idle.reverse()
            self._idle[self._releases] = idle

    def clear(self) -> bool:
        """Forgets all content, as after a change of weights; False, and nothing done, while a request holds a block."""
        if self.used:
            return False
        self._blank, self._unused = self.size, 0
        self._cached.clear()
        self._idle.clear()
        if self._record:
            self._events.append(AllBlocksCleared())
        return True

    def take_events(self) -> list[KvEvent]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _agreeing(self, contents: Sequence[int], start: int, limit: int) -> list[Run] | None:
        """The equal runs with these contents from ``start`` on, split where they part or at ``limit``; None if none."""
        copies = self._cached.get(contents[start])
        if copies is None:
            return None
        own, stop = copies[0].contents, min(copies[0].stop, limit)
        if contents[stop - 1] != own[stop - 1 - start]:  # each content covers all before it: they part but once
            stop = bisect_left(range(stop), True, start, key=lambda place: contents[place] != own[place - start])
        return self._split(copies, stop) if stop < copies[0].stop else copies

    def _split(self, copies: list[Run], place: int) -> list[Run]:
        """Splits equal runs; the old ones keep what comes after, the new ones are returned."""
        heads = [run.split(place) for run in copies]
        for run, head in zip(copies, heads, strict=True):
            if not run.users:
                queue = self._idle[run.released]
                queue.insert(queue.index(run), head)
        self._cached[heads[0].contents[0]] = heads
        self._cached[copies[0].contents[0]] = copies
        return heads

    def _leave_queue(self, run: Run) -> None:
        self._unused -= len(run)
        queue = self._idle[run.released]
        queue.remove(run)
        if not queue:
            del self._idle[run.released]

    def _evict(self, count: int) -> None:
        """Takes blocks that were used longest ago from the prefix cache."""
        while count:
            run = self._idle[next(iter(self._idle))][-1]
            copies = self._cached[run.contents[0]]
            gone = min(count, len(run))
            count -= gone
            if self._record:
                self._events += map(BlockRemoved, reversed(run.contents[-gone:]))
            if gone < len(run) and len(copies) > 1:
                self._split(copies, run.stop - gone)
            if gone < len(run):
                run.shorten(run.stop - gone)
                self._unused -= gone
            else:
                self._leave_queue(run)
                copies.remove(run)
                if not copies:
                    del self._cached[run.contents[0]]


def parts(runs: Sequence[Run]) -> Iterator[Run]:
    """All runs that a request holds, last first: those in its list, and what has been split off them since."""
    for index in range(len(runs) - 1, -1, -1):
        run, start = runs[index], runs[index - 1].stop if index else 0
        yield run
        while run.start > start and run.before is not None:
            run = run.before
            yield run
