"""An API server, a client of it, and a pool that follows it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import pytest_asyncio

from epp.data.kubernetes.discovery import KubernetesDiscovery, Wanted
from epp.kube.access import Access, FixedToken
from epp.kube.client import Api
from epp.pool import Pool
from tests.kube.api import FakeApi

LABELS = {"app": "llama"}


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with FakeApi() as api:
        yield api


@pytest_asyncio.fixture
async def api(fake: FakeApi) -> AsyncIterator[Api]:
    client = Api(Access(fake.url, FixedToken()))
    yield client
    await client.aclose()


class Following:
    """A pool with its discovery; `until` waits for a condition that is looked at whenever the pool has changed."""

    def __init__(self, api: Api, wanted: Wanted | None = None, **options: Any) -> None:
        self.pool = Pool()
        self.errors: list[str] = []
        self.stale = [False]
        self.changes: list[tuple[list[str], list[str]]] = []
        self._something = asyncio.Event()
        self.discovery = KubernetesDiscovery(
            self.pool,
            api,
            wanted or Wanted(pool="llama"),
            on_error=lambda message: self._note(self.errors, message),
            on_pool=lambda added, removed: self._note(self.changes, (list(added), list(removed))),
            on_state=self._state,
            **{"patience": 0.5} | options,
        )

    def _note(self, where: list[Any], what: Any) -> None:
        where.append(what)
        self._something.set()

    def _state(self) -> None:
        if self.stale[-1:] != [self.discovery.stale]:
            self.stale.append(self.discovery.stale)
        self._something.set()

    async def __aenter__(self) -> Self:
        await self.discovery.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.discovery.stop()

    @property
    def members(self) -> dict[str, str]:
        """`ip:port` by the name of each endpoint."""
        found = [self.pool.endpoints[slot] for slot in self.pool.slots.values()]
        return {endpoint.name: endpoint.hostport for endpoint in found if endpoint is not None}

    async def until(self, condition: Callable[[], Any], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while not condition():
                self._something.clear()
                try:
                    async with asyncio.timeout(0.05):  # what changes without a call of ours
                        await self._something.wait()
                except TimeoutError:
                    continue

    async def until_members(self, **members: str) -> None:
        wanted = {name.replace("_", "-"): hostport for name, hostport in members.items()}
        await self.until(lambda: self.members == wanted)
