"""Scrapes that are gone into late say what they would have said at once."""

from heapq import heappop, heappush
from random import Random

import pytest

from epp.data.scrape import until_next
from epp.engine.model import ModelConfig, Request
from epp.engine.profiles import PROFILES
from epp.engine.virtual import VirtualEngine
from epp.replay.scraper import Scraper
from epp.replay.scrapes import Pages

CONFIG = ModelConfig.of(PROFILES["tiny"])
NAMES = frozenset(
    {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:generation_tokens_total",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:request_success_total",  # which is read off the whole page
    }
)
PERIOD, TIMEOUT, DELAY = 0.05, 1.0, (0.003, 0.004)


class AtOnce:
    """What `Scraper` must be equal to: each scrape is an event, and reads its engine at its own time."""

    def __init__(self, engines: list[VirtualEngine]) -> None:
        self.pages, self.engines, self.random = Pages("m", CONFIG, NAMES), engines, Random("times")
        self.events, self.known, self.scrapes = [], {}, 0
        for index, engine in enumerate(engines):
            wait = until_next(PERIOD, 0.0, self.random, first=True)
            self.known[index] = (0.0, self.read(engine, 0.0), wait + TIMEOUT)
            heappush(self.events, (wait, index, None))

    def read(self, engine: VirtualEngine, now: float):
        return self.pages.found(engine, self.pages.read(engine, now))

    def run(self, now: float) -> None:
        while self.events[0][0] <= now:
            at, index, underway = heappop(self.events)
            if underway is None:
                late = DELAY[0] + self.random.expovariate(1 / DELAY[1])
                self.engines[index].advance(at)
                heappush(self.events, (at + late, index, (self.read(self.engines[index], at), late)))
                self.scrapes += 1
            else:
                wait = until_next(PERIOD, underway[1], self.random, first=False)
                self.known[index] = (at, underway[0], wait + TIMEOUT)
                heappush(self.events, (at + wait, index, None))


@pytest.mark.parametrize("pause", [0.01, 0.2, 2.0])
def test_what_is_heard_late_is_what_was_to_be_heard(pause: float) -> None:
    """With decisions more often than scrapes, and much less often; some at once after another."""
    draw = Random(0)
    late, at_once = ([VirtualEngine(CONFIG, Random(index)) for index in range(3)] for _ in range(2))
    reference = AtOnce(at_once)
    scraper = Scraper(Pages("m", CONFIG, NAMES), late, PERIOD, TIMEOUT, DELAY, Random("times"))
    now, told = 0.0, {}
    for number in range(300):
        soon = now + draw.expovariate(1 / pause)
        while (due := min(engine.next_time for engine in late)) <= soon:
            index = next(index for index, engine in enumerate(late) if engine.next_time == due)
            scraper.settle(index, due)
            late[index].advance(due)
        now = soon
        told |= {heard.endpoint: (heard.at, heard.found, heard.fresh_for) for heard in scraper.heard(now)}
        reference.run(now)
        assert told == reference.known
        index = draw.randrange(3)
        scraper.settle(index, now)
        at_once[index].advance(now)
        for engines in (late, at_once):
            engines[index].add(Request(str(number), 40 + number, 1 + number), now)
    assert reference.scrapes > 100


def test_what_nobody_has_missed_is_not_told_again() -> None:
    engines = [VirtualEngine(CONFIG)]
    scraper = Scraper(Pages("m", CONFIG, NAMES), engines, PERIOD, TIMEOUT, DELAY, Random(0))
    assert [heard.at for heard in scraper.heard(0.0)] == [0.0]
    assert not list(scraper.heard(0.001))
    (heard,) = scraper.heard(100.0)
    assert 99.8 < heard.at <= 100.0
