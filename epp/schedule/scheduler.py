"""The profile loop: producers, then the profile handler, which runs the profiles it wants."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from epp.plugin import Candidates, Key, Pick, Plugged, Request, Router
from epp.schedule.decision import Decision
from epp.schedule.guard import Guard
from epp.schedule.profile import run_profile


def produce(router: Router, request: Request, c: Candidates, guard: Guard) -> None:
    """Lets every producer write its columns; what a failed one should have written stays unknown (NaN)."""
    for plugged in router.producers:
        columns = guard.call("DataProducer", plugged, plugged.plugin.produce, request, c)
        enter(columns, plugged, c, guard)


def enter(columns: Mapping[Key, Any] | None, plugged: Plugged, c: Candidates, guard: Guard) -> None:
    """Enters produced or fetched columns, and NaN for those that are due and did not come in the right shape."""
    for key in getattr(plugged.plugin, "writes", ()):
        values = columns.get(key) if columns is not None else None
        if values is None or np.shape(values) != (len(c),):
            if columns is not None:
                guard.fault("DataProducer", plugged, "shape", f"{len(c)} values are due for {key!r}")
            values = np.full(len(c), np.nan)
        c.put(key, values)


def decide(router: Router, request: Request, c: Candidates, guard: Guard) -> Decision:
    """Runs the profiles as the handler wants; the decision's `found()` is None if nobody was left."""
    decision = Decision(c)
    run = partial(_run, router, request, decision, guard)
    handler = router.handler
    primary = guard.call("ProfilePicker", handler, handler.plugin.decide, request, run)
    if primary is None and not decision.stages:
        # The handler has failed or runs nothing: the request still goes somewhere sensible.
        primary = next(iter(router.profiles))
        run(primary)
    decision.handler_result = primary if primary is not None else decision.stages[0].profile.name
    return decision


def _run(
    router: Router, request: Request, decision: Decision, guard: Guard, profile: str, peer: Pick | None = None
) -> Pick | None:
    stage = run_profile(router.profiles[profile], request, decision.candidates, peer, guard)
    decision.stages.append(stage)
    return stage.pick
