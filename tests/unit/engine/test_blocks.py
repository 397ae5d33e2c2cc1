"""The block pool and the prefix cache, against a naive model that knows only text."""

from array import array
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.engine.blocks import AllBlocksCleared, BlockPool, BlockRemoved, BlockStored
from epp.engine.text import Text

SIZE = 4


def chain(text: str, root: str | None = None) -> list[int]:
    """The hashes of a text whose characters are tokens."""
    return list(Text(array("I", map(ord, text)), SIZE, lora=root))


def hold(pool: BlockPool, text: str) -> list[int]:
    """Allocates, computes and commits a text's full blocks."""
    hashes = chain(text)
    hits = pool.match(hashes, len(hashes))
    blocks = hits + pool.allocate(len(hashes) - len(hits), hits)
    pool.commit(blocks, hashes, len(hits), len(hashes))
    return blocks


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
    pool.release(hold(pool, "aaaabbbbccccdddd"))
    pool.allocate(1)
    assert len(pool.match(chain("aaaabbbbccccdddd"), 4)) == 3


def test_the_least_recently_used_chain_goes_first() -> None:
    pool = BlockPool(4)
    for text in ("aaaabbbb", "ccccdddd", "aaaabbbb"):
        pool.release(hold(pool, text))
    pool.allocate(2)
    assert len(pool.match(chain("aaaabbbb"), 2)) == 2
    assert not pool.match(chain("ccccdddd"), 2)


def test_held_blocks_are_never_evicted() -> None:
    pool = BlockPool(3)
    hold(pool, "aaaabbbb")
    assert pool.can_allocate(1)
    assert not pool.can_allocate(2)


def test_matched_idle_blocks_do_not_count_as_free() -> None:
    pool = BlockPool(2)
    pool.release(hold(pool, "aaaa"))
    hits = pool.match(chain("aaaa"), 1)
    assert pool.can_allocate(1, hits)
    assert not pool.can_allocate(2, hits)


def test_when_one_of_two_equal_blocks_is_evicted_the_other_still_hits() -> None:
    for first_evicted in (0, 1):
        pool = BlockPool(2)
        twins = pool.allocate(2)
        for block in twins:
            pool.commit([block], chain("aaaa"), 0, 1)
        pool.release([twins[first_evicted]])
        pool.allocate(1)
        assert pool.match(chain("aaaa"), 1) == [twins[1 - first_evicted]]
        pool.release([twins[1 - first_evicted]])
        pool.allocate(1)
        assert not pool.match(chain("aaaa"), 1)


def test_clear_waits_until_nobody_holds_a_block() -> None:
    pool = BlockPool(3)
    held = hold(pool, "aaaa")
    assert not pool.clear()
    assert pool.match(chain("aaaa"), 1)
    pool.release(held)
    assert pool.clear()
    assert not pool.match(chain("aaaa"), 1)


def test_blocks_without_content_are_taken_first() -> None:
    pool = BlockPool(3)
    pool.release(hold(pool, "aaaabbbb"))
    pool.release(pool.allocate(1))
    assert len(pool.match(chain("aaaabbbb"), 2)) == 2
    pool.release(pool.allocate(1))
    assert len(pool.match(chain("aaaabbbb"), 2)) == 2


def test_events_tell_what_is_stored_after_what_and_what_is_gone() -> None:
    pool = BlockPool(3, record=True)
    pool.release(hold(pool, "aaaabbbb"))
    pool.release(hold(pool, "aaaacccc"))
    pool.release(hold(pool, "dddd"))
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


class PoolMachine(RuleBasedStateMachine):
    """Random requests against the pool; the naive model keeps, for each block, the text it was committed for."""

    texts = st.text("ab", min_size=1, max_size=24)

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(10, record=True)
        self.told: Counter[int] = Counter()
        self.held: list[tuple[str, list[int]]] = []
        self.text_of: dict[int, str] = {}

    @property
    def users(self) -> Counter[int]:
        return Counter(block for _, blocks in self.held for block in blocks)

    @rule(text=texts)
    def admit(self, text: str) -> None:
        hashes = chain(text)
        hits = self.pool.match(hashes, len(hashes))
        cached = set(self.text_of.values())
        naive = next((i for i in range(len(hashes)) if text[: (i + 1) * SIZE] not in cached), len(hashes))
        assert [self.text_of[block] for block in hits] == [text[: (i + 1) * SIZE] for i in range(naive)]
        needed = -(-len(text) // SIZE) - len(hits)
        fits = needed <= self.pool.size - len(self.users.keys() | set(hits))
        assert self.pool.can_allocate(needed, hits) == fits
        if fits:
            fresh = self.pool.allocate(needed, hits)
            for block in fresh:
                self.text_of.pop(block, None)
            self.held.append((text, hits + fresh))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        text, blocks = data.draw(st.sampled_from(self.held))
        hashes = chain(text)
        for index in range(len(hashes)):
            if blocks[index] not in self.text_of:
                self.pool.commit(blocks, hashes, index, index + 1)
                self.text_of[blocks[index]] = text[: (index + 1) * SIZE]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        _, blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(blocks)

    @rule()
    def clear(self) -> None:
        if self.pool.clear():
            assert not self.users
            self.text_of = {}
        else:
            assert self.users

    @invariant()
    def references_are_users(self) -> None:
        assert self.pool._references == [self.users[block] for block in range(self.pool.size)]

    @invariant()
    def no_block_is_lost_or_both_idle_and_held(self) -> None:
        held, pool = set(self.users), self.pool
        free = [*pool._empty, *range(pool._fresh, pool.size), *pool._idle]
        assert held.isdisjoint(free)
        assert sorted([*held, *free]) == list(range(pool.size))
        assert (pool.used, pool.free) == (len(held), len(free))

    @invariant()
    def the_cache_has_what_was_committed(self) -> None:
        entries = [*self.pool._cached.values(), *(block for twins in self.pool._twins.values() for block in twins)]
        assert sorted(entries) == sorted(self.text_of)
        assert set(self.pool._cached) == {chain(text)[-1] for text in self.text_of.values()}

    @invariant()
    def what_is_cached_has_its_parent_cached(self) -> None:
        """A hole in a chain would make its end useless, and events about it unreadable."""
        cached = set(self.text_of.values())
        assert all(len(text) == SIZE or text[:-SIZE] in cached for text in cached)

    @invariant()
    def events_tell_what_is_cached(self) -> None:
        """Stores less removals, block by block, are the cache: equal contents in two blocks count twice."""
        for event in self.pool.take_events():
            if isinstance(event, BlockStored):
                assert event.parent is None or self.told[event.parent]
                self.told.update(event.hashes)
            elif isinstance(event, BlockRemoved):
                self.told[event.content] -= 1
            else:
                self.told.clear()
        assert +self.told == Counter(chain(text)[-1] for text in self.text_of.values())


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase
