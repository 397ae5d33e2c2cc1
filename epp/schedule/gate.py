"""What stands before a decision: screeners and admitters."""

from typing import Any

import numpy as np

from epp.errors import NotFound, ResourceExhausted, ServiceUnavailable
from epp.plugin import Candidates, Mask, Plugged, Request, Router, Screener
from epp.pool import all_true
from epp.schedule.guard import Guard


def screen(router: Router, request: Request, c: Candidates, guard: Guard) -> Candidates:
    """Those whom every screener lets through; a screener that fails is left out, unless it is mandatory.

    Raises:
        ServiceUnavailable: nobody is left, or a mandatory screener has failed.
        NotFound: nobody is left, since what the request names isn't there.
    """
    kept: Mask | None = None
    for plugged in router.screeners:
        mask = _mask(guard.call("Screener", plugged, _said, plugged.plugin, request, c), len(c), plugged, guard)
        if mask is None:
            continue
        kept = mask if kept is None else kept & mask
        refusal = getattr(plugged.plugin, "refusal", None)
        if refusal is not None and not mask.any() and (text := guard.call("Screener", plugged, refusal, request, c)):
            raise NotFound(text)
        if not kept.any():
            message = f"screeners eliminated all endpoint candidates: {plugged.name!r} has left none"
            raise ServiceUnavailable(message, reason="rejected-no-endpoints")
    return c if kept is None or all_true(kept) else c.keeping(kept)


def _said(screener: Screener, request: Request, c: Candidates) -> tuple[Any]:
    """The answer, which may be None; the guard has None for what has failed."""
    return (screener.screen(request, c),)


def _mask(said: tuple[Any] | None, count: int, plugged: Plugged, guard: Guard) -> Mask | None:
    """The mask that was given; None where there is none, or none that can be used."""
    if said is not None and said[0] is None:
        return None
    mask = None if said is None else _checked(said[0], count, plugged, guard)
    if mask is None and getattr(plugged.plugin, "mandatory", False):
        message = f"the screener {plugged.name!r} has failed, and nobody else can say who may serve the request"
        raise ServiceUnavailable(message, reason="rejected-no-endpoints")
    return mask


def _checked(said: Any, count: int, plugged: Plugged, guard: Guard) -> Mask | None:
    try:
        mask = np.asarray(said)
    except ValueError as error:
        guard.fault("Screener", plugged, "shape", str(error))
        return None
    if mask.shape != (count,) or mask.dtype != np.bool_:
        guard.fault("Screener", plugged, "shape", f"a mask of {count} bools is due, not {mask.dtype} {mask.shape}")
        return None
    return mask


def admit(router: Router, request: Request, c: Candidates, guard: Guard) -> None:
    """Asks every admitter; one that fails admits.

    Raises:
        ResourceExhausted: one of them turns the request away. (llm-d answers 500 here.)
    """
    for plugged in router.admitters:
        reason = guard.call("Admission", plugged, plugged.plugin.deny, request, c)
        if reason is not None:
            raise ResourceExhausted(f"request cannot be admitted: {reason}", reason="rejected-saturated")
