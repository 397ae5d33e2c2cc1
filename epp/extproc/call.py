"""One gRPC call, seen so that neither its end nor its cancellation costs memory.

Envoy resets a stream in the moment in which it closes it, and gRPC cancels the call's coroutine for that, between two
messages as a rule. What gRPC allocates for a read that is cancelled, or for an OK that can't be sent any more, it loses
for good (grpc/grpc#43360): a hundred bytes a request. So the stream runs in a task of its own, which isn't cancelled
while it waits for a message: the read then comes to its end by itself. And it ends a little later than it could, so
that a reset is known before an OK is sent; a client that isn't Envoy gets its OK all the same.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc

LINGER = 0.02
"""Seconds that a stream which has come to its end waits for a reset before it ends with OK."""


class Call:
    """The part of gRPC's context that a stream uses, and what the stream runs in.

    Attributes:
        write: sends a message.
        abort: ends the call with a status.
    """

    __slots__ = ("_read", "_reading", "_reset", "abort", "write")

    def __init__(self, context: Any) -> None:
        self.write = context.write
        self.abort = context.abort
        self._read = context.read
        self._reading = False
        self._reset = False

    def __repr__(self) -> str:
        return f"<Call{': reading' * self._reading}{', reset' * self._reset}>"

    async def read(self) -> Any:
        """The next message, or EOF: if the other side has closed the stream, and if it has reset it."""
        self._reading = True
        message = await self._read()
        self._reading = False
        return grpc.aio.EOF if self._reset else message

    async def run(self, stream: Coroutine[Any, Any, None]) -> None:
        """Runs the stream; a reset cancels it unless it is reading.

        Raises:
            CancelledError: the call has been reset.
        """
        task = asyncio.create_task(stream)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                self._reset = True
                if not self._reading:
                    task.cancel()
        if self._reset:
            raise asyncio.CancelledError
        await asyncio.sleep(LINGER)
