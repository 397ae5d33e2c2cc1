"""Runs a model in real time: one loop that sleeps for each step's duration, and a stream of tokens a client.

An idle engine has nothing scheduled and costs nothing. A timer has a resolution of about a millisecond; the loop
keeps the ends of steps on one time line, so that rounding does not add up, and gives up catching up once it is late by
more than ``MAX_LATE``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from epp.engine.blocks import KvEvent
from epp.engine.metrics import EngineMetrics, Gauges
from epp.engine.model import Model, Request, Sequence, StepResult

MAX_LATE = 0.05


class EngineStoppedError(Exception):
    """The engine was closed before the request had all of its tokens."""


class Stream:
    """One or several answers on their way, as their reader sees them: positions of new tokens, a step at a time.

    Attributes:
        sequences: the model's, one an answer.
    """

    def __init__(self, sequences: list[Sequence], answers: int) -> None:
        """Nothing is read yet; each prompt has ``answers`` sequences, one after the other."""
        self.sequences = sequences
        self.answers = answers
        self.stopped = False
        self._read = [0] * len(sequences)
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """All answers have all of their tokens, or have been aborted."""
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    @property
    def done(self) -> bool:
        """All tokens have been read."""
        return self.finished and not self.stopped and not self._unread()

    def siblings(self, sequence: Sequence) -> list[Sequence]:
        """All answers to the prompt of this one."""
        first = self.sequences.index(sequence) // self.answers * self.answers
        return self.sequences[first : first + self.answers]

    def _unread(self) -> bool:
        return any(read < one.produced for read, one in zip(self._read, self.sequences, strict=True))

    def wake(self) -> None:
        """Lets the reader go on."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self) -> list[range]:
        """Waits for new tokens, or for the end, and takes them: their positions in each answer.

        Raises:
            EngineStoppedError: the engine was closed.
        """
        while not (self._unread() or self.finished or self.stopped):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.stopped:
            raise EngineStoppedError
        produced = [sequence.produced for sequence in self.sequences]
        taken = [range(read, until) for read, until in zip(self._read, produced, strict=True)]
        self._read = produced
        return taken

    async def all(self) -> None:
        """Waits for the end.

        Raises:
            EngineStoppedError: the engine was closed.
        """
        while not self.done:
            await self.more()


class Driver:
    """One model in real time.

    State: ``_streams`` (by request id) and ``_work`` (set while the model may have requests).
    """

    def __init__(
        self,
        model: Model,
        metrics: EngineMetrics,
        publish: Callable[[list[KvEvent]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``clock`` gives seconds and is read before and after each step; ``sleep`` lets them pass.

        ``publish`` is given the KV cache events of a step when it is over.
        """
        self.model = model
        self.metrics = metrics
        self._publish = publish
        self._clock = clock
        self._sleep = sleep
        self._streams: dict[str, Stream] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, *requests: Request, answers: int = 1) -> Stream:
        """Gives requests to the model, to be read as one, ``answers`` for each prompt; errors: see ``Model.add``."""
        now = self._clock()
        stream = Stream([self.model.add(request, now) for request in requests], answers)
        self._streams.update((request.request_id, stream) for request in requests)
        self._idle.clear()
        self._work.set()
        return stream

    def abort(self, stream: Stream) -> None:
        """Forgets what is left of it; nothing happens if it has ended."""
        for sequence in stream.sequences:
            if sequence.finish_reason is None:
                self.model.abort(sequence.request.request_id)
                self._leave(sequence)

    def __len__(self) -> int:
        return len(self.model)

    def clear_cache(self) -> bool:
        """Empties the prefix cache; False, and nothing done, while a request holds a block.

        The event about it goes out with those of the next step, as vLLM's does.
        """
        return self.model.pool.clear()

    async def run(self) -> None:
        """Steps for as long as it isn't cancelled; then every request left is told that the engine has stopped."""
        try:
            while True:
                await self._run_until_empty()
                self._work.clear()
                await self._work.wait()
        finally:
            self.stop()

    async def _run_until_empty(self) -> None:
        ends = self._clock()
        while len(self.model):
            now = self._clock()
            batch = self.model.schedule(now)
            self.metrics.scheduled(batch)
            ends = max(ends, now - MAX_LATE) + batch.duration
            await self._sleep(max(0.0, ends - self._clock()))
            now = self._clock()
            self.metrics.stepping(batch, now)
            self._deliver(self.model.update(batch, now))
            self._publish_events()

    def _deliver(self, result: StepResult) -> None:
        self.metrics.stepped(result)
        for sequence in (*result.produced, *result.finished):
            self._streams[sequence.request.request_id].wake()
        answered: dict[int, list[Sequence]] = {}
        for sequence in result.finished:
            siblings = self._streams[sequence.request.request_id].siblings(sequence)
            if all(one.finish_reason not in (None, "abort") for one in siblings):
                answered[id(siblings[0])] = siblings
            self._leave(sequence)
        for siblings in answered.values():
            self.metrics.answered(len(siblings), max(one.produced for one in siblings))

    def _leave(self, sequence: Sequence) -> None:
        del self._streams[sequence.request.request_id]
        if not self._streams:
            self._idle.set()

    def _publish_events(self) -> None:
        if self._publish is not None and (events := self.model.take_events()):
            self._publish(events)

    def gauges(self) -> Gauges:
        """What the page shows of the model at this moment."""
        return Gauges.of(self.model)

    def stop(self) -> None:
        """Tells every reader that there is nothing more to come."""
        for stream in set(self._streams.values()):
            stream.stopped = True
            self.abort(stream)
            stream.wake()

    async def drained(self) -> None:
        """Waits until no request is left."""
        await self._idle.wait()
