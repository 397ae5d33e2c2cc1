"""The fetchers: the only I/O of a decision, under a deadline, and before its synchronous step."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from epp.plugin import Candidates, Floats, Key, Plugged, Request, Router
from epp.schedule.guard import Guard
from epp.schedule.scheduler import enter

FETCH_DEADLINE = 0.4
"""Seconds that a fetcher has which doesn't say; llm-d's budget for a data producer."""

Fetched = list[tuple[Plugged, Mapping[Key, Floats] | None]]


async def fetch(router: Router, request: Request, c: Candidates, guard: Guard) -> Fetched:
    """Runs the fetchers at once, each under its deadline; a failed one is counted, never fatal."""
    began = asyncio.get_running_loop().time()
    tasks = {
        plugged: asyncio.create_task(guard.wait("DataProducer", plugged, plugged.plugin.fetch, request, c))
        for plugged in router.fetchers
    }
    found: Fetched = []
    try:
        for plugged in sorted(router.fetchers, key=deadline_of):
            left = began + deadline_of(plugged) - asyncio.get_running_loop().time()
            await asyncio.wait([tasks[plugged]], timeout=max(left, 0.0))
            found.append((plugged, _result(tasks[plugged], plugged, guard)))
    finally:
        for task in tasks.values():
            task.cancel()  # a no-op for those that are done; the client may have gone meanwhile
    return found


def deadline_of(plugged: Plugged) -> float:
    """The seconds that a plugin has which is waited for."""
    said = getattr(plugged.plugin, "deadline", None)
    return float(said) if isinstance(said, int | float) else FETCH_DEADLINE


def _result(task: asyncio.Task[Any], plugged: Plugged, guard: Guard) -> Mapping[Key, Floats] | None:
    if task.done() and not task.cancelled():
        columns: Mapping[Key, Floats] | None = task.result()
        return columns
    guard.fault("DataProducer", plugged, "raised", f"no answer within {deadline_of(plugged):g} s")
    return None


def enter_fetched(fetched: Fetched, before: Candidates, now: Candidates, guard: Guard) -> Candidates:
    """Enters what was fetched for the candidates of then into those who are alive now; newcomers have NaN."""
    # By name and address: another endpoint may have the slot by now.
    order = {(endpoint.id, endpoint.hostport): index for index, endpoint in enumerate(before.endpoints)}
    places = np.array([order.get((endpoint.id, endpoint.hostport), len(before)) for endpoint in now.endpoints])
    for plugged, columns in fetched:
        enter(columns, plugged, before, guard)
        for key in getattr(plugged.plugin, "writes", ()):
            now.put(key, np.append(before[key], np.nan)[places])
    return now
