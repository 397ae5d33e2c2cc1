"""Runs a model under a virtual clock: time jumps from one thing that can be seen from outside to the next.

Steps that only decode are computed together, up to the first end of a request, and cut short when another request
comes; so an engine costs work for each request and each chunk of prefill, not for each token. What is read in the
middle of such a run (``observe``) is as exact as if each step had been taken.

Whoever drives several engines keeps them in a queue by ``next_time``, and looks at it again after ``add`` and
``abort``, which may bring it nearer.
"""

from dataclasses import dataclass, replace
from math import inf
from random import Random

from epp.engine.metrics import EngineMetrics, Gauges
from epp.engine.model import Batch, Model, ModelConfig, Request, Sequence, StepResult

_MOST_STEPS = 1 << 30


@dataclass(slots=True)
class _Run:
    """Steps in progress since ``began``: how many are wanted, how many have entered the metrics, and their seconds."""

    batch: Batch
    began: float
    steps: int
    counted: int = 0
    seconds: float = 0.0

    def ends(self, steps: int) -> float:
        """When that many steps will have ended."""
        return self.began + self.batch.elapsed(steps)

    def done(self, now: float) -> int:
        """How many have ended."""
        return min(self.steps, self.batch.steps_by(now - self.began))


class VirtualEngine:
    """One engine whose time is moved by its caller; times never go back.

    Attributes:
        model: the scheduler.
        metrics: the counters, up to date after ``advance``, ``count`` and ``observe``.
        next_time: when something happens next that its caller can see; infinite while it is idle.
    """

    def __init__(self, config: ModelConfig, rng: Random | None = None) -> None:
        """An idle engine; see ``Model`` for ``rng``."""
        self.model = Model(config, rng)
        self.metrics = EngineMetrics(config.max_model_len)
        self.next_time = inf
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"<VirtualEngine {self.model!r}, next at {self.next_time}>"

    def add(self, request: Request, now: float) -> Sequence:
        """Gives a request to the engine, ``advance(now)`` done before.

        Raises:
            ValueError: see ``Model.add``.
        """
        sequence = self.model.add(request, now)
        self._interrupt(now)
        return sequence

    def abort(self, request_id: str, now: float) -> Sequence | None:
        """Forgets a request, ``advance(now)`` done before; None if it is not there."""
        if self._run is not None and self._run.steps > 1:
            self._split(self._run, now)
        return self.model.abort(request_id)

    def _interrupt(self, now: float) -> None:
        """Lets the run in progress end with the step that is being computed; an idle engine begins at once."""
        run = self._run
        if run is None:
            self._begin(now)
        elif run.steps > 1:
            done = run.done(now)
            run.steps = done if done and run.ends(done) == now else min(run.steps, done + 1)
            self.next_time = run.ends(run.steps)

    def _split(self, run: _Run, now: float) -> None:
        """Applies the steps that have ended and leaves the one in progress, at the pace that the run had."""
        done = run.done(now)
        if done:
            self._count(run, done)
            self.metrics.stepped(self.model.update(run.batch, run.ends(done), done))
            batch = self.model.schedule(run.ends(done), admit=False)
            self._start(replace(batch, scale=run.batch.scale), run.ends(done))
        else:
            run.steps = 1
            self.next_time = run.ends(1)

    def _begin(self, now: float) -> None:
        if not len(self.model):
            self._run, self.next_time = None, inf
            return
        batch = self.model.schedule(now, _MOST_STEPS)
        self.metrics.scheduled(batch)
        self._start(batch, now)

    def _start(self, batch: Batch, now: float) -> None:
        self._run = _Run(batch, now, batch.steps)
        self.next_time = self._run.ends(batch.steps)

    def advance(self, now: float) -> list[StepResult]:
        """Takes all steps that end until ``now``: none, unless ``next_time`` <= ``now``.

        First tokens and ends come at the very end of a result's steps: their times are on the sequences.
        """
        results: list[StepResult] = []
        while self._run is not None and self.next_time <= now:
            at = self.next_time
            self._count(self._run, self._run.steps)
            result = self.model.update(self._run.batch, at, self._run.steps)
            self.metrics.stepped(result)
            for sequence in result.finished:
                self.metrics.answered(1, sequence.produced)
            results.append(result)
            self._begin(at)
        return results

    def _count(self, run: _Run, steps: int) -> None:
        """Enters the decoded tokens of the run's steps up to that one into the metrics."""
        if steps and not run.counted:
            run.counted, run.seconds = 1, run.batch.elapsed(1)
            self.metrics.stepping(run.batch, run.began + run.seconds)
        if steps > run.counted:
            seconds = run.batch.elapsed(steps)
            self.metrics.decoded(run.batch, steps - run.counted, seconds - run.seconds)
            run.counted, run.seconds = steps, seconds

    def count(self, now: float) -> int:
        """Brings the counters up to date, ``advance(now)`` done before; how many of the steps in progress are over."""
        run = self._run
        if run is None or run.steps == 1:
            return 0
        if done := run.done(now):
            self._count(run, done)
        return done

    def observe(self, now: float) -> Gauges:
        """What a page fetched at this moment shows, ``advance(now)`` done before."""
        done, ahead = self.count(now), 0
        if done and self._run is not None:
            ahead = self.model.blocks_ahead(min(done + 1, self._run.steps))
        return Gauges.of(self.model, ahead)
