"""The block pool and the prefix cache, against a naive one that does everything block by block."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.engine.blocks import AllBlocksCleared, BlockPool, BlockRemoved, BlockStored, KvEvent, Run, parts
from epp.engine.text import Text

SIZE = 4


def chain(text: str, root: str | None = None, size: int = SIZE) -> list[int]:
    """The hashes of a text whose characters are tokens."""
    return list(Text(array("I", map(ord, text)), size, lora=root))


def hold(pool: BlockPool, text: str) -> list[Run]:
    """Allocates, computes and commits a text's full blocks."""
    hashes = chain(text)
    runs = pool.match(hashes, len(hashes))
    matched = sum(map(len, runs))
    pool.allocate(len(hashes) - matched, runs)
    pool.commit(runs, hashes, matched, len(hashes))
    return runs


def cached(pool: BlockPool, text: str) -> int:
    """How many of a text's blocks are in the prefix cache."""
    return sum(map(len, pool.match(chain(text), len(text))))


@pytest.mark.parametrize(
    ("left", "right", "shared"),
    [
        pytest.param("aaaabbbb", "aaaabbbb", 2, id="equal"),
        pytest.param("aaaabbbb", "aaaacccc", 1, id="first block equal"),
        pytest.param("xxxxbbbb", "yyyybbbb", 0, id="an equal block after another one"),
        pytest.param("aaaabbb", "aaaabbb", 1, id="a part of a block has no hash"),
        pytest.param("aaa", "aaa", 0, id="no full block"),
    ],
)
def test_a_hash_covers_its_whole_prefix(left: str, right: str, shared: int) -> None:
    pairs = list(zip(chain(left), chain(right), strict=False))
    assert sum(a == b for a, b in pairs) == shared
    assert all(a != b for a, b in pairs[shared:])


def test_an_adapter_has_chains_of_its_own() -> None:
    assert chain("aaaa") != chain("aaaa", root="adapter")


def test_a_released_chain_loses_its_tail_first() -> None:
    pool = BlockPool(4)
    pool.release(hold(pool, "aaaabbbbccccdddd"), 0)
    pool.allocate(1)
    assert cached(pool, "aaaabbbbccccdddd") == 3


def test_the_least_recently_used_chain_goes_first() -> None:
    pool = BlockPool(4)
    for text in ("aaaabbbb", "ccccdddd", "aaaabbbb"):
        pool.release(hold(pool, text), 0)
    pool.allocate(2)
    assert cached(pool, "aaaabbbb") == 2
    assert not cached(pool, "ccccdddd")


def test_held_blocks_are_never_evicted() -> None:
    pool = BlockPool(3)
    hold(pool, "aaaabbbb")
    assert pool.can_allocate(1)
    assert not pool.can_allocate(2)


def test_a_request_may_share_the_beginning_of_what_another_one_holds() -> None:
    pool = BlockPool(5)
    long, short = hold(pool, "aaaabbbbccccdddd"), hold(pool, "aaaabbbbeeee")
    assert (pool.used, len(long)) == (5, 1)
    pool.release(long, 0)
    assert (pool.used, pool.free) == (3, 2)
    pool.allocate(2)
    assert cached(pool, "aaaabbbbccccdddd") == 2
    pool.release(short, 2)
    assert cached(pool, "aaaabbbbeeee") == 3
    assert pool.free == 5


def test_matched_idle_blocks_do_not_count_as_free() -> None:
    pool = BlockPool(2)
    pool.release(hold(pool, "aaaa"), 0)
    hits = pool.match(chain("aaaa"), 1)
    assert pool.can_allocate(1, hits)
    assert not pool.can_allocate(2, hits)


def test_when_one_of_two_equal_blocks_is_evicted_the_other_still_hits() -> None:
    for first_evicted in (0, 1):
        pool = BlockPool(2)
        pool.allocate(2)
        twins: list[list[Run]] = [[], []]
        for runs in twins:
            pool.commit(runs, chain("aaaa"), 0, 1)
        pool.release(twins[first_evicted], 0)
        pool.allocate(1)
        assert pool.match(chain("aaaa"), 1) == twins[1 - first_evicted]
        pool.release(twins[1 - first_evicted], 0)
        pool.allocate(1)
        assert not pool.match(chain("aaaa"), 1)


def test_when_the_end_of_a_chain_is_evicted_its_twins_end_still_hits() -> None:
    pool = BlockPool(4)
    pool.allocate(4)
    twins: list[list[Run]] = [[], []]
    for runs in twins:
        pool.commit(runs, chain("aaaabbbb"), 0, 2)
    found: list[int] = []
    for runs in twins:
        pool.release(runs, 0)
        for _ in range(2):
            pool.allocate(1)
            found.append(cached(pool, "aaaabbbb"))
    assert found == [2, 2, 1, 0]


def test_clear_waits_until_nobody_holds_a_block() -> None:
    pool = BlockPool(3)
    held = hold(pool, "aaaa")
    assert not pool.clear()
    assert cached(pool, "aaaa")
    pool.release(held, 0)
    assert pool.clear()
    assert not cached(pool, "aaaa")


def test_blocks_without_content_are_taken_first() -> None:
    pool = BlockPool(3)
    pool.release(hold(pool, "aaaabbbb"), 0)
    for _ in range(2):
        pool.allocate(1)
        pool.release([], 1)
        assert cached(pool, "aaaabbbb") == 2


def test_events_tell_what_is_stored_after_what_and_what_is_gone() -> None:
    pool = BlockPool(3, record=True)
    pool.release(hold(pool, "aaaabbbb"), 0)
    pool.release(hold(pool, "aaaacccc"), 0)
    pool.release(hold(pool, "dddd"), 0)
    assert pool.clear()
    first, second, removed, third, cleared = pool.take_events()
    assert isinstance(first, BlockStored)
    assert isinstance(second, BlockStored)
    assert isinstance(third, BlockStored)
    a_b, a_c = chain("aaaabbbb"), chain("aaaacccc")
    assert (first.hashes, first.parent) == (a_b, None)
    assert (second.hashes, second.parent) == (a_c[1:], a_c[0])
    assert removed == BlockRemoved(a_b[1])
    assert (third.hashes, third.parent) == (chain("dddd"), None)
    assert cleared == AllBlocksCleared()
    assert pool.take_events() == []


class NaivePool:
    """The same, block by block: users and content of each, those with content in the order of their commits, and the
    idle ones in the order of their releases."""

    def __init__(self, size: int) -> None:
        self.users = [0] * size
        self.content: list[int | None] = [None] * size
        self.committed: list[int] = []
        self.idle = list(range(size))
        self.events: list[KvEvent] = []

    def match(self, contents: list[int]) -> list[int]:
        blocks: list[int] = []
        for content in contents:
            equal = [block for block in self.committed if self.content[block] == content]
            if not equal:
                break
            blocks.append(equal[0])
        return blocks

    def can_allocate(self, count: int, hits: list[int]) -> bool:
        return count <= len(set(self.idle) - set(hits))

    def allocate(self, count: int, hits: list[int]) -> list[int]:
        for block in hits:
            self._hold(block)
        taken: list[int] = []
        for _ in range(count):
            victim = next((block for block in self.idle if self.content[block] is None), self.idle[0])
            content = self.content[victim]
            if content is not None:
                self.events.append(BlockRemoved(content))
                self.committed.remove(victim)
                self.content[victim] = None
            self._hold(victim)
            taken.append(victim)
        return taken

    def _hold(self, block: int) -> None:
        if not self.users[block]:
            self.idle.remove(block)
        self.users[block] += 1

    def commit(self, block: int, content: int) -> None:
        self.content[block] = content
        self.committed.append(block)

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.idle.append(block)


@dataclass
class Held:
    """A request: what it holds of the pool, and of the naive one."""

    text: str
    committed: int
    runs: list[Run]
    blocks: list[int] = field(default_factory=list)

    @property
    def blank(self) -> int:
        return len(self.blocks) - self.committed


class PoolMachine(RuleBasedStateMachine):
    """Random requests to both pools: blocks of one token, and few different texts, so that much is shared."""

    size = 10
    texts = st.sampled_from([trunk[:length] for trunk in ("aaaaaa", "aabbbb", "aaabbb") for length in range(1, 7)])

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(self.size, record=True)
        self.naive = NaivePool(self.size)
        self.held: list[Held] = []
        self.parent_of: dict[int, int | None] = {}

    @rule(text=texts, chunk=st.integers(1, 6), at_once=st.booleans())
    def admit(self, text: str, chunk: int, at_once: bool) -> None:
        """Matches all of a text but its last block, allocates so many more, and may fill them."""
        contents = chain(text, size=1)
        self.parent_of.update(zip(contents, [None, *contents], strict=False))
        hits, blocks = self.pool.match(contents, len(text) - 1), self.naive.match(contents[:-1])
        assert [content for run in hits for content in run.contents] == contents[: len(blocks)]
        fits = self.naive.can_allocate(chunk, blocks)
        assert self.pool.can_allocate(chunk, hits) == fits
        if fits:
            self.pool.allocate(chunk, hits)
            taken = self.naive.allocate(chunk, blocks)
            self.held.append(Held(text, len(blocks), hits, blocks + taken))
            if at_once:
                self._commit(self.held[-1], chunk)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 5))
    def grow(self, data: st.DataObject, count: int) -> None:
        request = data.draw(st.sampled_from(self.held))
        assert self.pool.can_allocate(count) == self.naive.can_allocate(count, [])
        if self.pool.can_allocate(count):
            self.pool.allocate(count)
            request.blocks += self.naive.allocate(count, [])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 6))
    def compute(self, data: st.DataObject, count: int) -> None:
        self._commit(data.draw(st.sampled_from(self.held)), count)

    def _commit(self, request: Held, count: int) -> None:
        contents, start = chain(request.text, size=1), request.committed
        stop = min(start + count, len(request.blocks), len(contents))
        if stop > start:
            self.pool.commit(request.runs, contents, start, stop)
            for place in range(start, stop):
                self.naive.commit(request.blocks[place], contents[place])
            self.naive.events.append(BlockStored(contents, start, stop))
            request.committed = stop

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(request.runs, request.blank)
        self.naive.release(request.blocks)

    @rule()
    def clear(self) -> None:
        cleared = self.pool.clear()
        assert cleared == (not self.held)
        if cleared:
            self.naive = NaivePool(self.size)
            self.naive.events.append(AllBlocksCleared())

    @invariant()
    def a_request_holds_what_was_committed_for_it(self) -> None:
        for request in self.held:
            contents = [content for run in reversed([*parts(request.runs)]) for content in run.contents]
            assert contents == chain(request.text, size=1)[: request.committed]

    @invariant()
    def no_block_is_lost(self) -> None:
        held = {run for request in self.held for run in parts(request.runs)}
        assert self.pool.free == len(self.naive.idle)
        assert self.pool.used == sum(map(len, held)) + sum(request.blank for request in self.held)

    @invariant()
    def the_cache_has_what_was_committed(self) -> None:
        cached: Counter[int] = Counter()
        for copies in self.pool._cached.values():
            for run in copies:
                assert (run.start, run.contents) == (copies[0].start, copies[0].contents)
                assert len(run) == len(run.contents)
                cached.update(run.contents)
        assert cached == Counter(content for content in self.naive.content if content is not None)

    @invariant()
    def what_is_cached_has_its_parent_cached(self) -> None:
        """A hole in a chain would make its end useless, and events about it unreadable."""
        cached = {None, *self.naive.content}
        assert all(self.parent_of[content] in cached for content in cached if content is not None)

    @invariant()
    def events_are_those_of_each_block_in_order(self) -> None:
        expected, self.naive.events = self.naive.events, []
        assert [*map(told, self.pool.take_events())] == [*map(told, expected)]


def told(event: KvEvent) -> object:
    """An event so that equal ones are equal."""
    return (event.hashes, event.parent) if isinstance(event, BlockStored) else event


PoolMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestPool = PoolMachine.TestCase
