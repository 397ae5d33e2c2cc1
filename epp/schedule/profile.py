"""One run of one profile: filters in order, then weighted scores, then the pick.

A scheduling cycle is llm-d's: total = sum of clamp(score, 0, 1) * weight, weights not normalised. Beyond it, an
endpoint whose metrics are missing or stale ranks below every fresh one, and if nobody's are fresh our own in-flight
counts decide in place of the scorers that have nothing to say.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from epp.keys import INFLIGHT_REQUESTS
from epp.plugin import Candidates, Floats, Mask, Pick, Plugged, Profile, Request, lower_is_better
from epp.pool import all_true
from epp.schedule.decision import Stage
from epp.schedule.guard import Guard


def run_profile(profile: Profile, request: Request, candidates: Candidates, peer: Pick | None, guard: Guard) -> Stage:
    """Runs a profile over the candidates; the stage's pick is None if its filters left nobody."""
    if peer is not None:
        candidates = candidates.narrow(np.ones(len(candidates), dtype=bool), peer)
    stage = Stage(profile, candidates, candidates)
    for plugged in profile.filters:
        mask = _mask(guard, plugged, request, stage.candidates)
        if mask is None:
            stage.failed.add(plugged.name)
            if getattr(plugged.plugin, "mandatory", False):
                stage.candidates = stage.candidates.narrow(np.zeros(len(stage.candidates), dtype=bool))
        elif not all_true(mask):
            stage.candidates = stage.candidates.narrow(mask)
        stage.kept.append((plugged, stage.candidates))
        if not len(stage.candidates):
            return stage
    _score(stage, request, guard)
    stage.pick = _pick(stage, request, guard)
    return stage


def _mask(guard: Guard, plugged: Plugged, request: Request, c: Candidates) -> Mask | None:
    mask = guard.call("Filter", plugged, plugged.plugin.keep, request, c)
    if mask is None:
        return None
    try:
        mask = np.asarray(mask)
    except ValueError as error:
        guard.fault("Filter", plugged, "shape", str(error))
        return None
    if mask.shape != (len(c),) or mask.dtype != np.bool_:
        guard.fault("Filter", plugged, "shape", f"a mask of {len(c)} bools is due, not {mask.dtype} {mask.shape}")
        return None
    return mask


def _score(stage: Stage, request: Request, guard: Guard) -> None:
    c, profile = stage.candidates, stage.profile
    raw = np.empty((len(profile.scorers), len(c)))
    failed: list[int] = []
    for row, (plugged, _) in enumerate(profile.scorers):
        scores = _scores(guard, plugged, request, c)
        if scores is None:
            failed.append(row)
            stage.failed.add(plugged.name)
        raw[row] = np.nan if scores is None else scores
    stage.raw = stage.counted = raw
    unknown = np.isnan(raw)
    if np.count_nonzero(unknown):
        _report_unknown(stage, unknown, failed, guard)
        stage.counted = _stand_in(stage, raw, unknown)
    # fmax takes the number where the other is NaN: no points for an unknown score.
    stage.counted = np.minimum(np.fmax(stage.counted, 0.0), 1.0)
    stage.totals = profile.weights @ stage.counted
    if not c.all_fresh:
        _demote_stale(stage, stage.totals)


def _scores(guard: Guard, plugged: Plugged, request: Request, c: Candidates) -> Floats | None:
    scores = guard.call("Scorer", plugged, plugged.plugin.score, request, c)
    if scores is None:
        return None
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        guard.fault("Scorer", plugged, "shape", str(error))
        return None
    if values.shape != (len(c),):
        guard.fault("Scorer", plugged, "shape", f"{len(c)} scores are due, not shape {values.shape}")
        return None
    return values


def _report_unknown(stage: Stage, unknown: Mask, counted: list[int], guard: Guard) -> None:
    """Counts scorers that say nothing where they could know; `counted` are those whose fault is counted already."""
    c = stage.candidates
    told = c.fresh.copy()
    for key in c.read:  # somebody else's column may be what is missing: then nobody is blamed
        told &= ~np.isnan(c[key])
    at_fault: Mask = np.logical_or.reduce(unknown & told, axis=1)
    at_fault[counted] = False
    for (plugged, _), faulty in zip(stage.profile.scorers, at_fault, strict=True):
        if faulty:
            guard.fault("Scorer", plugged, "nan", "NaN for an endpoint of which nothing that was read is missing")


def _reads_metrics(c: Candidates) -> bool:
    return any(map(c.scraped, c.read))


def _stand_in(stage: Stage, raw: Floats, unknown: Mask) -> Floats:
    """In-flight counts in place of the scorers that say nothing, where nobody has fresh metrics."""
    c = stage.candidates
    silent = unknown.all(axis=1)
    if c.fresh.any() or not silent.any() or not _reads_metrics(c):
        return raw
    stage.stood_in = tuple(int(row) for row in np.flatnonzero(silent))
    counted = raw.copy()
    counted[silent] = lower_is_better(c[INFLIGHT_REQUESTS])
    return counted


def _demote_stale(stage: Stage, totals: Floats) -> None:
    c = stage.candidates
    if c.fresh.any() and _reads_metrics(c):
        totals[~c.fresh] -= 2 * stage.profile.bound + 1


def _pick(stage: Stage, request: Request, guard: Guard) -> Pick:
    c, totals, plugged = stage.candidates, stage.totals, stage.profile.picker
    assert totals is not None  # noqa: S101 (_score has just set them)
    picked = guard.call("Picker", plugged, plugged.plugin.pick, request, c, totals)
    order = None if picked is None else _valid(picked, len(c))
    if order is None:
        if picked is not None:
            guard.fault("Picker", plugged, "shape", f"distinct indices below {len(c)} are due")
        stage.failed.add(plugged.name)
        order = [int(np.lexsort((c[INFLIGHT_REQUESTS], -totals))[0])]
    return c.pick(stage.profile.name, order, float(totals[order[0]]))


def _valid(order: Any, n: int) -> Sequence[int] | None:
    try:
        indices = [int(index) for index in order]
    except (TypeError, ValueError, OverflowError):
        return None
    if len(indices) == 1:
        return indices if 0 <= indices[0] < n else None
    valid = indices and len(set(indices)) == len(indices) and min(indices) >= 0 and max(indices) < n
    return indices if valid else None
