"""What stands before a decision: screeners and admitters."""

import numpy as np

from epp.errors import NotFound, ResourceExhausted, ServiceUnavailable
from epp.plugin import Candidates, Mask, Request, Router
from epp.pool import all_true
from epp.schedule.guard import Guard


def screen(router: Router, request: Request, c: Candidates, guard: Guard) -> Candidates:
    """Those whom every screener lets through; a screener that fails is left out.

    Raises:
        ServiceUnavailable: nobody is left.
        NotFound: nobody is left, since what the request names isn't there.
    """
    kept: Mask | None = None
    for plugged in router.screeners:
        mask = guard.call("Screener", plugged, plugged.plugin.screen, request, c)
        if mask is None:
            continue
        try:
            mask = np.asarray(mask)
        except ValueError as error:
            guard.fault("Screener", plugged, "shape", str(error))
            continue
        if mask.shape != (len(c),) or mask.dtype != np.bool_:
            guard.fault("Screener", plugged, "shape", f"a mask of {len(c)} bools is due, not {mask.dtype} {mask.shape}")
            continue
        kept = mask if kept is None else kept & mask
        refusal = getattr(plugged.plugin, "refusal", None)
        if refusal is not None and not mask.any() and (text := guard.call("Screener", plugged, refusal, request, c)):
            raise NotFound(text)
        if not kept.any():
            message = f"screeners eliminated all endpoint candidates: {plugged.name!r} has left none"
            raise ServiceUnavailable(message, reason="rejected-no-endpoints")
    return c if kept is None or all_true(kept) else c.keeping(kept)


def admit(router: Router, request: Request, c: Candidates, guard: Guard) -> None:
    """Asks every admitter; one that fails admits.

    Raises:
        ResourceExhausted: one of them turns the request away. (llm-d answers 500 here.)
    """
    for plugged in router.admitters:
        reason = guard.call("Admission", plugged, plugged.plugin.deny, request, c)
        if reason is not None:
            raise ResourceExhausted(f"request cannot be admitted: {reason}", reason="rejected-saturated")
