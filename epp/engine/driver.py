"""Runs a model in real time: one loop that sleeps for each step's duration, and a stream of tokens a request.

An idle engine has nothing scheduled and costs nothing. A timer has a resolution of about a millisecond; the loop
keeps the ends of steps on one time line, so that rounding does not add up, and gives up catching up once it is late by
more than ``MAX_LATE``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from epp.engine.metrics import EngineMetrics, Gauges
from epp.engine.model import Admission, Batch, Model, Request, StepResult

MAX_LATE = 0.05


class EngineStoppedError(Exception):
    """The engine was closed before the request had all of its tokens."""


@dataclass(slots=True, eq=False)
class Stream:
    """A request on its way, as its reader sees it; ``finish_reason`` is set with the last token."""

    request: Request
    arrived: float
    admission: Admission | None = None
    first_token: float = 0.0
    last_token: float = 0.0
    produced: int = 0
    finish_reason: str | None = None
    stopped: bool = False
    _unread: list[int] = field(default_factory=list)
    _waiter: "asyncio.Future[None] | None" = None

    @property
    def cached_tokens(self) -> int:
        """How much of the prompt was found in the prefix cache."""
        return self.admission.cached_tokens if self.admission else 0

    @property
    def done(self) -> bool:
        """All tokens have been read."""
        return self.finish_reason is not None and not self._unread

    def push(self, token: int) -> None:
        """Adds a token for the reader."""
        self._unread.append(token)

    def wake(self) -> None:
        """Lets the reader go on."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self) -> list[int]:
        """Waits for new tokens, or for the end, and takes them.

        Raises:
            EngineStoppedError: the engine was closed.
        """
        while not (self._unread or self.finish_reason or self.stopped):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.stopped and not self.finish_reason:
            raise EngineStoppedError
        tokens, self._unread = self._unread, []
        return tokens

    async def all(self) -> list[int]:
        """Waits for the end and returns every token.

        Raises:
            EngineStoppedError: the engine was closed.
        """
        tokens: list[int] = []
        while not self.done:
            tokens += await self.more()
        return tokens


class Driver:
    """One model in real time.

    State: ``_streams`` (by request id) and ``_work`` (set while the model may have requests).
    """

    def __init__(
        self,
        model: Model,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """``clock`` gives seconds and is read before and after each step; ``sleep`` lets them pass."""
        self.model = model
        self.metrics = metrics
        self._clock = clock
        self._sleep = sleep
        self._streams: dict[str, Stream] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, request: Request) -> Stream:
        """Gives a request to the model; see ``Model.add`` for the errors."""
        now = self._clock()
        self.model.add(request, now)
        stream = self._streams[request.request_id] = Stream(request, now)
        self._idle.clear()
        self._work.set()
        return stream

    def abort(self, stream: Stream) -> None:
        """Forgets a request; nothing happens if it has ended."""
        if self.model.abort(stream.request.request_id):
            self._end(stream, "abort", self._clock())

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
            self._note(batch)
            ends = max(ends, now - MAX_LATE) + batch.duration
            await self._sleep(max(0.0, ends - self._clock()))
            self._deliver(self.model.update(batch))

    def _note(self, batch: Batch) -> None:
        self.metrics.scheduled(batch)
        for admission in batch.admissions:
            self._streams[admission.request_id].admission = admission

    def _deliver(self, result: StepResult) -> None:
        now = self._clock()
        woken = [self._streams[request_id] for request_id, _ in result.tokens]
        for stream, (_, token) in zip(woken, result.tokens, strict=True):
            self._count(stream, now)
            stream.push(token)
        for request_id, reason in result.finished:
            stream = self._streams[request_id]
            stream.finish_reason = reason
            if not stream.produced and stream.admission:
                self.metrics.prefilled(stream.admission, now - stream.arrived)
                woken.append(stream)
            self._end(stream, reason, now)
        for stream in woken:
            stream.wake()

    def _count(self, stream: Stream, now: float) -> None:
        self.metrics.generation_tokens += 1
        stream.produced += 1
        if stream.produced > 1:
            self.metrics.itl.observe(now - stream.last_token)
        elif stream.admission is not None:
            stream.first_token = now
            self.metrics.prefilled(stream.admission, now - stream.arrived)
        stream.last_token = now

    def _end(self, stream: Stream, reason: str, now: float) -> None:
        request = stream.request
        del self._streams[request.request_id]
        self.metrics.ended(reason, len(request.prompt), stream.produced, now - stream.arrived)
        if not self._streams:
            self._idle.set()

    def stop(self) -> None:
        """Tells every reader that there is nothing more to come."""
        for stream in list(self._streams.values()):
            self.abort(stream)
            stream.stopped = True
            stream.wake()

    async def drained(self) -> None:
        """Waits until no request is left."""
        await self._idle.wait()

    def gauges(self) -> Gauges:
        """What the page shows of the model at this moment."""
        model = self.model
        return Gauges(
            running=len(model.running),
            waiting=len(model.waiting),
            kv_usage=model.pool.usage,
            lora_running=frozenset(s.request.lora for s in model.running if s.request.lora),
            lora_waiting=frozenset(s.request.lora for s in model.waiting if s.request.lora),
            now=time.time(),
        )
