"""burst-prefix-cache-producer: who goes where, worked out by hand; and the window that requests wait in."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from epp_plugins.burst_prefix import BurstParameters, BurstPrefixCacheProducer, Waiting, placed
from pydantic import ValidationError

from epp.keys import INFLIGHT_REQUESTS, matchable_tokens, matched_tokens
from epp.plugin import Body, Candidates, Hasher, Pool, Request
from epp.testing import candidates, context, pool, request

HASHER = Hasher()
BLOCK = 64 * 4
LONG = 5000
"""A window that no test waits for, in ms."""


def prompt(text: str) -> bytes:
    """A block for each letter, and half a one."""
    return b"".join(letter.encode() * BLOCK for letter in text) + b"?" * (BLOCK // 2)


def waiting(text: str, slots: Sequence[int]) -> Waiting:
    chain = HASHER.chain(0, prompt(text), BLOCK)
    place: asyncio.Future[int | None] = asyncio.Future(loop=asyncio.new_event_loop())
    place.get_loop().close()
    return Waiting(chain.tobytes() or text.encode(), chain, frozenset(slots), place)


CASES: dict[str, tuple[list[str], dict[str, Any], list[float], list[int | None]]] = {
    # prompts, parameters, in flight by slot; the slots
    "a group stays together": (["aa", "aa", "aa"], {}, [0, 0], [0, 0, 0]),
    "groups are spread": (["aa", "b", "aa", "b", "c", "c"], {}, [0, 0, 0], [0, 1, 0, 1, 2, 2]),
    "the longest first": (["b", "b", "aa", "aa"], {}, [0, 0], [1, 1, 0, 0]),
    "who has least in flight first": (["aa", "aa", "b", "b"], {}, [5, 1, 3], [1, 1, 2, 2]),
    "who has got least, then": (["aa", "aa", "aa", "b", "b", "c", "c"], {}, [0, 0], [0, 0, 0, 1, 1, 1, 1]),
    "single requests go anywhere": (["aa", "ab", "c"], {}, [0, 0], [None, None, None]),
    "a single one beside a group, too": (["aa", "aa", "ab"], {}, [0, 0], [0, 0, None]),
    "so many of a group at one": (["a"] * 5, {"maxPerReplica": 2}, [0, 0, 0], [0, 0, 1, 1, 2]),
    "one more than there are places": (["a"] * 5, {"maxPerReplica": 2}, [0, 0], [0, 0, 1, 1, 0]),
    # 4 requests at 2 endpoints are 2 each: the second group has the block x in common with the first, but that one's
    # endpoint has its share already.
    "a share is a share": (["xa", "xa", "xb", "xb"], {"minColocateBlocks": 1}, [0, 0], [0, 0, 1, 1]),
    # 6 requests at 2 endpoints are 3 each: slot 0 has 2, so that the next one with x goes there, and then has 3.
    "single ones join a group": (
        ["xa", "xa", "xb", "xc", "y", "y"],
        {"minColocateBlocks": 1},
        [0, 0],
        [0, 0, 0, 1, 1, 1],
    ),
    "too little in common": (["xya", "xzb"], {"minColocateBlocks": 2}, [0, 0], [None, None]),
    "enough in common": (["xya", "xyb", "z"], {"minColocateBlocks": 2}, [0, 0], [0, 1, None]),
    # Blocks: xyza 4 at slot 0, of 4 + 4 + 1 in all at 2 endpoints, 4.5 each: xyzb joins, for 1 block more, and m goes
    # to slot 1.
    "tokens: what is there counts once": (
        ["xyza", "xyza", "xyzb", "xyzb", "m", "m"],
        {"balanceBy": "tokens", "minColocateBlocks": 2},
        [0, 0],
        [0, 0, 0, 0, 1, 1],
    ),
    # By requests both long ones and the short one would be spread alike; by blocks the short ones share an endpoint.
    "tokens: long and short": (
        ["aaaa", "aaaa", "b", "b", "c", "c"],
        {"balanceBy": "tokens"},
        [0, 0],
        [0, 0, 1, 1, 1, 1],
    ),
    "nobody": ([], {}, [0], []),
}


@pytest.mark.parametrize(("prompts", "parameters", "inflight", "slots"), CASES.values(), ids=CASES)
def test_placed(prompts: list[str], parameters: Any, inflight: list[float], slots: list[int | None]) -> None:
    """Groups first, the longest first, each where least is; single ones where their beginning is."""
    batch = [waiting(text, range(len(inflight))) for text in prompts]
    assert placed(batch, BurstParameters.model_validate(parameters), np.array(inflight)) == slots


def test_only_where_it_may() -> None:
    """A request goes to one of its own candidates; those with other ones are another group."""
    batch = [waiting("a", [1, 2]), waiting("a", [0]), waiting("a", [1, 2]), waiting("a", [0])]
    assert placed(batch, BurstParameters(), np.zeros(3)) == [1, 0, 1, 0]


def producer(of: Pool, **parameters: Any) -> BurstPrefixCacheProducer:
    made = BurstParameters.model_validate({"windowDurationMs": LONG} | parameters)
    return BurstPrefixCacheProducer(made, context("burst", pool=of))


async def ask(it: BurstPrefixCacheProducer, c: Candidates, *sent: Request) -> list[list[float]]:
    """What is matched, for each request of a window that is full with them."""
    columns = await asyncio.gather(*[it.fetch(each, c) for each in sent])
    for each, found in zip(sent, columns, strict=True):
        assert found[matchable_tokens("burst")].tolist() == [each.prompt_tokens] * len(c)
    return [found[matched_tokens("burst")].tolist() for found in columns]


def other(sent: Request, **body: Any) -> Request:
    kept = {"model": sent.model, "prompts": sent.body.prompts} | body
    return type(sent)(sent.id, sent.path, sent.headers, Body(**kept))


A, B = request(prompt("aa")), request(prompt("ab"))
TOKENS = 2 * 64 + 32


async def test_a_window() -> None:
    """The assigned endpoint has the whole prompt, the others nothing; one alone nowhere."""
    own = pool(inflight_requests=[3, 0, 0])
    it = producer(own, maxBatchSize=3)
    assert await ask(it, candidates(of=own), A, B, A) == [[0, TOKENS, 0], [0, 0, 0], [0, TOKENS, 0]]
    assert repr(it) == "<BurstPrefixCacheProducer: 0 requests in its window>"


@pytest.mark.parametrize(
    ("one", "together"),
    [
        pytest.param(A, True, id="the same"),
        pytest.param(request(prompt("aa")[:-10]), True, id="the same but for its last part of a block"),
        pytest.param(request(prompt("aab")), False, id="longer by a block"),
        pytest.param(other(A, model="other"), False, id="another model"),
        pytest.param(other(A, cache_salt="s"), False, id="another salt"),
        pytest.param(other(A, prompts=A.body.prompts * 2), False, id="twice the prompt"),
    ],
)
async def test_who_is_a_group(one: Request, together: bool) -> None:
    own = pool(count=2)
    found = await ask(producer(own, maxBatchSize=2), candidates(of=own), A, one)
    assert [any(row) for row in found] == [together, together]


async def test_short_prompts() -> None:
    """Shorter than a block: the same only if they are equal; and without any there is nothing to wait for."""
    own = pool(count=2)
    c = candidates(of=own)
    short, shorter = request("s" * 40), request("s" * 36)
    found = await ask(producer(own, maxBatchSize=3), c, short, shorter, short)
    assert [max(row) for row in found] == [10, 0, 10]
    assert await ask(producer(own), c, request("")) == [[0, 0]]


async def test_how_far_is_looked() -> None:
    """What comes after `maxPrefixTokensToMatch` doesn't part a group."""
    own = pool(count=2)
    found = await ask(producer(own, maxBatchSize=2, maxPrefixTokensToMatch=64), candidates(of=own), A, B)
    assert [max(row) for row in found] == [TOKENS, TOKENS]


async def test_the_windows_end() -> None:
    """It comes by itself, and the next request begins another one."""
    own = pool(count=2)
    it, c = producer(own, windowDurationMs=1), candidates(of=own)
    assert await ask(it, c, A, A) == [[TOKENS, 0], [TOKENS, 0]]
    own.column(INFLIGHT_REQUESTS)[0] = 1
    assert await ask(it, c, A, A) == [[0, TOKENS], [0, TOKENS]]


async def test_a_client_that_goes() -> None:
    """Its request takes no place, and delays nobody."""
    own = pool(count=2)
    it, c = producer(own, maxBatchSize=2), candidates(of=own)
    gone = asyncio.create_task(it.fetch(A, c))
    await asyncio.sleep(0)
    assert "1 requests" in repr(it)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert "0 requests" in repr(it)
    assert [max(row) for row in await ask(it, c, A, A)] == [TOKENS, TOKENS]


def test_its_deadline() -> None:
    """It has the window's time, and a little more."""
    assert producer(pool(), windowDurationMs=10_000).deadline == pytest.approx(10.4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"windowDurationMs": 0},
        {"windowDurationMs": 10_001},
        {"maxPerReplica": 0},
        {"maxPerReplica": -2},
        {"maxBatchSize": 0},
        {"blockSizeTokens": 0},
        {"minColocateBlocks": -1},
        {"maxPrefixTokensToMatch": 63},
        {"balanceBy": "bytes"},
    ],
    ids=str,
)
def test_invalid_parameters(parameters: Any) -> None:
    with pytest.raises(ValidationError):
        BurstParameters.model_validate(parameters)
