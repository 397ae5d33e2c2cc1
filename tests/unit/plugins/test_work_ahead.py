"""work-ahead-scorer: seconds of work, charged at once, learnt on line."""

import asyncio
import random

import numpy as np
import pytest
from epp_plugins.engine_work import OVERDUE
from epp_plugins.work_ahead import WorkAheadScorer

from epp.keys import (
    FIRST_TOKEN_SECONDS,
    FIRST_TOKENS,
    KV_USAGE,
    RUNNING,
    TOKEN_GAP_SECONDS,
    TOKEN_GAPS,
    WAITING,
)
from epp.plugin import Body, Candidates, Outcome, Request, matched_tokens
from epp.request import Usage
from epp.testing import FakeClock, context, decided
from epp.testing import pool as make_pool
from tests.unit.plugins.picking import pipeline_of, routed

RATE = 10_000.0
KNOWN = {"waiting": 0.0, "running": 0.0, "kv_usage": 0.1, "cache_blocks": 10_000.0, "cache_block_size": 16.0}


def asked(tokens, stream=True):
    return Request("id", "/v1/completions", {}, Body("model", (b"x" * int(tokens * 4),), stream=stream))


class Bench:
    """A scorer before a pool, with a clock."""

    def __init__(self, count, *, scraped=True, rate=RATE, answer=0.0, **columns):
        self.clock = FakeClock()
        told = {name: [value] * count for name, value in KNOWN.items()} if scraped else {}
        self.pool = make_pool(count=count, **(told | columns))
        if not scraped:
            self.pool.fresh_until[:] = -np.inf
        said = WorkAheadScorer.Parameters(prefill_tokens_per_second=rate, answer_tokens=answer)
        self.scorer = WorkAheadScorer(said, context(pool=self.pool, clock=self.clock))

    def offered(self, matched=()):
        c = Candidates(self.pool, self.pool.all_slots(), self.clock())
        c.put(matched_tokens(), list(matched) or [0.0] * len(c))
        return c

    def points(self, tokens=1000, matched=()):
        return self.scorer.score(asked(tokens), self.offered(matched))

    def send(self, index, tokens=1000, stream=True, matched=()):
        """What a pick of that endpoint leads to; gives what ends it."""
        request, c = asked(tokens, stream), self.offered(matched)
        self.scorer.score(request, c)
        decision = decided(c, index)
        leg = self.pool.charge(int(c.slots[index]), 1.0, tokens)
        self.scorer.picked(request, decision, c)

        def first():
            self.scorer.first_byte(request, decision, self.clock())

        def done():
            self.pool.release(leg)
            self.scorer.done(request, decision, Outcome(duration=1.0), self.clock())

        return first, done

    def scrape(self, index, **values):
        slot = int(self.pool.all_slots()[index])
        for key, value in values.items():
            self.pool.column(KEYS[key])[slot] = value
        self.pool.updated[slot] = self.clock()

    @property
    def learnt(self):
        return self.scorer.state()


KEYS = {
    "running": RUNNING,
    "kv_usage": KV_USAGE,
    "waiting": WAITING,
    "first_tokens": FIRST_TOKENS,
    "first_token_seconds": FIRST_TOKEN_SECONDS,
    "token_gaps": TOKEN_GAPS,
    "token_gap_seconds": TOKEN_GAP_SECONDS,
}


@pytest.mark.parametrize("scraped", [True, False], ids=["between two scrapes", "without any scrape"])
@pytest.mark.parametrize("sizes", [(500, 500), (200, 3000)], ids=["equal prompts", "unequal prompts"])
def test_a_burst_spreads(scraped, sizes):
    """200 simultaneous requests without a shared prefix over 20 endpoints: none gets more than 1.3 times its share."""
    told = {name: [value] * 20 for name, value in KNOWN.items()} if scraped else {}
    pool = make_pool(count=20, **told)
    if not scraped:
        pool.fresh_until[:] = -np.inf
    pipeline = pipeline_of([{"type": "work-ahead-scorer"}], pool)
    rng = random.Random(1)
    tokens = [rng.randint(*sizes) for _ in range(200)]
    got = {}

    async def burst():
        for each in tokens:
            place, _ = await routed(pipeline, rng.randbytes(each * 2).hex())
            got.setdefault(place, []).append(each)

    asyncio.run(burst())
    assert len(got) == 20
    if sizes[0] == sizes[1]:
        assert max(map(len, got.values())) <= 1.3 * 200 / 20
    assert max(map(sum, got.values())) <= 1.3 * sum(tokens) / 20


def test_a_prefix_is_worth_the_seconds_that_it_saves():
    """4,000 cached tokens are worth waiting for 3,000, and not for 9,000."""
    bench = Bench(2)
    bench.send(0, 3000)
    assert bench.points(5000, matched=[4000, 0]).argmax() == 0
    bench.send(0, 6000)
    assert bench.points(5000, matched=[4000, 0]).argmax() == 1


def test_what_is_pending_is_worked_off():
    """At the rate that is believed in; nothing is left in the end."""
    bench = Bench(2)
    bench.send(0, RATE)
    early = bench.points()[0]
    bench.clock.advance(0.5)
    later = bench.points()[0]
    bench.clock.advance(1.0)
    assert early < later < bench.points()[0]
    assert bench.points()[0] > 0.8  # a request is in flight there


def test_a_first_byte_tells_what_is_done():
    """However slow the engine is: what is behind in the queue is not done, what was before is."""
    bench = Bench(2)
    warm, _ = bench.send(1, 10)
    warm()  # from now on first bytes are known to pass
    first, _ = bench.send(0, 5000)
    second, _ = bench.send(0, 5000)
    bench.clock.advance(60.0)
    stuck = bench.points(5000)[0]
    assert stuck < 0.7  # at least the second is still to be computed
    second()
    assert bench.points(5000)[0] > stuck
    first()
    assert bench.learnt["tokens_a_second"] > 0


def test_a_prompt_that_is_overdue_is_not_done():
    """An engine that takes longer than believed isn't idle: about a third of the prompt is still to come."""
    bench = Bench(2)
    warm, _ = bench.send(1, 10)
    warm()
    first, _ = bench.send(0, 5000)
    bench.clock.advance(60.0)
    assert bench.points(5000)[0] == pytest.approx(1.0 / (1.0 + OVERDUE), abs=0.03)
    first()
    assert bench.points(5000).max() == bench.points(5000).min()


def test_without_responses_the_count_of_first_tokens_tells():
    """Two first tokens since the last scrape are those of our two oldest requests."""
    bench = Bench(2)
    bench.scrape(0, first_tokens=7, first_token_seconds=1.0)
    bench.points()
    bench.clock.advance(0.1)
    for _ in range(3):
        bench.send(0, 4000)
    before = bench.points(4000)[0]
    bench.clock.advance(0.1)
    bench.scrape(0, first_tokens=9, first_token_seconds=1.2)
    assert bench.points(4000)[0] > before * 1.2


@pytest.mark.parametrize("responses", [True, False], ids=["responses pass", "counters alone"])
@pytest.mark.parametrize("believed", [RATE / 2, RATE, RATE * 2])
def test_the_rate_is_learnt(responses, believed):
    """From one request after the other, wherever the belief has begun."""
    bench, rng = Bench(1, rate=believed), random.Random(0)
    count, total = 0, 0.0
    for _ in range(120):
        tokens = rng.randint(100, 20_000)
        first, done = bench.send(0, tokens)
        seconds = 0.01 + tokens / RATE
        bench.clock.advance(seconds)
        count, total = count + 1, total + seconds
        if responses:
            first()
        else:
            bench.scrape(0, first_tokens=count, first_token_seconds=total)
            bench.points()
        done()
    assert bench.learnt["tokens_a_second"] == pytest.approx(RATE, rel=0.05)
    assert bench.learnt["seconds_a_request"] == pytest.approx(0.01, abs=0.02)


def taught(bench, slower, rounds):
    """The first of these endpoints takes so many times as long, by chance a third more or less."""
    rng, count = random.Random(3), len(bench.pool.all_slots())
    for round_ in range(rounds):
        index = round_ % count
        tokens = rng.randint(1000, 8000)
        first, done = bench.send(index, tokens)
        bench.clock.advance(tokens / RATE * (slower if index == 0 else 1.0) * rng.uniform(0.7, 1.3))
        first()
        done()
    return np.array(bench.learnt["speed_by_slot"])[bench.pool.all_slots()]


@pytest.mark.parametrize(("slower", "expected"), [(1.0, 1.0), (2.0, 2.0)], ids=["alike", "half as fast"])
def test_engines_are_told_apart_beyond_chance(slower, expected):
    """Noise of a third makes no differences between engines that are alike; one half as fast is known as such."""
    speed = taught(Bench(4), slower, 200)
    assert speed[0] / speed[1:].mean() == pytest.approx(expected, rel=0.15)
    assert speed[1:].max() / speed[1:].min() < 1.1


def test_slow_engines_get_equal_batches():
    """Prompts take longer there; answers do, too, but equal batches are already fewer requests."""
    bench = Bench(2, answer=1e6, inflight_requests=[10, 10])
    assert taught(bench, 2.0, 200)[0] > 1.3
    assert bench.points(1000)[0] == pytest.approx(1.0, abs=0.02)
    bench = Bench(2, answer=0.0, inflight_requests=[10, 10])
    taught(bench, 2.0, 200)
    assert bench.points(1000)[0] == pytest.approx(0.5, abs=0.1)


def test_decoding_is_learnt_from_pages():
    """The times between tokens while no prompt was computed."""
    bench = Bench(1, answer=50.0, running=[8.0])
    gaps, seconds = 0.0, 0.0
    for _ in range(100):
        bench.scrape(0, first_tokens=3, first_token_seconds=1.0, token_gaps=gaps, token_gap_seconds=seconds)
        bench.points()
        bench.clock.advance(0.1)
        gaps, seconds = gaps + 80, seconds + 80 * 0.04
    learnt = bench.learnt
    assert learnt["seconds_a_step"] + 8 * learnt["seconds_a_member"] == pytest.approx(0.04, rel=0.1)


def test_what_others_queue_counts_and_fades():
    """A queue that isn't ours is avoided after the scrape that tells of it, and worked off with its age."""
    bench = Bench(2)
    for _ in range(60):
        _, done = bench.send(1, 2000)  # so that there is a mean
        done()
        bench.clock.advance(2.0)
    bench.scrape(0, waiting=5)
    fresh = bench.points(2000)[0]
    bench.clock.advance(0.5)
    assert fresh < 0.5
    assert bench.points(2000)[0] > fresh


def test_what_others_run_is_believed_less_with_age():
    """Once scraped beside others' requests, and never again: it isn't shunned for ever."""
    bench = Bench(2, answer=50.0)
    bench.clock.advance(1.0)
    bench.scrape(0, running=100, kv_usage=0.7)
    points = []
    for seconds in (0.0, 10.0, 60.0, 600.0):
        bench.clock.advance(seconds)
        points.append(bench.points()[0])
    assert points == sorted(set(points))
    assert points[-1] > 0.95 > points[0]


def test_our_own_queue_is_not_counted_twice():
    """What waits at the engine is what we have sent there."""
    bench = Bench(2)
    for _ in range(4):
        bench.send(0, 2000)
    before = bench.points(2000)[0]
    bench.scrape(0, waiting=4)
    assert bench.points(2000)[0] == pytest.approx(before)


def test_larger_batches_are_avoided():
    """Among equals without a queue the request goes where fewer are decoding."""
    bench = Bench(2, answer=75.0, inflight_requests=[10, 2])
    assert bench.points().argmax() == 1


@pytest.mark.parametrize("cached", [0.0, 5.0])
def test_a_full_cache_is_avoided(cached):
    """A prompt goes where it fits; and where there is room for prefixes, if prompts have any in common."""
    bench = Bench(3, kv_usage=[0.999, 0.8, 0.1])
    for _ in range(50):
        _, done = bench.send(2, 10, matched=[cached] * 3)
        done()
    bench.clock.advance(5.0)
    points = bench.points(1000)
    assert points[0] < points[1]
    assert (points[1] < points[2]) == (cached > 0)


def test_contexts_settle_where_caches_are_written_anew_slowest():
    """Who has computed more lately keeps prefixes for less long: what is new costs more there, until that is over."""
    bench = Bench(2, cache_blocks=[50_000.0] * 2)  # 800,000 tokens
    for _ in range(6):
        first, done = bench.send(0, tokens=10_000, matched=[7_000.0, 7_000.0])
        bench.clock.advance(1.0)
        first()
        done()
    rate = 6 * 3_000.0 / 30.0  # tokens a second, over half a minute of which hardly any has passed
    full = 0.1 + 1_000.0 / 800_000.0
    own, repeated = 1_000.0 / bench.learnt["tokens_a_second"], bench.learnt["share_repeated"]
    other = bench.learnt["seconds_a_request"] + own * (1.0 + repeated * full / (1.0 - full))
    busier = other + own * repeated * 800.0 * rate / (800_000.0 * (1.0 - full))
    assert repeated == pytest.approx(0.7)
    assert list(bench.points()) == pytest.approx([other / busier, 1.0], rel=0.05)
    bench.clock.advance(600.0)
    assert list(bench.points()) == pytest.approx([1.0, 1.0])


def test_answers_are_written_into_the_cache_too():
    """A long answer takes as much room as a prompt that had to be computed."""
    bench = Bench(2, cache_blocks=[50_000.0] * 2)
    request, c = asked(1000), bench.offered([900.0, 900.0])
    bench.scorer.score(request, c)
    decision = decided(c, 0)
    bench.scorer.picked(request, decision, c)
    before = bench.points()
    outcome = Outcome(duration=1.0, usage=Usage(completion_tokens=8_000))
    bench.scorer.done(request, decision, outcome, bench.clock())
    assert bench.points()[0] < before[0] < before[1] == 1.0


def test_what_waits_for_memory_tells_nothing_of_speed():
    """An engine whose KV cache is full isn't a slow one: times to first tokens there aren't learnt from."""
    bench = Bench(2, kv_usage=[1.0, 0.1])
    for _ in range(64):
        for index, seconds in ((0, 3.0), (1, 0.2)):
            first, done = bench.send(index)
            bench.clock.advance(seconds)
            first()
            done()
    assert bench.learnt["speed_by_slot"][:2] == [1.0, 1.0]


def test_an_engine_unlucky_once_is_believed_again():
    """What was seen of one engine fades as the others are seen, so that it isn't left out for ever."""
    bench = Bench(4)
    for index, seconds, times in ((0, 2.0, 8), (1, 0.1, 8), (2, 0.1, 8), (3, 0.1, 8)):
        for _ in range(times):
            first, done = bench.send(index)
            bench.clock.advance(seconds)
            first()
            done()
    slow = bench.learnt["speed_by_slot"][0]
    for turn in range(1500):
        first, done = bench.send(1 + turn % 3)
        bench.clock.advance(0.1)
        first()
        done()
    assert slow > 1.5
    assert 1.0 <= bench.learnt["speed_by_slot"][0] < 0.8 * slow


def test_who_lacks_metrics_is_not_better():
    """An endpoint whose scrape is overdue ties with the best of the others at most."""
    bench = Bench(3)
    bench.pool.fresh_until[bench.pool.all_slots()[0]] = -np.inf
    for index in (1, 2):
        bench.send(index, 4000)
    points = bench.points()
    assert points[0] <= points[1:].max() == 1.0


def test_unknown_endpoints_are_equal():
    """Ties are exact, so that the picker breaks them at random."""
    assert Bench(5, scraped=False).points().tolist() == [1.0] * 5


def test_a_restart_is_a_new_beginning():
    """What was sent to the endpoint before, and what was learnt of it, is void; late ends change nothing."""
    bench = Bench(2)
    first, done = bench.send(0, 8000)
    bench.pool.restarted(int(bench.pool.all_slots()[0]))
    bench.pool.fresh_until[:] = -np.inf
    before = bench.points()
    first()
    done()
    assert before[0] == pytest.approx(before[1], rel=0.05)
    assert bench.learnt["speed_by_slot"] == [1.0] * len(bench.learnt["speed_by_slot"])


def test_a_response_that_is_not_streamed_is_no_first_token():
    """Its first byte comes with its last: nothing is learnt from it."""
    bench = Bench(1)
    first, done = bench.send(0, 1000, stream=False)
    before = bench.learnt["tokens_a_second"]
    bench.clock.advance(30.0)
    first()
    done()
    assert bench.learnt["tokens_a_second"] == before
