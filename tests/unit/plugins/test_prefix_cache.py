"""approx-prefix-cache-producer and prefix-cache-scorer, with figures worked out by hand."""

from math import nan

import numpy as np
import pytest
from epp_plugins.prefix_cache import ApproxPrefixCacheProducer, PrefixCacheScorer
from pydantic import ValidationError

from epp.keys import matchable_tokens, matched_tokens
from epp.plugin import Body, Candidates, Pool, Request
from epp.settings.decode import decode
from epp.testing import candidates, context, decided, pool, request

MATCHED, MATCHABLE = matched_tokens(), matchable_tokens()

# Blocks are 64 tokens of 4 bytes: 256 bytes.
HELLO = b"h" * 640  # 160 tokens, 2 whole blocks and a half
LONGER = HELLO + b"!" * 640  # 320 tokens, 5 blocks; the third one differs from HELLO's half


def producer(of: Pool, name: str = "approx-prefix-cache-producer", **parameters: object) -> ApproxPrefixCacheProducer:
    made = decode(ApproxPrefixCacheProducer.Parameters, parameters)
    return ApproxPrefixCacheProducer(made, context(name, pool=of))


def send(to: ApproxPrefixCacheProducer, c: Candidates, prompt: bytes | Request, *order: int) -> None:
    asked = prompt if isinstance(prompt, Request) else request(prompt)
    to.produce(asked, c)
    to.picked(asked, decided(c, *order), c)


def ask(it: ApproxPrefixCacheProducer, c: Candidates, prompt: bytes | Request) -> tuple[list[float], list[float]]:
    columns = it.produce(prompt if isinstance(prompt, Request) else request(prompt), c)
    return columns[MATCHED].tolist(), columns[MATCHABLE].tolist()


@pytest.fixture
def endpoints() -> Pool:
    return pool(count=3)


def test_an_endpoint_has_what_was_sent_there(endpoints):
    """In tokens of whole blocks, from the start of the prompt."""
    it, c = producer(endpoints), candidates(of=endpoints)
    assert ask(it, c, HELLO) == ([0, 0, 0], [128, 128, 128])
    send(it, c, HELLO, 1)
    send(it, c, LONGER, 2)
    assert ask(it, c, LONGER) == ([0, 128, 320], [320, 320, 320])
    assert ask(it, c, b"x" + HELLO) == ([0, 0, 0], [128, 128, 128])


def test_candidates_may_be_a_part_of_the_pool_in_any_order(endpoints):
    """Columns are theirs, not the pool's."""
    it = producer(endpoints)
    send(it, candidates(of=endpoints), HELLO, 1)
    assert ask(it, Candidates(endpoints, np.array([2, 1]), 0.0), HELLO) == ([0, 128], [128, 128])


def test_only_the_target_gets_the_prompt_but_that_of_every_profile(endpoints):
    """Fallbacks compute nothing; the target of a profile of any name does."""
    it, c, asked = producer(endpoints), candidates(of=endpoints), request(HELLO)
    it.picked(asked, decided(c, 0, 1, profile="decode", others={"warm": 2}), c)
    assert ask(it, c, HELLO)[0] == [128, 0, 128]


def test_an_encoder_gets_no_prompt(endpoints):
    """It computes embeddings of pictures, and none of the prompt's KV."""
    it, c = producer(endpoints), candidates(of=endpoints)
    it.picked(request(HELLO), decided(c, 0, profile="decode", others={"prefill": 1, "encode": 2}), c)
    assert ask(it, c, HELLO)[0] == [128, 128, 0]


def test_a_request_is_let_go_after_its_pick(endpoints):
    """Bodies are large."""
    it, c = producer(endpoints), candidates(of=endpoints)
    send(it, c, HELLO, 1)
    assert it._hashed is None


def test_prompts_of_one_request_are_added_up(endpoints):
    """Each is matched for itself."""
    it, c = producer(endpoints), candidates(of=endpoints)
    send(it, c, b"w" * 256, 0)
    send(it, c, HELLO, 1)
    assert ask(it, c, request([HELLO, b"w" * 256, b"short"])) == ([64, 128, 0], [192, 192, 192])


def test_without_a_whole_block_nothing_can_match(endpoints):
    """Neither can a request without a prompt."""
    it, c = producer(endpoints), candidates(of=endpoints)
    send(it, c, b"h" * 255, 1)
    assert ask(it, c, b"h" * 255) == ([0, 0, 0], [0, 0, 0])
    assert ask(it, c, request(())) == ([0, 0, 0], [0, 0, 0])


def test_models_and_salts_are_kept_apart(endpoints):
    """Their caches are: and "a" with "bc" is not "ab" with "c"."""
    it, c = producer(endpoints), candidates(of=endpoints)
    bodies = [Body(model, (HELLO,), salt) for model, salt in (("a", "bc"), ("ab", "c"), ("abc", ""))]
    asked = [Request("", "", {}, body) for body in bodies]
    send(it, c, asked[0], 1)
    assert [ask(it, c, each)[0] for each in asked] == [[0, 128, 0], [0, 0, 0], [0, 0, 0]]


def test_an_endpoint_that_leaves_or_restarts_has_nothing(endpoints):
    """At once, and so has the one that gets its slot."""
    it, c = producer(endpoints), candidates(of=endpoints)
    for index in range(3):
        send(it, c, HELLO, index)
    endpoints.restarted(endpoints.slots["default/pod-1"])
    endpoints.remove("default/pod-2")
    assert ask(it, c, HELLO)[0] == [128, 0, 0]


def test_the_capacity_is_the_engines_in_tokens():
    """12 blocks of 16 tokens are 3 of ours; an engine that reported nothing has the default."""
    it_has = pool(cache_blocks=[12, nan, 12, 0], cache_block_size=[16, 16, nan, 16])
    it, c = producer(it_has, lruCapacityPerServer=4), candidates(of=it_has)
    for index in range(4):
        send(it, c, LONGER, index)
    assert ask(it, c, LONGER)[0] == [192, 256, 256, 256]


def test_the_capacity_follows_the_report():
    """What was sent before it came still matches, and is evicted as far as need be at the next pick."""
    it_has = pool(cache_blocks=[nan], cache_block_size=[nan])
    it = producer(it_has)
    send(it, candidates(of=it_has), LONGER, 0)
    reported = candidates(of=pool(cache_blocks=[12], cache_block_size=[16]))
    assert ask(it, reported, LONGER) == ([320], [320])
    send(it, reported, b"x" * 256, 0)
    assert ask(it, reported, LONGER) == ([128], [320])


def test_without_auto_tune_the_report_is_ignored():
    """Capacity and block size are the configured ones."""
    it_has = pool(cache_blocks=[12], cache_block_size=[100])
    it, c = producer(it_has, autoTune=False, lruCapacityPerServer=4), candidates(of=it_has)
    send(it, c, LONGER, 0)
    assert ask(it, c, LONGER) == ([256], [320])


def test_tokens_are_whole_blocks_of_each_endpoint():
    """An engine with blocks of 100 tokens can use 100 of 128 and 300 of 320; the others are not touched by it."""
    it_has = pool(cache_block_size=[100, 16, nan, 400])
    it, c = producer(it_has), candidates(of=it_has)
    for index in range(4):
        send(it, c, HELLO, index)
    assert ask(it, c, LONGER) == ([100, 128, 128, 0], [300, 320, 320, 0])


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        ({}, 640),
        ({"maxPrefixTokensToMatch": 200}, 192),
        ({"maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 2}, 128),
        ({"maxPrefixTokensToMatch": 200, "maxPrefixBlocksToMatch": 2}, 192),
        ({"maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 0}, 640),
        ({"blockSizeTokens": 8}, 640),
        ({"blockSizeTokens": 100}, 600),
        ({"blockSize": 100}, 600),
        ({"blockSize": 100, "blockSizeTokens": 16}, 600),
        ({"blockSize": 100, "blockSizeTokens": 90}, 630),
    ],
    ids=str,
)
def test_block_length_and_how_far_is_looked(endpoints, parameters, tokens):
    """Of a prompt of 640 tokens."""
    it, c = producer(endpoints, **parameters), candidates(of=endpoints)
    send(it, c, HELLO * 4, 0)
    assert ask(it, c, HELLO * 4) == ([tokens, 0, 0], [tokens] * 3)


def test_by_default_a_prompt_is_looked_at_up_to_131072_tokens(endpoints):
    """2,048 blocks of 64."""
    assert ask(producer(endpoints), candidates(of=endpoints), b"h" * 600_000)[1] == [131_072] * 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"maxPrefixTokensToMatch": -1},
        {"maxPrefixBlocksToMatch": -1},
        {"lruCapacityPerServer": 0},
        {"blockSizeTokens": 0},
        {"blockSize": -1},
        {"memoryBytes": 0},
        {"autotune": True},
    ],
    ids=str,
)
def test_wrong_parameters_of_the_producer(endpoints, parameters):
    """Nothing is below zero, and nothing unknown is taken."""
    with pytest.raises(ValidationError, match=next(iter(parameters))):
        producer(endpoints, **parameters)


def test_the_memory_of_the_index_is_bounded(endpoints):
    """By `memoryBytes`, over all endpoints."""
    it, c = producer(endpoints, memoryBytes=30_000), candidates(of=endpoints)
    for number in range(200):
        send(it, c, b"%d" % number + bytes(1024), number % 3)
    assert 20_000 < it.index.memory_bytes <= 30_000


def test_keys_carry_the_producers_name(endpoints):
    """So that there can be several."""
    it = producer(endpoints, name="mine")
    assert it.writes == (matched_tokens("mine"), matchable_tokens("mine"))
    assert set(it.produce(request(HELLO), candidates(of=endpoints))) == set(it.writes)


def test_the_producer_says_what_it_holds(endpoints):
    """For a debugger."""
    assert repr(producer(endpoints)).startswith("<ApproxPrefixCacheProducer: blocks of 64 tokens, <PrefixIndex 0 ")


def scores(matched: list[float], matchable: list[float], producer_name: str = "", **parameters: object) -> list[float]:
    made = decode(PrefixCacheScorer.Parameters, parameters)
    columns = {matched_tokens(producer_name or MATCHED.producer): matched}
    columns[matchable_tokens(producer_name or MATCHED.producer)] = matchable
    return PrefixCacheScorer(made).score(request(), candidates(columns=columns)).tolist()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [0, 0.4, 1]),  # 128 / 320
        ({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 256}, [0, 0.325, 1]),  # (128/256)^2 / 2 + 0.4 / 2
        ({"matchLengthWeight": 1, "matchLengthScaleTokens": 640}, [0, 0.04, 0.25]),  # (128/640)^2, (320/640)^2
        ({"matchLengthWeight": 1, "matchLengthScaleTokens": 64}, [0, 1, 1]),
        ({"matchLengthWeight": 0, "matchLengthScaleTokens": 0}, [0, 0.4, 1]),
        ({"matchLengthWeight": 0, "matchLengthScaleTokens": -1}, [0, 0.4, 1]),
        ({"prefixMatchInfoProducerName": ""}, [0, 0.4, 1]),
    ],
    ids=str,
)
def test_the_score(parameters, expected):
    """w * min(1, m / scale)^2 + (1 - w) * m / M."""
    assert scores([0, 128, 320], [320, 320, 320], **parameters) == pytest.approx(expected)


def test_nothing_to_match_is_no_points():
    """And what the producer failed to say isn't either."""
    assert scores([0, 0], [0, 0], matchLengthWeight=0.5) == [0, 0]
    assert np.isnan(scores([nan, 64], [nan, 128])).tolist() == [True, False]


def test_the_scorer_reads_the_named_producer():
    """And says so, for the order of the producers."""
    parameters = {"prefixMatchInfoProducerName": "other"}
    assert scores([64], [128], producer_name="other", **parameters) == [0.5]
    made = PrefixCacheScorer(decode(PrefixCacheScorer.Parameters, parameters))
    assert made.reads == (matched_tokens("other"), matchable_tokens("other"))


@pytest.mark.parametrize(
    ("parameters", "about"),
    [
        ({"matchLengthWeight": 1.1}, "matchLengthWeight"),
        ({"matchLengthWeight": -0.1}, "matchLengthWeight"),
        ({"matchLengthWeight": 0.1, "matchLengthScaleTokens": 0}, "matchLengthScaleTokens: must be above 0"),
    ],
    ids=str,
)
def test_wrong_parameters_of_the_scorer(parameters, about):
    """A weight is between 0 and 1, and needs a scale."""
    with pytest.raises(ValidationError, match=about):
        decode(PrefixCacheScorer.Parameters, parameters)
