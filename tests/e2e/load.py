"""Clients that go on and on, while a test breaks something."""

import asyncio
from collections import Counter
from typing import Self

from epp.envoy.process import EnvoyProcess
from tests.e2e.clients import Answer, call
from tests.e2e.harness import completion, until

BODY = completion(1000)
CLIENTS = 16


class Load:
    """Clients that send one request after another, whole and streamed answers in turn, until the block is left.

    Attributes:
        outcomes: how often an answer came, by its status and whether it was the right one.
        lost: the wrong answers.
    """

    def __init__(self, gateway: EnvoyProcess) -> None:
        self.outcomes: Counter[tuple[int, bool]] = Counter()
        self.lost: list[Answer] = []
        self._address = str(gateway.address)
        self._stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Waits for that many further answers."""
        goal = self.outcomes.total() + count
        await until(lambda: self.outcomes.total() >= goal, f"{count} more answers")

    async def _client(self, number: int) -> None:
        while not self._stopped:
            steer = [("x-pieces", "20"), ("x-pause", "0.002")] if number % 2 else []
            answer = await call("http2" if number % 4 > 1 else "http1", self._address, body=BODY, headers=steer)
            right = answer.complete and answer.body == BODY
            self.outcomes[answer.status, right] += 1
            if answer.status != 200 or not right:
                self.lost.append(answer)
