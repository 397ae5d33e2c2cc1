"""The profile loop: producers, then the profile handler, which runs the profiles it wants."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from epp.errors import BadRequest
from epp.plugin import Candidates, Floats, Key, Pick, Plugged, Request, Router
from epp.schedule.decision import ENCODES, Decision
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
        values = _column(columns, key, plugged, len(c), guard)
        c.put(key, np.full(len(c), np.nan) if values is None else values)


def _column(columns: Mapping[Key, Any] | None, key: Key, plugged: Plugged, count: int, guard: Guard) -> Floats | None:
    if columns is None:
        return None
    try:
        values = np.asarray(columns[key], dtype=np.float64)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        guard.fault("DataProducer", plugged, "shape", f"{count} values are due for {key!r}: {error!r}")
        return None
    if values.shape != (count,):
        guard.fault("DataProducer", plugged, "shape", f"{count} values are due for {key!r}, not {values.shape}")
        return None
    return values


def decide(router: Router, request: Request, c: Candidates, guard: Guard) -> Decision:
    """Runs the profiles as the handler wants; the decision's `found()` is None if nobody was left.

    Raises:
        BadRequest: the handler turns the request away.
    """
    decision = Decision(c, encodes=getattr(router.handler.plugin, "encodes", ENCODES))
    run = _Run(router, request, decision, guard)
    handler = router.handler
    primary = guard.call("ProfilePicker", handler, _asked, handler, request, run)
    if isinstance(primary, BadRequest):
        raise primary
    if not decision.stages:
        # The handler has failed or runs nothing: the request still goes somewhere sensible.
        run(next(iter(router.profiles)))
    decision.handler_result = _primary(decision, primary, handler, guard)
    return decision


def _primary(decision: Decision, said: Any, handler: Plugged, guard: Guard) -> str:
    """The profile that the handler names, if it has run; otherwise the one that explains best why there is none."""
    ran = [stage.profile.name for stage in decision.stages]
    if said in ran:
        return str(said)
    if said is not None:
        guard.fault("ProfilePicker", handler, "shape", f"one of {ran} is due, not {said!r}")
        return ran[0]
    return next((stage.profile.name for stage in decision.stages if stage.pick is None), ran[0])


def _asked(handler: Plugged, request: Request, run: "_Run") -> Any:
    """What the handler says; a request that it turns away is no fault of the handler's."""
    try:
        return handler.plugin.decide(request, run)
    except BadRequest as error:
        return error


class _Run:
    """Runs the profiles of one decision; see `epp.plugin.Run`."""

    __slots__ = ("_decision", "_guard", "_request", "_router")

    def __init__(self, router: Router, request: Request, decision: Decision, guard: Guard) -> None:
        self._router, self._request, self._decision, self._guard = router, request, decision, guard

    def __call__(self, profile: str, peer: Pick | None = None) -> Pick | None:
        decision = self._decision
        stage = run_profile(self._router.profiles[profile], self._request, decision.candidates, peer, self._guard)
        decision.stages.append(stage)
        return stage.pick

    @property
    def candidates(self) -> Candidates:
        return self._decision.candidates
