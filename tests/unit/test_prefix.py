"""The hashes of a prompt, and the index from hashes to endpoints, against a naive model of both."""

import gc
import random
import tracemalloc
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.prefix import Chain, Hasher, PrefixIndex
from epp.prefix.runs import NONE, bits
from epp.prefix.tree import SLICE

# Hashing

BLOCK = 4096  # four blocks make a piece of the memo


def text(blocks: list[int], rest: int = 0) -> bytes:
    return b"".join(bytes([block]) * BLOCK for block in blocks) + b"?" * rest


def common(a: Chain | list[int], b: Chain | list[int]) -> int:
    """The length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


prompts = st.lists(st.integers(0, 2), max_size=14)


@given(a=prompts, b=prompts, rest=st.integers(0, BLOCK - 1), memo_bytes=st.sampled_from([0, 10_000, 2**20]))
def test_two_prompts_share_as_many_hashes_as_whole_blocks(a, b, rest, memo_bytes):
    """Hash i names the whole prefix up to block i, through pieces, the memo and a trailing part of a block."""
    hasher = Hasher(secret=1, memo_bytes=memo_bytes)
    first, second = hasher.chain(7, text(a, rest), BLOCK), hasher.chain(7, text(b), BLOCK)
    assert (len(first), len(second)) == (len(a), len(b))
    assert common(first, second) == common(a, b)
    assert len({*first.tolist(), *second.tolist()}) == len(a) + len(b) - common(a, b)


@given(blocks=prompts)
def test_the_memo_never_changes_a_hash(blocks):
    """A repeated prompt has the hashes that it had the first time, and the ones that a hasher without memo gives."""
    hasher = Hasher()
    first = hasher.chain(3, text(blocks), BLOCK)
    assert np.array_equal(first, hasher.chain(3, memoryview(text(blocks)), BLOCK))
    assert np.array_equal(first, Hasher(memo_bytes=0).chain(3, text(blocks), BLOCK))


@pytest.mark.parametrize(
    ("length", "block_bytes", "blocks"),
    [(0, 64, 0), (63, 64, 0), (64, 64, 1), (16_384, 64, 256), (16_385, 100, 163), (50_000, 20_000, 2)],
)
def test_only_full_blocks_are_hashed(length, block_bytes, blocks):
    """Any length and any block length, longer than a piece or not dividing it."""
    chain = Hasher().chain(1, bytes(length), block_bytes)
    assert (chain.shape, chain.dtype) == ((blocks,), np.uint64)
    assert not chain.flags.writeable


def test_prompts_of_different_origin_share_nothing():
    """Seed, secret and block length each part the hashes."""
    prompt = bytes(64 * 1024)
    variants = [(0, 1, 256), (0, 2, 256), (5, 1, 256), (0, 1, 512)]
    chains = [Hasher(secret).chain(seed, prompt, size) for secret, seed, size in variants]
    assert len({h for chain in chains for h in chain.tolist()}) == 256 * 3 + 128


def test_seeds_tell_fields_apart():
    """Neither joined nor shifted nor missing fields are confused, and the secret changes all of them."""
    fields = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("abc", ""),
        ("abc", None),
        (None, "abc"),
        ("", "abc"),
        (),
        ("\udc80",),
    ]
    seeds = {Hasher(secret).seed(*names) for names in fields for secret in (0, 1)}
    assert len(seeds) == 2 * len(fields)


def test_the_order_of_blocks_and_of_pieces_matters():
    """Sums of block hashes could commute; these don't."""
    a, b, c, d = [0] * 4, [1] * 4, [0, 1, 2, 2], [1, 0, 2, 2]
    hasher = Hasher()
    last = {hasher.chain(0, text(blocks), BLOCK)[-1] for blocks in (a + b, b + a, c, d, a + c, a + d)}
    assert len(last) == 6


@pytest.mark.parametrize("before", [0, 16 * 1024])
def test_every_bit_of_a_block_matters_and_hashes_spread(before: int):
    """All one-bit changes of a block, in the first piece or behind it, hash differently, evenly over the 64 shards."""
    block = bytearray(b"." * before + b"The quick brown fox jumps over. " * 8)
    hashes = []
    for bit in range(8 * 256):
        block[before + bit // 8] ^= 1 << bit % 8
        hashes.append(int(Hasher(9).chain(1, bytes(block), 256)[-1]))
        block[before + bit // 8] ^= 1 << bit % 8
    assert len(set(hashes)) == 2048
    shards = np.bincount(np.array(hashes, np.uint64) % 64, minlength=64)
    assert ((shards - 32.0) ** 2 / 32).sum() < 110  # chi-square with 63 degrees of freedom, P = 0.0002


def test_changes_of_the_words_last_bytes_do_not_cancel_out():
    """A sum modulo 2^64 knows only eight bits of such a change; here two words change, in every pair of places."""
    hasher, last = Hasher(7, memo_bytes=0), set()
    for one, other in combinations(range(7, 256, 8), 2):
        block = bytearray(b"a" * (16 * 1024 + 256))
        for place in (one, other):
            block[16 * 1024 + place] = ord("b")
        last.add(int(hasher.chain(1, bytes(block), 256)[-1]))
    assert len(last) == 32 * 31 // 2


def test_the_memo_keeps_what_is_in_use():
    """Pieces that come up again and again outlast any number of others."""
    memo = Hasher(memo_bytes=100_000)._memo
    memo.put(0, b"hot")
    for key in range(1, 5_000):
        memo.put(key, bytes(64))
        assert memo.leading([0, key, -1, 0]) == [b"hot", bytes(64)]
    assert 100 < len(memo) < 500


def test_whole_pieces_are_remembered():
    """Here two; the trailing block is hashed each time."""
    hasher = Hasher()
    hasher.chain(0, text([0, 1, 2, 3, 4, 5, 6, 7, 8]), BLOCK)
    assert len(hasher._memo) == 2


def test_the_memo_is_bounded():
    """Hashing 20 MB under a memo of 100 kB leaves about that much behind."""
    hasher, rng = Hasher(memo_bytes=100_000), random.Random(0)
    hasher.chain(0, rng.randbytes(100_000), 256)
    tracemalloc.start()
    for _ in range(200):
        hasher.chain(0, rng.randbytes(100_000), 256)
    assert tracemalloc.get_traced_memory()[0] < 130_000
    tracemalloc.stop()


# Index


@dataclass
class Naive:
    """What the index does, without a tree: for each slot a dictionary from hash to (time, -depth)."""

    held: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    capacity: dict[int, int] = field(default_factory=dict)
    time: int = 0

    def insert(self, slot: int, chain: Chain) -> None:
        self.time += 1
        self.held.setdefault(slot, {}).update((h, (self.time, -i)) for i, h in enumerate(chain.tolist()))
        self._evict(slot)

    def set_capacity(self, slot: int, blocks: int) -> None:
        self.capacity[slot] = blocks
        self._evict(slot)

    def forget(self, slot: int) -> None:
        self.held.pop(slot, None)
        self.capacity.pop(slot, None)

    def match(self, chain: Chain, slots: list[int]) -> list[int]:
        return [common([h in self.held.get(slot, ()) for h in chain.tolist()], [True] * len(chain)) for slot in slots]

    def _evict(self, slot: int) -> None:
        held = self.held.get(slot, {})
        excess = max(0, len(held) - self.capacity.get(slot, 10**9))
        for h in sorted(held, key=held.__getitem__)[:excess]:
            del held[h]


def check(index: PrefixIndex) -> None:
    """The invariants of the tree."""
    runs, holders = index._runs, [h for h in index._holders[1:] if h.number not in index._free]
    live = [run for shard in runs.heads for run in shard.values()]
    assert len(live) == len(set(live)) == runs.count
    assert sum(runs.length[run] for run in live) == len(index)
    children = dict.fromkeys(live, 0)
    for run in live:
        words = np.frombuffer(runs.hashes[run], np.uint64)
        assert len(words) == runs.length[run] > 0
        assert (words[0], words[-1]) == (runs.first[run], runs.last[run])
        assert runs.full[run], "a run ends where somebody's does"
        assert not runs.full[run] & runs.partly.get(run, 0)
        if (parent := runs.parent[run]) != NONE:
            children[parent] += 1
            assert not (runs.full[run] | runs.partly.get(run, 0)) & ~runs.full[parent], (
                "whoever has a run has its parent"
            )
    assert children == {run: runs.children[run] for run in live}
    assert set(runs.partly) <= set(live)
    assert index._stamps == sum(len(holder.stamps) for holder in holders)
    for holder in holders:
        full = [run for run in live if runs.full[run] & holder.bit]
        part = [run for run in live if runs.partly.get(run, 0) & holder.bit]
        assert holder.used == sum(runs.length[run] for run in full) + holder.part
        assert part == ([holder.log[holder.oldest()]] if holder.part else []), "the part is the oldest"
        assert set(holder.stamps) <= {*full, *part}
        for run, stamp in holder.stamps.items():
            if (parent := runs.parent[run]) != NONE:
                assert holder.stamps.get(parent, stamp) >= stamp, "a parent is never older"


HASHER = Hasher()


def chain_of(prompt: str) -> Chain:
    """One block a letter."""
    return HASHER.chain(0, prompt.encode(), 1)


SLOTS = [0, 1, 2, 40]
slots = st.sampled_from(SLOTS[:3])
letters = st.one_of(
    st.text("ab", max_size=12),
    st.sampled_from(["a", "b", "ab", "abc", "ccc"]),
    # Much in common, so that runs are shared, split and held in part.
    st.builds(lambda length, end: "abcdefghijkl"[:length] + end, st.integers(0, 12), st.text("xy", max_size=2)),
)
operations = st.one_of(
    st.tuples(st.just("insert"), slots, letters.map(chain_of)),
    st.tuples(st.just("insert"), slots, letters.map(chain_of)),
    st.tuples(st.just("set_capacity"), slots, st.integers(0, 25)),
    st.tuples(st.just("forget"), slots),
)


@settings(max_examples=300)
@given(st.lists(operations, max_size=40), st.lists(letters.map(chain_of), min_size=1, max_size=4))
def test_the_tree_answers_like_the_naive_model(calls, probes):
    """Any sequence of calls: the matches, the blocks of each slot and of all together, and the invariants."""
    index, naive = PrefixIndex(), Naive()
    for name, *arguments in calls:
        getattr(index, name)(*arguments)
        getattr(naive, name)(*arguments)
        for probe in probes:
            assert index.match(probe, np.array(SLOTS)).tolist() == naive.match(probe, SLOTS)
        assert [index.blocks(slot) for slot in SLOTS] == [len(naive.held.get(slot, ())) for slot in SLOTS]
        check(index)
    index.settle()
    check(index)
    assert len(index) == len(set().union(*naive.held.values()))


@pytest.mark.parametrize("seed", range(2))
def test_soak(seed):
    """Thousands of conversations over many slots that come and go: like the naive model, and nothing is left."""
    rng, index, naive = random.Random(seed), PrefixIndex(shards=4), Naive()
    known = [np.zeros(0, np.uint64)]
    everyone = list(range(80))
    for step in range(3_000):
        slot = rng.choice(everyone[: 1 + step % 80])
        base = rng.choice(known)
        chain = np.append(
            base[: rng.randint(0, len(base))], np.frombuffer(rng.randbytes(8 * rng.randint(0, 30)), np.uint64)
        )
        known = [*known[-30:], chain]
        match rng.random():
            case x if x < 0.02:
                capacity = rng.choice([0, 1, 50, 200, 1000])
                index.set_capacity(slot, capacity)
                naive.set_capacity(slot, capacity)
            case x if x < 0.04:
                index.forget(slot)
                naive.forget(slot)
            case _:
                index.insert(slot, chain)
                naive.insert(slot, chain)
        if len(naive.held.get(slot, ())) < index.blocks(slot):
            index.settle()
        probe = rng.choice(known)
        assert index.match(probe, np.array(everyone)).tolist() == naive.match(probe, everyone)
        if step % 100 == 0:
            check(index)
    for slot in everyone:
        index.forget(slot)
    index.settle()
    assert (len(index), index._runs.count, index.memory_bytes) == (0, 0, 0)


@pytest.fixture
def index() -> PrefixIndex:
    return PrefixIndex()


def match(index: PrefixIndex, prompt: str, *asked: int) -> list[int]:
    return index.match(chain_of(prompt), np.array(asked, np.intp)).tolist()


def test_match_counts_blocks_from_the_start(index):
    """Each slot gets as many blocks as it has without a gap; who is unknown has none."""
    index.insert(0, chain_of("abcdef"))
    index.insert(1, chain_of("abcxyz"))
    index.insert(2, chain_of("ab"))
    index.insert(3, chain_of("cdef"))
    assert match(index, "abcdeg", 3, 2, 1, 0, 99) == [0, 2, 3, 5, 0]
    assert match(index, "abcdefghi", 0, 1) == [6, 3]
    assert match(index, "", 0) == [0]
    assert match(index, "abc") == []
    assert len(index) == 6 + 3 + 4


def test_the_tail_goes_first_and_the_oldest_prompt(index):
    """As vLLM frees blocks: by last use, and within a prompt from its end."""
    index.set_capacity(0, 8)
    index.insert(0, chain_of("aaaa"))
    index.insert(0, chain_of("bbbb"))
    index.insert(0, chain_of("cc"))
    assert [match(index, p, 0)[0] for p in ("aaaa", "bbbb", "cc")] == [2, 4, 2]


def test_using_a_prefix_refreshes_it(index):
    """The beginning that the look-up matched is as new as the pick."""
    index.set_capacity(0, 6)
    index.insert(0, chain_of("aaaa"))
    index.insert(0, chain_of("bb"))
    index.insert(0, chain_of("aac"))
    assert [match(index, p, 0)[0] for p in ("aaaa", "bb", "aac")] == [3, 2, 3]
    index.insert(0, chain_of("d"))
    assert [match(index, p, 0)[0] for p in ("aaaa", "bb", "aac", "d")] == [2, 2, 3, 1]


def test_repeating_a_prompt_refreshes_it(index):
    """The oldest is what was used longest ago, not what came first."""
    index.set_capacity(0, 3)
    for prompt in "abcab":
        index.insert(0, chain_of(prompt))
    index.insert(0, chain_of("d"))
    assert [match(index, p, 0)[0] for p in "abcd"] == [1, 1, 0, 1]


def test_looking_up_refreshes_nothing(index):
    """Only a pick makes the endpoint compute."""
    index.set_capacity(0, 2)
    index.insert(0, chain_of("a"))
    index.insert(0, chain_of("b"))
    match(index, "a", 0)
    index.insert(0, chain_of("c"))
    assert [match(index, p, 0)[0] for p in "abc"] == [0, 1, 1]


def test_of_a_prompt_longer_than_the_cache_the_beginning_stays(index):
    """And all else goes."""
    index.set_capacity(0, 3)
    index.insert(0, chain_of("zz"))
    index.insert(0, chain_of("abcdef"))
    assert (match(index, "abcdef", 0), index.blocks(0), len(index)) == ([3], 3, 3)


def test_the_capacity_may_change_at_any_time(index):
    """A smaller one evicts, a larger one makes room; none may be set before the endpoint is seen."""
    index.set_capacity(0, 4)
    index.insert(0, chain_of("abcdef"))
    index.set_capacity(0, 2)
    assert match(index, "abcdef", 0) == [2]
    index.set_capacity(0, 100)
    index.insert(0, chain_of("abcdef"))
    assert match(index, "abcdef", 0) == [6]
    index.set_capacity(0, 0)
    index.insert(0, chain_of("q"))
    assert (match(index, "abcdef", 0), len(index)) == ([0], 0)


def test_one_slots_eviction_leaves_the_others_alone(index):
    """A shared run is kept as long as its longest holder."""
    for slot in range(20):
        index.set_capacity(slot, 20 - slot)
        index.insert(slot, chain_of("abcdefghijklmnopqrst"))
    assert match(index, "abcdefghijklmnopqrst", *range(20)) == [20 - slot for slot in range(20)]
    index.forget(0)
    index.settle()
    assert len(index) == 19


@pytest.mark.parametrize("at", range(1, 8))
def test_prompts_may_part_where_a_slot_has_only_the_beginning(index, at):
    """Slot 0 has 5 of 8 blocks when another prompt parts from them before, at or behind its end."""
    for slot in (0, 1):
        index.insert(slot, chain_of("abcdefgh"))
    index.set_capacity(0, 5)
    index.insert(1, chain_of("abcdefgh"[:at] + "x"))
    check(index)
    assert match(index, "abcdefgh", 0, 1) == [5, 8]
    for length in range(1, 8):
        assert match(index, "abcdefgh"[:length] + "?", 0, 1) == [min(length, 5), length]
    for capacity in (4, 3, 2, 1):
        index.set_capacity(0, capacity)
        check(index)
        assert (match(index, "abcdefgh", 0, 1), index.blocks(0)) == ([capacity, 8], capacity)
    index.set_capacity(0, 100)
    index.insert(0, chain_of("abcdefgh"))
    check(index)
    assert (match(index, "abcdefgh", 0), index.blocks(0), len(index)) == ([8], 8, 9)


@pytest.mark.parametrize("at", range(1, 8))
def test_who_has_only_the_beginning_may_go_on_elsewhere(index, at):
    """Slot 0 has 5 of 8 blocks when it gets another prompt with a common beginning."""
    for slot in (0, 1):
        index.insert(slot, chain_of("abcdefgh"))
    index.set_capacity(0, 5)
    index.set_capacity(0, 6)
    index.insert(0, chain_of("abcdefgh"[:at] + "x"))
    check(index)
    assert match(index, "abcdefgh"[:at] + "x", 0) == [min(at + 1, 6)]
    assert match(index, "abcdefgh", 0, 1) == [max(at, 5) if at < 6 else 6, 8]
    assert index.blocks(0) == 6


def test_what_nobody_has_is_freed(index):
    """A run ends with its longest holder, whoever that is and however it came to be."""
    for slot in range(4):
        index.insert(slot, chain_of("abcdefgh"))
    for slot, capacity in ((1, 3), (2, 5), (3, 6)):
        index.set_capacity(slot, capacity)
        check(index)
    assert match(index, "abcdefgh", 0, 1, 2, 3) == [8, 3, 5, 6]
    for slot, longest in ((0, 6), (3, 5), (1, 5), (2, 0)):
        index.forget(slot)
        index.settle()
        check(index)
        assert len(index) == longest


def test_many_slots_hold_the_same(index):
    """As many as there are bits and more than a few."""
    for slot in range(24):
        index.insert(slot, chain_of("ab"))
        assert match(index, "abc", *range(24)) == [2] * (slot + 1) + [0] * (23 - slot)


def test_a_forgotten_slot_is_empty_at_once_and_can_be_reused(index):
    """Before its memory is freed, and whatever its capacity was."""
    index.set_capacity(5, 3)
    index.insert(5, chain_of("abc"))
    index.forget(5)
    index.forget(77)
    assert (match(index, "abc", 5), index.blocks(5)) == ([0], 0)
    index.insert(5, chain_of("abdefg"))
    assert match(index, "abc", 5) == [2]
    assert match(index, "abdefg", 5) == [6]


def test_an_insert_frees_a_slice_and_the_next_ones_the_rest(index):
    """A long prompt takes the place of a few of hundreds of short ones now, and of the rest in later inserts."""
    index.set_capacity(0, 800)
    for i in range(800):
        index.insert(0, HASHER.chain(i, b"x", 1))
    index.insert(0, HASHER.chain(0, bytes(100), 1))
    assert index.blocks(0) == 900 - SLICE
    index.insert(1, HASHER.chain(0, b"y", 1))
    assert 800 < index.blocks(0) < 900 - SLICE
    for _ in range(5):
        index.insert(1, HASHER.chain(0, b"y", 1))
    assert index.blocks(0) == 800
    index.insert(0, HASHER.chain(1, bytes(100), 1))
    assert index.blocks(0) == 900 - SLICE
    index.settle()
    assert index.blocks(0) == 800


def test_a_slot_is_never_more_than_an_eighth_above_its_capacity(index):
    """However many long prompts take the place of short ones."""
    index.set_capacity(0, 800)
    for i in range(800):
        index.insert(0, HASHER.chain(i, b"x", 1))
    for i in range(10):
        index.insert(0, HASHER.chain(i, bytes(300), 1))
        assert index.blocks(0) <= 900


def test_a_cut_of_the_capacity_takes_effect_in_slices(index):
    """And what is inserted meanwhile does not make it worse."""
    for i in range(800):
        index.insert(0, HASHER.chain(i, b"x", 1))
    index.set_capacity(0, 100)
    assert index.blocks(0) == 800 - SLICE
    index.insert(0, HASHER.chain(0, bytes(60), 1))
    assert index.blocks(0) == 800 - SLICE
    for i in range(40):
        index.insert(1, HASHER.chain(i, b"y", 1))
    assert (index.blocks(0), index.match(HASHER.chain(0, bytes(60), 1), np.array([0]))[0]) == (100, 60)


def test_memory_stays_within_the_budget_and_the_oldest_of_all_goes():
    """Blocks go by age, whoever has them."""
    index = PrefixIndex(memory_bytes=100_000)
    for i in range(2_000):
        index.insert(i % 7, HASHER.chain(i, b"abcdefgh", 1))
        assert index.memory_bytes <= 100_000
    kept = [i for i in range(2_000) if index.match(HASHER.chain(i, b"abcdefgh", 1), np.array([i % 7]))[0]]
    assert kept == list(range(2_000 - len(kept), 2_000))
    assert 200 < len(kept) < 300
    check(index)


def test_what_is_forgotten_goes_before_what_is_old():
    """Under pressure the departed make room first."""
    index = PrefixIndex(memory_bytes=100_000)
    for i in range(200):
        index.insert(i % 2, HASHER.chain(i, b"abcdefgh", 1))
    index.forget(1)
    for i in range(200, 300):
        index.insert(0, HASHER.chain(i, b"abcdefgh", 1))
    assert index.blocks(0) == 200 * 8


def test_one_long_prompt_takes_all_that_is_forgotten_if_need_be():
    """More than the slice of an insert; then the order of age holds among those that stay."""
    index = PrefixIndex(memory_bytes=150_000)
    for i in range(300):
        index.insert(i % 3, HASHER.chain(i, b"abcdefgh", 1))
    index.forget(1)
    index.insert(0, HASHER.chain(0, bytes(5_000), 1))
    assert index.memory_bytes <= 150_000
    assert [index.blocks(slot) for slot in (0, 1, 2)] == [5_800, 0, 800]
    for i in range(300, 400):
        index.insert(0, HASHER.chain(i, b"abcdefgh", 1))
    kept = [i for i in range(300) if index.match(HASHER.chain(i, b"abcdefgh", 1), np.array([i % 3]))[0]]
    assert kept == [i for i in range(300 - len(kept) * 3 // 2, 300) if i % 3 != 1]
    assert 0 < len(kept) < 200


def test_a_slot_that_comes_and_goes_leaves_no_trace(index):
    """Its number is used again."""
    for _ in range(50):
        index.insert(7, chain_of("abc"))
        index.forget(7)
        index.settle()
    assert (len(index._holders), len(index._by_age), index.memory_bytes) == (2, 0, 0)


def test_a_budget_for_nothing_holds_nothing():
    """No budget, no index, no error."""
    index = PrefixIndex(memory_bytes=0)
    index.insert(3, chain_of("abc"))
    index.insert(3, chain_of("abd"))
    assert (match(index, "abc", 3), len(index)) == ([0], 0)


@pytest.mark.parametrize(
    ("endpoints", "together", "blocks", "inserts"),
    [(10, 1, 1562, 300), (10, 1, 4, 20_000), (10, 1, 1, 20_000), (100, 100, 8, 20_000), (500, 5, 20, 10_000)],
    ids=["long", "short", "single blocks", "shared by all", "shared by a few"],
)
def test_the_memory_estimate_is_above_the_truth_but_not_far(endpoints, together, blocks, inserts):
    """For long and short prompts, shared or not; and when all is forgotten nothing is left."""
    rng = random.Random(0)
    chains = [HASHER.chain(0, rng.randbytes(blocks), 1) for _ in range(inserts // together)]
    assert {chain.data.nbytes for chain in chains} == {8 * blocks}  # numpy keeps what it makes for the first view
    tracemalloc.start()
    index = PrefixIndex(memory_bytes=2**26)
    empty = tracemalloc.get_traced_memory()[0]
    for i in range(inserts):
        index.insert(i % endpoints, chains[i // together])
    columns = index._runs._used * sum(column.itemsize for column in (*index._runs.columns(), index._runs.full))
    true = tracemalloc.get_traced_memory()[0] - empty + columns
    estimate = index.memory_bytes
    for slot in range(endpoints):
        index.forget(slot)
    index.settle()
    left = tracemalloc.get_traced_memory()[0] - empty
    tracemalloc.stop()
    assert true <= estimate <= 2 * true
    assert left <= 0.02 * true + 20_000


def test_the_garbage_collector_has_nothing_to_traverse(index):
    """The number of objects that it tracks doesn't grow with the number of runs."""
    index.insert(0, chain_of("a"))
    gc.collect()
    before = len(gc.get_objects())
    for i in range(5_000):
        index.insert(0, HASHER.chain(i, b"abcd", 1))
    gc.collect()
    assert len(gc.get_objects()) - before < 100


def test_the_same_prompt_for_ever_takes_no_more_memory(index):
    """The log of inserts is compacted."""
    chains = [chain_of("abcdef"), chain_of("abcxyz")]
    for i in range(2_000):
        index.insert(0, chains[i % 2])
    tracemalloc.start()
    for i in range(2_000):
        index.insert(0, chains[i % 2])
    assert tracemalloc.get_traced_memory()[0] < 5_000
    tracemalloc.stop()


def test_a_growing_conversation_stays_one_run(index):
    """As long as only one endpoint has it, a turn lengthens the run."""
    for turn in range(1, 20):
        index.insert(0, chain_of("abcd" * turn))
    assert index._runs.count == 1
    index.insert(1, chain_of("abcd" * 20))
    assert match(index, "abcd" * 20, 0, 1) == [76, 80]


def test_it_says_what_it_holds(index):
    """For a log line or a debugger."""
    index.insert(0, chain_of("abc"))
    index.insert(9, chain_of("abd"))
    assert repr(index) == "<PrefixIndex 4 blocks in 3 runs, 2 endpoints, 0.0 of 256 MiB>"


def test_bits():
    """Lowest first."""
    assert list(bits(0b1000_0101 | 1 << 100)) == [0, 2, 7, 100]
