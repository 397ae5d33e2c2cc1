"""The fetchers: the only I/O of a decision, under a deadline, and before its synchronous step."""

import asyncio
from collections.abc import Mapping

import numpy as np

from epp.plugin import Candidates, Floats, Key, Plugged, Request, Router
from epp.schedule.guard import Guard
from epp.schedule.scheduler import enter

FETCH_DEADLINE = 0.4
"""Seconds that the fetchers of a decision have; llm-d's budget for a data producer."""

Fetched = list[tuple[Plugged, Mapping[Key, Floats] | None]]


async def fetch(router: Router, request: Request, c: Candidates, guard: Guard) -> Fetched:
    """Runs the fetchers at once, under one deadline; a failed one is counted, never fatal."""
    tasks = [asyncio.ensure_future(plugged.plugin.fetch(request, c)) for plugged in router.fetchers]
    await asyncio.wait(tasks, timeout=FETCH_DEADLINE)
    fetched: Fetched = []
    for plugged, task in zip(router.fetchers, tasks, strict=True):
        if not task.done():
            task.cancel()
            guard.fault("DataProducer", plugged, "raised", f"no answer within {FETCH_DEADLINE} s")
            fetched.append((plugged, None))
        else:
            fetched.append((plugged, guard.call("DataProducer", plugged, task.result)))
    return fetched


def enter_fetched(fetched: Fetched, before: Candidates, now: Candidates, guard: Guard) -> Candidates:
    """Enters what was fetched for the candidates of then into those who are alive now; newcomers have NaN."""
    order = {int(slot): index for index, slot in enumerate(before.slots)}
    places = np.array([order.get(int(slot), len(before)) for slot in now.slots])
    for plugged, columns in fetched:
        enter(columns, plugged, before, guard)
        for key in getattr(plugged.plugin, "writes", ()):
            now.put(key, np.append(before[key], np.nan)[places])
    return now
