"""The approximate prefix index: a tree of runs that says how much of a prompt each endpoint has cached.

Hashes are chained, so one hash names its whole prefix, and prompts part where their hashes do. The tree stores
stretches of hashes (`runs`); a look-up costs a dictionary access and one comparison of last hashes a run, and a
bisection at the one place where the prompt parts from what is known.

Recency is exact LRU by block, the tail of a prompt first, as vLLM frees: an insert stamps every run on its path with a
logical time and appends one record (stamp, last run) to the endpoint's log. A run is never older than the runs below
it, hence the oldest block is at the end of the run of the first record whose stamp is still that of its run, and
eviction goes up from there until it meets a newer stamp. Where a run was split, the upper part has no stamp until it
is touched: it is as old as the part below it.

No clock, no randomness: the same calls give the same index.
"""

import heapq
from collections import deque
from sys import maxsize
from typing import Final

import numpy as np
from numpy.typing import NDArray

from epp.prefix.holder import Holder
from epp.prefix.runs import NONE, RUN_BYTES, Runs, bits

STAMP_BYTES: Final = 120
"""Estimate of the memory of one endpoint's stamp of a run, and of the record in the log."""
HOLDER_BYTES: Final = 1_500
SLICE: Final = 32
"""Runs that are freed in one insert; what is left of them waits for the next one."""
FEW: Final = 8


class PrefixIndex:
    """Which slots hold how much of a chain.

    State: the runs, a holder for each slot that has inserted, and a queue of holders with more than they may hold, the
    forgotten among them. A slot means the same as in the pool; a holder's number is its bit in the runs, so that a slot
    can be reused at once.

    Eviction is in slices of `SLICE` runs an insert, the inserting slot's first, so that a call doesn't take long: after
    a long prompt that takes the place of hundreds of short ones, a slot holds up to an eighth too much for a few
    inserts more, anybody's; after a cut of its capacity as much as it had. Otherwise, and after `settle`, capacities
    are exact.

    Args:
        memory_bytes: budget. When it is reached the blocks go that are the oldest of all endpoints'.
        shards: of the dictionary of runs, so that none is ever resized in one long step.
    """

    def __init__(self, memory_bytes: int = 256 * 2**20, shards: int = 64) -> None:
        self._budget = memory_bytes
        self._shards = shards
        self._runs = self._new_runs()
        self._slots: dict[int, Holder] = {}
        self._capacity: dict[int, int] = {}
        self._number_of: NDArray[np.intp] = np.zeros(1, np.intp)  # slot -> number; 0 is nobody, as is the last one
        self._holders: list[Holder] = [Holder(0, 0)]  # number -> holder; 0 never holds anything
        self._free: list[int] = []  # numbers
        self._late: deque[Holder] = deque()
        self._by_age: list[tuple[int, int]] = []  # heap of (no later than its oldest stamp, number), one a holder
        self._stamp = 0
        self._stamps = 0  # entries in all holders' stamps

    def __len__(self) -> int:
        """Blocks stored, each counted once however many endpoints hold it."""
        return self._runs.blocks

    def __repr__(self) -> str:
        return (
            f"<PrefixIndex {len(self):,} blocks in {self._runs.count:,} runs, {len(self._slots)} endpoints, "
            f"{self.memory_bytes / 2**20:.1f} of {self._budget / 2**20:.0f} MiB>"
        )

    @property
    def memory_bytes(self) -> int:
        """Estimate of the memory in use, in bytes."""
        fixed = RUN_BYTES * self._runs.count + 8 * self._runs.blocks + HOLDER_BYTES * len(self._by_age)
        return fixed + STAMP_BYTES * self._stamps

    def blocks(self, slot: int) -> int:
        """Blocks that a slot holds; 0 for an unknown one."""
        holder = self._slots.get(slot)
        return holder.used if holder else 0

    def set_capacity(self, slot: int, blocks: int) -> None:
        """Says how many blocks the slot's endpoint can hold. Without it the endpoint is as large as the index."""
        self._capacity[slot] = blocks
        holder = self._slots.get(slot)
        if holder:
            holder.capacity = blocks
            self._evict(holder, SLICE)

    def match(self, chain: NDArray[np.uint64], slots: NDArray[np.integer]) -> NDArray[np.intp]:
        """Looks a prompt up; changes nothing, not even recency.

        Args:
            chain: hashes of the prompt's blocks, shape (blocks,).
            slots: shape (n,).

        Returns:
            Shape (n,): the number of blocks, contiguous from the start of the prompt, that each slot holds.
        """
        path, _, part, common = self._walk(chain.data)
        if part != NONE:
            path.append(part)
        if not path:
            return np.zeros(len(slots), np.intp)
        runs, held = self._runs, np.zeros(len(self._holders), np.intp)
        end = holders = 0
        for run in path:
            full = runs.full[run]
            if holders != full:
                self._fill(held, holders & ~full, end)
                if run in runs.partly:
                    for holder in self._partial(run):
                        held[holder.number] = end + min(holder.part, common if run == part else maxsize)
            holders = full
            end += common if run == part else runs.length[run]
        self._fill(held, holders, end)
        return held[self._number_of.take(slots, mode="clip")]

    def insert(self, slot: int, chain: NDArray[np.uint64]) -> None:
        """Says that the slot's endpoint now holds the chain, all of it just used.

        What the endpoint can't hold beside it goes, oldest and deepest blocks first; of a chain longer than its
        capacity the beginning stays.
        """
        holder = self._slots.get(slot) or self._join(slot)
        words = chain.data[: max(0, holder.capacity)]
        if len(words):
            before, had = len(holder.stamps), holder.used
            self._hold(holder, self._grow(holder, words))
            self._stamps += len(holder.stamps) - before
            self._settle(SLICE - self._evict(holder, SLICE, max(had, holder.capacity + holder.capacity // 8)))
            self._fit()

    def forget(self, slot: int) -> None:
        """The slot's endpoint has left or restarted: it holds nothing, from this moment on.

        Its memory is freed a slice at a time by later inserts.
        """
        self._capacity.pop(slot, None)
        holder = self._slots.pop(slot, None)
        if holder:
            self._number_of[slot] = 0
            holder.capacity, holder.gone = 0, True
            self._evict(holder, 0)

    def settle(self) -> None:
        """Frees at once what has been left for later."""
        self._settle(maxsize)

    # The tree

    def _walk(self, words: memoryview) -> tuple[list[int], int, int, int]:
        """Follows the chain: the runs it passes in full, their blocks, the run in which it ends or parts, how far."""
        heads, length, last = self._runs.heads, self._runs.length, self._runs.last
        shards, path, at = len(heads), list[int](), 0
        while at < len(words):
            first = words[at]
            run = heads[first % shards].get(first, NONE)
            if run == NONE:
                break
            end = at + length[run]
            if end > len(words) or words[end - 1] != last[run]:
                return path, at, run, self._runs.common(run, words[at:])
            path.append(run)
            at = end
        return path, at, NONE, 0

    def _grow(self, holder: Holder, words: memoryview) -> list[int]:
        """Makes the tree have a path for exactly this chain, and returns its runs."""
        path, at, part, common = self._walk(words)
        if part != NONE:
            path.append(self._split(part, common))
            at += common
        if at < len(words):
            hashes = words[at:].tobytes()
            end = path[-1] if path else NONE
            if end != NONE and self._runs.full[end] == holder.bit and self._private(end):
                self._runs.extend(end, hashes)
                holder.used += len(words) - at
            else:
                path.append(self._runs.create(end, hashes, 0))
        return path

    def _private(self, run: int) -> bool:
        """Whether the run, which one holder has in full, can be lengthened: nobody has a part, and it has no child."""
        return not self._runs.children[run] and run not in self._runs.partly

    def _split(self, run: int, at: int) -> int:
        runs = self._runs
        upper = runs.split(run, at)
        for holder in self._partial(run):
            if holder.part > at:
                holder.part -= at
                runs.full[upper] |= holder.bit
                continue
            runs.drop_part(run, holder.bit)
            holder.log[holder.head] = upper
            holder.stamps[upper] = holder.stamps.pop(run)
            if holder.part == at:
                holder.part = 0
                runs.full[upper] |= holder.bit
            else:
                runs.add_part(upper, holder.bit)
        return upper

    def _hold(self, holder: Holder, path: list[int]) -> None:
        """The holder has all of these runs, as of now."""
        runs, bit, stamps = self._runs, holder.bit, holder.stamps
        self._stamp = stamp = self._stamp + 1
        for run in path:
            full = runs.full[run]
            if not full & bit:
                runs.full[run] = full | bit if full else bit
                holder.used += runs.length[run]
                if run in runs.partly and runs.partly[run] & bit:
                    self._drop_part(holder, run)
            stamps[run] = stamp
        holder.record(path[-1], stamp)

    def _drop_part(self, holder: Holder, run: int) -> None:
        holder.used -= holder.part
        holder.part = 0
        self._runs.drop_part(run, holder.bit)

    # Eviction

    def _evict(self, holder: Holder, most: int, limit: int = maxsize) -> int:
        """Brings the holder down to its capacity; or only to the limit, and into the queue, if that takes more steps.

        Args:
            holder: with too much, or not.
            most: runs.
            limit: blocks.

        Returns:
            The number of runs.
        """
        count = 0
        while holder.used > holder.capacity and (count < most or holder.used > limit):
            count += self._undo(holder, holder.used - holder.capacity)
        if not holder.late and (holder.gone or holder.used > holder.capacity):
            holder.late = True
            self._late.append(holder)
        return count

    def _settle(self, most: int) -> None:
        """Works the queue off, about ``most`` runs of it."""
        while self._late and most > 0:
            holder = self._late[0]
            most -= self._evict(holder, most) + 1
            if holder.used <= holder.capacity:
                holder.late = False
                self._late.popleft()
                if holder.gone:
                    self._release(holder)

    def _undo(self, holder: Holder, excess: int) -> int:
        """Takes the oldest record back, from its run upwards, but at most ``excess`` blocks. Returns how many runs."""
        runs, stamps, head = self._runs, holder.stamps, holder.oldest()
        run, stamp, before, count = holder.log[head], holder.times[head], len(stamps), 0
        have = holder.part or runs.length[run]
        while have <= excess:
            excess -= have
            count += 1
            parent = runs.parent[run]
            self._remove(holder, run)
            run = parent
            if run == NONE or stamps.get(run, stamp) != stamp:
                holder.head += 1
                break
            have = runs.length[run]
        else:
            holder.log[head] = run
            stamps[run] = stamp
            if excess:
                self._trim(holder, run, have - excess)
        self._stamps += len(stamps) - before
        return count

    def _remove(self, holder: Holder, run: int) -> None:
        """The holder has nothing of the run any more."""
        runs, bit = self._runs, holder.bit
        holder.stamps.pop(run, None)
        full = runs.full[run]
        if not full & bit:
            self._drop_part(holder, run)
            return
        holder.used -= runs.length[run]
        full &= ~bit
        if not full and run not in runs.partly:
            runs.delete(run)
            return
        runs.full[run] = full
        if not full:
            self._shrink(run)

    def _trim(self, holder: Holder, run: int, keep: int) -> None:
        """Of the run, which is the oldest it has, the holder keeps the first blocks."""
        runs = self._runs
        holder.used -= (holder.part or runs.length[run]) - keep
        holder.part = keep
        runs.add_part(run, holder.bit)
        if not runs.full[run]:
            self._shrink(run)

    def _shrink(self, run: int) -> None:
        """Frees what nobody has of a run that nobody has in full, but somebody in part."""
        runs, partial = self._runs, self._partial(run)
        most = max(holder.part for holder in partial)
        runs.truncate(run, most)
        for holder in partial:
            if holder.part == most:
                holder.part = 0
                runs.full[run] |= holder.bit
                runs.drop_part(run, holder.bit)

    def _fit(self) -> None:
        """Keeps the memory within the budget: what is to go anyway goes first, then the oldest of all."""
        while self.memory_bytes > self._budget:
            if self._late:
                self._settle(SLICE)
            elif not (holder := self._eldest()):
                break
            else:
                self._undo(holder, holder.part or self._runs.length[holder.log[holder.oldest()]])

    def _eldest(self) -> Holder | None:
        """The holder of the oldest run of all. The heap has a bound for each, which is corrected as it comes up."""
        while self._by_age:
            bound, number = self._by_age[0]
            holder = self._holders[number]
            age = holder.times[holder.oldest()] if holder.used else self._stamp + 1
            if age == bound:
                return holder if holder.used else None
            heapq.heapreplace(self._by_age, (age, number))
        return None

    # Slots and holders

    def _join(self, slot: int) -> Holder:
        number = self._free.pop() if self._free else len(self._holders)
        holder = Holder(number, self._capacity.get(slot, maxsize))
        self._holders[number : number + 1] = [holder]
        self._slots[slot] = holder
        if slot + 1 >= len(self._number_of):
            known, self._number_of = self._number_of, np.zeros(2 * slot + 2, np.intp)
            self._number_of[: len(known)] = known
        self._number_of[slot] = number
        heapq.heappush(self._by_age, (self._stamp + 1, number))
        return holder

    def _release(self, holder: Holder) -> None:
        """Nothing has the holder's bit any more: its number is free."""
        self._free.append(holder.number)
        self._holders[holder.number] = self._holders[0]
        self._by_age = [entry for entry in self._by_age if entry[1] != holder.number]
        heapq.heapify(self._by_age)
        if not self._runs.count:
            self._runs = self._new_runs()

    def _new_runs(self) -> Runs:
        return Runs(max(0, self._budget) // RUN_BYTES + 2, self._shards)

    # Sets of holders

    def _partial(self, run: int) -> list[Holder]:
        """Those who have a part of the run."""
        return [self._holders[number] for number in bits(self._runs.partly.get(run, 0))]

    def _fill(self, held: NDArray[np.intp], holders: int, blocks: int) -> None:
        """Sets the entries of these holders, one by one or by way of a mask, whichever is faster."""
        if holders.bit_count() <= FEW:
            for number in bits(holders):
                held[number] = blocks
        elif blocks:
            raw = np.frombuffer(holders.to_bytes(len(held) // 8 + 1, "little"), np.uint8)
            held[np.unpackbits(raw, count=len(held), bitorder="little").view(np.bool_)] = blocks
