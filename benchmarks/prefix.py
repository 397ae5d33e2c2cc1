"""What the prefix index costs a decision: hashing, and match + insert in a full index, with the collector on.

    python benchmarks/prefix.py [--json] [--smoke] [--endpoints 100]

The index holds 1.4 million blocks of 256 bytes in all, so that every insert evicts. "Long" is a prompt of 400 kB or
about 100,000 tokens (1,562 blocks), "short" one of 1 kB (4 blocks).
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import xxhash
from numpy.typing import NDArray

from epp.prefix import Chain, Hasher, PrefixIndex

BLOCK_BYTES = 256
LONG, SHORT = 1562, 4
BLOCKS = 1_400_000

Row = dict[str, str | float]
Placed = tuple[int, Chain]


def row(what: str, nanoseconds: list[int]) -> Row:
    """Median and 99th percentile in microseconds."""
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"what": what, "p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


def timed(call: Callable[..., object], *arguments: object) -> int:
    """Nanoseconds of one call."""
    start = time.perf_counter_ns()
    call(*arguments)
    return time.perf_counter_ns() - start


def plain_chain(prompt: bytes) -> list[int]:
    """What `Hasher` is held against: each block's hash seeded with the one before it."""
    out, last = [], 0
    for start in range(0, len(prompt) - BLOCK_BYTES + 1, BLOCK_BYTES):
        last = xxhash.xxh3_64_intdigest(prompt[start : start + BLOCK_BYTES], last)
        out.append(last)
    return out


def hashing(rng: random.Random, repeats: int) -> Iterator[Row]:
    """Prompts never seen, prompts seen before, and the plain way."""
    for name, size in (("1 kB", 1000), ("400 kB", 400_000)):
        hasher, times = Hasher(), dict[str, list[int]](first=[], repeated=[], plain=[])
        for _ in range(repeats):
            prompt = rng.randbytes(size)
            times["plain"].append(timed(plain_chain, prompt))
            times["first"].append(timed(hasher.chain, 1, prompt, BLOCK_BYTES))
            times["repeated"].append(timed(hasher.chain, 1, prompt, BLOCK_BYTES))
        yield row(f"hash {name}, first time", times["first"])
        yield row(f"hash {name}, repeated", times["repeated"])
        yield row(f"hash {name}, plain loop", times["plain"])


class Load:
    """Chains as a hasher would make them, on endpoints of a full index."""

    def __init__(self, endpoints: int, blocks: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.endpoints = endpoints
        self.capacity = blocks // endpoints
        self.slots = np.arange(endpoints)

    def chain(self, blocks: int) -> Chain:
        """A prompt never seen before."""
        return self._rng.integers(0, 2**64, blocks, np.uint64)

    def slot(self) -> int:
        """Any endpoint."""
        return int(self._rng.integers(self.endpoints))

    def full(self, blocks: int) -> PrefixIndex:
        """An index full of prompts of that length."""
        index = PrefixIndex()
        for slot in self.slots.tolist():
            index.set_capacity(slot, self.capacity)
        for _ in range(-(-self.capacity // blocks) + 1):
            for slot in self.slots.tolist():
                index.insert(slot, self.chain(blocks))
        return index

    def new(self, blocks: int) -> Iterator[Placed]:
        """Prompts never seen before."""
        while True:
            yield self.slot(), self.chain(blocks)

    def repeated(self, blocks: int, prompts: int = 50) -> Iterator[Placed]:
        """The same prompts over and over, on any endpoint."""
        known = [self.chain(blocks) for _ in range(prompts)]
        while True:
            for chain in known:
                yield self.slot(), chain

    def mixed(self, short: int) -> Iterator[Placed]:
        """Never seen, and one long prompt to so many short ones."""
        while True:
            for i in range(short + 1):
                yield self.slot(), self.chain(SHORT if i else LONG)

    def shared(self, system: int, blocks: int) -> Iterator[Placed]:
        """A system prompt that all share, and a new end."""
        beginning = self.chain(system)
        while True:
            yield self.slot(), np.concatenate([beginning, self.chain(blocks - system)])

    def chats(self, system: int, conversations: int = 300, longest: int = LONG) -> Iterator[Placed]:
        """Conversations of many turns behind one system prompt, each on one of three endpoints."""
        beginning = self.chain(system)
        texts = [beginning] * conversations
        while True:
            number, turn = self._rng.integers(conversations), self._rng.integers(5, 60)
            text = texts[number] if len(texts[number]) < longest else beginning
            texts[number] = np.concatenate([text, self.chain(int(turn))])
            yield int(number * 7 + turn % 3) % self.endpoints, texts[number]


def tree(endpoints: int, blocks: int, repeats: int) -> Iterator[Row]:
    """Match for all endpoints, then insert for one, prompt by prompt."""
    load = Load(endpoints, blocks)
    full_of = {"long": load.full(LONG), "short": load.full(SHORT)}
    for name, what, placed in (
        ("long", "long, never seen", load.new(LONG)),
        ("long", "long, repeated", load.repeated(LONG)),
        ("long", "long, behind a shared system prompt", load.shared(500, LONG)),
        ("long", "chats of up to 40 turns", load.chats(500)),
        ("short", "short, never seen", load.new(SHORT)),
        ("short", "short, repeated", load.repeated(SHORT)),
        ("short", "one long among a hundred short", load.mixed(100)),
        ("short", "nothing but long, never seen", load.new(LONG)),
    ):
        times = [timed(decide, full_of[name], load.slots, *each) for each in islice(placed, repeats)]
        yield row(f"{endpoints} endpoints full of {name}: {what}", times)


def decide(index: PrefixIndex, slots: NDArray[np.intp], slot: int, chain: Chain) -> None:
    """The index's share of a decision."""
    index.match(chain, slots)
    index.insert(slot, chain)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows")
    parser.add_argument("--smoke", action="store_true", help="once, and briefly")
    parser.add_argument("--endpoints", type=int, nargs="*", default=[100, 1000])
    arguments = parser.parse_args()
    blocks, repeats = (10_000, 5) if arguments.smoke else (BLOCKS, 2_000)
    rows = list(hashing(random.Random(0), 5 if arguments.smoke else 500))
    for endpoints in [5] if arguments.smoke else arguments.endpoints:
        rows.extend(tree(endpoints, blocks, repeats))
    if arguments.json:
        print(json.dumps(rows))
        return
    for each in rows:
        print(f"{each['what']:70} {each['p50_us']:9} {each['p99_us']:9}")


if __name__ == "__main__":
    main()
