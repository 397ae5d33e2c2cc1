"""The fixture that these tests share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.stream.picker import Picker

Start = Callable[..., Awaitable[Picker]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts pickers; at the end none of them has anything in flight, or a fault of its own that no test expects."""
    async with AsyncExitStack() as stack:
        started: list[Picker] = []

        async def start(*arguments: Any, **named: Any) -> Picker:
            started.append(await stack.enter_async_context(Picker(*arguments, **named)))
            return started[-1]

        yield start
        for picker in started:
            await picker.settled()
            assert picker.crashes == []
