"""A call that is reset: a read is left to come to its end, anything else is cut off."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from epp.extproc.call import LINGER, Call


class Context:
    """gRPC's side: messages that the test puts in, and whether a read of them was cancelled."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = self.cancelled_reads = 0
        self.written: list[bytes] = []

    async def read(self) -> Any:
        self.reads += 1
        try:
            return await self.messages.get()
        except asyncio.CancelledError:
            self.cancelled_reads += 1
            raise

    async def write(self, message: bytes) -> None:
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise NotImplementedError


class Running:
    """A call whose stream reads until the end, and does something with every message."""

    def __init__(self, work: Callable[[Any], Awaitable[None]]) -> None:
        self.context = Context()
        self.call = Call(self.context)
        self.read: list[Any] = []
        self.ending = ""
        self._work = work
        self.task = asyncio.create_task(self.call.run(self._stream()))

    async def _stream(self) -> None:
        self.ending = "cancelled"
        while (message := await self.call.read()) is not grpc.aio.EOF:
            self.read.append(message)
            await self._work(message)
        self.ending = "ended"

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("the condition doesn't come true")

    async def cancelled(self) -> bool:
        async with asyncio.timeout(10):
            await asyncio.wait((self.task,))
        return self.task.cancelled()


async def nothing(_: Any) -> None:
    pass


async def forever(_: Any) -> None:
    await asyncio.Event().wait()


async def test_a_stream_that_is_closed_ends_a_little_later() -> None:
    """Nobody resets it: it returns, and gRPC sends OK."""
    running, started = Running(nothing), time.monotonic()
    for message in ("one", "two", grpc.aio.EOF):
        running.context.messages.put_nowait(message)
    assert not await running.cancelled()
    assert (running.read, running.ending) == (["one", "two"], "ended")
    assert time.monotonic() - started >= LINGER


async def test_a_reset_after_the_end() -> None:
    """As Envoy does it: there is no OK to be sent, and no wait."""
    running = Running(nothing)
    running.context.messages.put_nowait(grpc.aio.EOF)
    await running.until(lambda: running.ending == "ended")
    running.task.cancel()
    assert await running.cancelled()


@pytest.mark.parametrize("last", [grpc.aio.EOF, "a message that nobody waits for"], ids=["end", "message"])
async def test_a_reset_while_it_reads(last: Any) -> None:
    """The read comes to its own end; what comes with it is the end in any case."""
    running = Running(nothing)
    running.context.messages.put_nowait("one")
    await running.until(lambda: running.context.reads == 2)
    running.task.cancel()
    await asyncio.sleep(0)
    assert not running.task.done()
    assert "reading, reset" in repr(running.call)
    running.context.messages.put_nowait(last)
    assert await running.cancelled()
    assert (running.read, running.ending, running.context.cancelled_reads) == (["one"], "ended", 0)


async def test_a_reset_while_it_does_something_else() -> None:
    """Whatever it is, it is cut off."""
    running = Running(forever)
    running.context.messages.put_nowait("one")
    await running.until(lambda: running.read == ["one"])
    running.task.cancel()
    assert await running.cancelled()
    assert (running.ending, running.context.cancelled_reads) == ("cancelled", 0)


async def test_a_fault_of_the_stream_passes() -> None:
    """gRPC sees the very exception: it knows its own by identity."""
    fault = KeyError("a fault")

    async def failing(_: Any) -> None:
        raise fault

    running = Running(failing)
    running.context.messages.put_nowait("one")
    assert not await running.cancelled()
    assert running.task.exception() is fault


async def test_what_is_written_goes_to_the_context() -> None:
    """Nothing is in between."""

    async def echo(message: bytes) -> None:
        await running.call.write(message)

    running = Running(echo)
    for message in (b"one", b"two", grpc.aio.EOF):
        running.context.messages.put_nowait(message)
    await running.cancelled()
    assert running.context.written == [b"one", b"two"]
