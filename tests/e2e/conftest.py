"""Fixtures that the tests with a real Envoy share."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.e2e.harness import Stage


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage() -> AsyncIterator[Stage]:
    """A pool of two servers behind one picker, for tests that leave it as it was."""
    async with Stage() as shared:
        yield shared
