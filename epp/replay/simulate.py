"""A replay: a workload, a policy and simulated engines under one virtual clock.

    arrival ─► picker (Pipeline.route) ─► engine ─► first token, last token ─► picker
                  ▲                          │
                  └── scrapes, each at its own phase, each a little late ◄─┘

One heap of events in the order of time. A decision takes no time. An engine is looked at only when something begins or
ends there, or when a decision sees a scrape of it: that is what makes hundreds of them fit into one process.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random
from typing import Any

import numpy as np

from epp.data.scrape import period_of
from epp.engine.model import Request, StepResult
from epp.engine.virtual import VirtualEngine
from epp.errors import ConfigError, RequestError
from epp.replay.options import Engines, View
from epp.replay.picker import MODEL, Clock, Picker, Routed
from epp.replay.policy import Policy
from epp.replay.result import Gaps, Requests, Result
from epp.replay.scraper import Scraper
from epp.replay.scrapes import Pages
from epp.replay.workload import Workload, text

TICK = 100

Tick = Callable[[int], None]
"""Told of requests that have ended, so many since it was told last."""


def simulate(
    policy: Policy,
    workload: Workload,
    engines: Engines,
    rate: float,
    seed: int = 0,
    *,
    view: View | None = None,
    tick: Tick | None = None,
) -> Result:
    """Replays a workload under one policy. Equal arguments give equal results, to the last bit.

    Args:
        policy: the configuration.
        workload: the requests; their times are scaled to the rate.
        engines: the simulated servers.
        rate: requests a second.
        seed: of the picker's draws, the scrapes' times and the engines' jitter.
        view: what the picker gets to see.
        tick: told of the progress, `TICK` requests at a time.

    Raises:
        ConfigError: the configuration can't be used, or a request is longer than the engines' context.
    """
    if rate <= 0:
        raise ConfigError(f"a rate of {rate:g} requests a second: it must be above 0")
    return _Simulation(policy, workload, engines, rate, seed, view or View(), tick).run()


class _Simulation:
    """One replay under way.

    State: the clock, the heap of events, the engines, what each one has under way, and the entries of the result.
    """

    def __init__(
        self,
        policy: Policy,
        workload: Workload,
        engines: Engines,
        rate: float,
        seed: int,
        view: View,
        tick: Tick | None,
    ) -> None:
        self._policy, self._workload, self._given, self._rate, self._seed = policy, workload, engines, rate, seed
        self._view, self._tick = view, tick
        self._bodies = view.responses == "bodies"
        self._scale = workload.rate / rate
        self._clock = Clock()
        self._picker = Picker(policy, engines.count, self._clock, f"{seed}/picker")
        self._engines = [self._engine(index) for index in range(engines.count)]
        self._scraper = self._scrapes() if view.scrapes else None
        self._block = engines.config(0).block_size
        self._due = [inf] * engines.count  # the event that counts of those in the heap for an engine's next step
        self._routed: dict[str, tuple[int, Routed]] = {}
        self._following: dict[int, list[int]] = {}
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = count()
        self._requests = Requests.blank(len(workload))
        self._gaps: list[tuple[float, int]] = []
        self._left = len(workload)
        self._preemptions = 0
        room = engines.config(0).max_model_len
        if workload.longest > room:
            raise ConfigError(
                f"{workload.name} has a request of {workload.longest} tokens, and the KV cache of {engines.profile} "
                f"holds {room}: take another profile, or leave such requests out"
            )

    def _engine(self, index: int) -> VirtualEngine:
        return VirtualEngine(self._given.config(index), Random(f"{self._seed}/engine-{index}"))

    def _scrapes(self) -> Scraper:
        options, engines = self._view.scrape, self._given
        interval = self._picker.scrape_interval or options.interval
        return Scraper(
            Pages(MODEL, engines.config(0), self._picker.scraped_names),
            self._engines,
            max(interval, period_of(options, engines.count)),
            options.timeout,
            self._view.scrape_delay,
            Random(f"{self._seed}/scrapes"),
        )

    def run(self) -> Result:
        """All of it."""
        self._plan_arrivals()
        clock, heap = self._clock, self._heap
        while self._left:
            clock.now, _, function, argument = heappop(heap)
            function(argument)
        gaps = np.array(self._gaps, dtype=np.float64).reshape(-1, 2)
        return Result(
            self._policy.name,
            self._workload.name,
            self._given.count,
            self._rate,
            self._seed,
            self._requests,
            Gaps(gaps[:, 0], gaps[:, 1].astype(np.int64)),
            self._preemptions,
            self._picker.faults,
            self._picker.warnings,
        )

    def _at(self, time: float, function: Callable[[Any], None], argument: object) -> None:
        heappush(self._heap, (time, next(self._order), function, argument))

    # --- requests

    def _plan_arrivals(self) -> None:
        for index, turn in enumerate(self._workload.turns):
            if turn.follows is None:
                self._at(turn.at * self._scale, self._arrive, index)
            else:
                self._following.setdefault(turn.follows, []).append(index)

    def _arrive(self, index: int) -> None:
        turn, now, requests = self._workload.turns[index], self._clock.now, self._requests
        requests.arrived[index] = now
        requests.prompt_tokens[index] = turn.prompt_tokens
        name = f"request-{index}"
        for heard in self._scraper.heard(now) if self._scraper is not None else ():
            self._picker.scraped(*heard)
        routed = self._picker.route(name, text(turn.prompt))
        if isinstance(routed, RequestError):
            self._done(index)
            return
        requests.endpoint[index] = routed.endpoint
        self._routed[name] = (index, routed)
        if self._view.responses != "none":
            self._picker.response_headers(routed)
        contents = self._workload.texts.contents(index, turn, self._block)
        self._catch_up(routed.endpoint)
        self._settle(routed.endpoint)
        self._engines[routed.endpoint].add(
            Request(name, turn.prompt_tokens, turn.answer.tokens, contents, ends_itself=True), now
        )
        self._plan_step(routed.endpoint)

    def _done(self, index: int) -> None:
        """The request has ended, or was refused: those that wait for it may come."""
        self._left -= 1
        for following in self._following.pop(index, ()):
            planned = self._workload.turns[following].at * self._scale
            self._at(max(planned, self._clock.now), self._arrive, following)
        done = len(self._workload) - self._left
        if self._tick is not None and (not self._left or not done % TICK):
            self._tick(done % TICK or TICK)

    # --- engines

    def _plan_step(self, index: int) -> None:
        due = self._engines[index].next_time
        if due != self._due[index]:
            self._due[index] = due
            if due < inf:
                self._at(due, self._step, index)

    def _step(self, index: int) -> None:
        """An engine's steps have ended, unless they have been cut short meanwhile."""
        if self._due[index] == self._clock.now:
            self._catch_up(index)
            self._plan_step(index)

    def _catch_up(self, index: int) -> None:
        """Takes an engine to the present."""
        if self._engines[index].next_time <= self._clock.now:
            self._settle(index)
            for result in self._engines[index].advance(self._clock.now):
                self._gather(result)

    def _settle(self, index: int) -> None:
        """The engine is about to change."""
        if self._scraper is not None:
            self._scraper.settle(index, self._clock.now)

    def _gather(self, result: StepResult) -> None:
        batch = result.batch
        self._preemptions += len(batch.preempted)
        if batch.decode_sequences:
            self._gaps.append((batch.elapsed(result.steps) / result.steps, batch.decode_sequences * result.steps))
        for sequence in result.started if self._bodies else ():
            self._picker.first_token(self._routed[sequence.request.request_id][1])
        for sequence in result.finished:
            index, routed = self._routed.pop(sequence.request.request_id)
            requests, asked = self._requests, sequence.request
            requests.admitted[index] = sequence.admitted
            requests.first_token[index] = sequence.first_token
            requests.ended[index] = sequence.last_token
            requests.cached_tokens[index] = sequence.cached_tokens
            requests.answer_tokens[index] = sequence.produced
            if self._bodies:
                self._picker.last_token(routed, asked.prompt_tokens, sequence.produced, sequence.cached_tokens)
            self._picker.ended(routed, seen=self._bodies)
            self._done(index)
