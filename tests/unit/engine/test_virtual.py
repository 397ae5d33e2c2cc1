"""A virtual clock changes how steps are taken, not what comes of them: against a driver that takes each step alone."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from epp.engine.metrics import EngineMetrics, Gauges, Histogram
from epp.engine.model import Model, ModelConfig, Request, Sequence
from epp.engine.profiles import StepCost
from epp.engine.virtual import VirtualEngine

COST = StepCost(base=1.0, prefill_token=0.01, decode_sequence=0.1, kv_token=0.001, adapter_load=0.3)
CONFIG = ModelConfig(COST, num_blocks=16, block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64)
# Times of arrivals are no sums of durations, so nothing happens at the very end of a step.
TICK = 0.7390625


class StepByStep:
    """What ``VirtualEngine`` must be equal to: every step on its own."""

    def __init__(self, config: ModelConfig) -> None:
        self.model = Model(config)
        self.metrics = EngineMetrics(config.max_model_len)
        self.now = 0.0
        self.ends = inf
        self._batch = None

    def advance(self, now: float) -> None:
        while self.ends <= now:
            at = self.ends
            assert self._batch is not None
            self.metrics.stepping(self._batch, at)
            result = self.model.update(self._batch, at)
            self.metrics.stepped(result)
            for sequence in result.finished:
                self.metrics.answered(1, sequence.produced)
            self.begin(at)

    def begin(self, now: float) -> None:
        self._batch, self.ends = None, inf
        if len(self.model):
            self._batch = self.model.schedule(now)
            self.metrics.scheduled(self._batch)
            self.ends = now + self._batch.duration

    def add(self, request: Request, now: float) -> Sequence:
        sequence = self.model.add(request, now)
        if self.ends == inf:
            self.begin(now)
        return sequence

    def abort(self, request_id: str) -> None:
        self.model.abort(request_id)


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 12),  # ticks until it comes
        st.integers(1, 30),  # prompt
        st.integers(0, 30),  # output
        st.integers(0, 3),  # which prefix
        st.booleans(),  # look at the page first
        st.booleans(),  # abort the one before it
    ),
    max_size=12,
)


def contents(prompt: int, output: int, family: int) -> list[int]:
    """Chained contents: two requests of one family share all that both have."""
    return [1000 * family + index for index in range((prompt + output) // 4)]


@settings(max_examples=200, deadline=None)
@example(  # one that waits shares a block that a running one fills while it decodes
    events=[
        (0, 1, 0, 0, False, False),
        (0, 22, 10, 0, False, False),
        (5, 1, 8, 1, False, False),
        (8, 29, 0, 1, False, False),
        (5, 1, 0, 0, True, False),
    ],
    blocks=16,
    seqs=3,
    loras=0,
)
@given(events=EVENTS, blocks=st.integers(16, 40), seqs=st.integers(1, 5), loras=st.integers(0, 2))
def test_runs_of_steps_are_the_steps(
    events: list[tuple[int, int, int, int, bool, bool]], blocks: int, seqs: int, loras: int
) -> None:
    config = replace(CONFIG, num_blocks=blocks, max_num_seqs=seqs, max_loras=loras)
    runs, steps = VirtualEngine(config), StepByStep(config)
    pairs: list[tuple[Sequence, Sequence]] = []
    now = 0.0
    for number, (ticks, prompt, output, family, look, abort) in enumerate(events):
        now += ticks * TICK
        runs.advance(now)
        steps.advance(now)
        if look:
            assert_equal_gauges(runs.observe(now), Gauges.of(steps.model))
            assert_equal_metrics(runs.metrics, steps.metrics)
        if abort and number:
            runs.abort(str(number - 1), now)
            steps.abort(str(number - 1))
        lora = f"adapter {family}" if loras and family else None
        request = Request(str(number), prompt, output, contents(prompt, output, family), lora=lora)
        pairs.append((runs.add(request, now), steps.add(request, now)))
    runs.advance(1e9)
    steps.advance(1e9)
    assert runs.next_time == inf
    for ours, theirs in pairs:
        assert (ours.produced, ours.finish_reason, ours.cached_tokens, ours.preemptions) == (
            theirs.produced,
            theirs.finish_reason,
            theirs.cached_tokens,
            theirs.preemptions,
        )
        if ours.finish_reason != "abort":
            times = [(s.admitted, s.first_token, s.last_token) for s in (ours, theirs)]
            assert times[0] == pytest.approx(times[1])
    assert_equal_metrics(runs.metrics, steps.metrics)
    assert runs.model.pool.used == steps.model.pool.used == 0


def assert_equal_gauges(ours: Gauges, theirs: Gauges) -> None:
    assert ours == theirs


def assert_equal_metrics(ours: EngineMetrics, theirs: EngineMetrics) -> None:
    """Equal numbers, and equal histograms, but for the buckets of times: a run's steps count with their mean."""
    for name, value in vars(theirs).items():
        mine = getattr(ours, name)
        if isinstance(value, Histogram):
            assert (mine.count, mine.total) == (value.count, pytest.approx(value.total)), name
        else:
            assert mine == value, name


def test_a_run_ends_with_the_step_in_which_a_request_comes() -> None:
    engine = VirtualEngine(CONFIG)
    first = engine.add(Request("a", 8, 30), 0.0)
    engine.advance(engine.next_time)
    assert engine.next_time > 30, "one run to the end"
    second = engine.add(Request("b", 8, 1), 10.0)
    assert 10.0 < engine.next_time < 11.2, "the end of the step in progress"
    engine.advance(1e9)
    assert second.admitted < 11.2
    assert (first.produced, second.produced) == (30, 1)


def test_a_request_that_comes_at_the_end_of_a_step_waits_for_no_other() -> None:
    engine = VirtualEngine(CONFIG)
    engine.add(Request("a", 8, 30), 0.0)
    now = engine.next_time
    engine.advance(now)
    step = COST.seconds(0, 1, 8)
    second = engine.add(Request("b", 8, 1), now + step)
    engine.advance(now + step)
    assert second.admitted == now + step


def test_jitter_of_a_run_comes_from_the_seed_and_is_its_steps_mean() -> None:
    config = replace(CONFIG, jitter=0.2, max_model_len=64)
    ends = []
    for _ in range(2):
        engine = VirtualEngine(config)
        sequence = engine.add(Request("a", 8, 50), 0.0)
        engine.advance(1e9)
        ends.append(sequence.last_token)
    assert ends[0] == ends[1]
    plain = VirtualEngine(CONFIG)
    sequence = plain.add(Request("a", 8, 50), 0.0)
    plain.advance(1e9)
    assert ends[0] != sequence.last_token
    assert ends[0] == pytest.approx(sequence.last_token, rel=0.15)
