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
from epp.schedule.decision import Stage
from epp.schedule.guard import Guard


def run_profile(profile: Profile, request: Request, candidates: Candidates, peer: Pick | None, guard: Guard) -> Stage:
    """Runs a profile over the candidates; the stage's pick is None if its filters left nobody."""
    if peer is not None:
        candidates = candidates.narrow(np.ones(len(candidates), dtype=bool), peer)
    stage = Stage(profile, candidates, candidates)
    for plugged in profile.filters:
        mask = _mask(guard, plugged, request, stage.candidates)
        if mask is not None and not mask.all():
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
    mask = np.asarray(mask)
    if mask.shape != (len(c),) or mask.dtype != np.bool_:
        guard.fault("Filter", plugged, "shape", f"a mask of {len(c)} bools is due, not {mask.dtype} {mask.shape}")
        return None
    return mask


def _score(stage: Stage, request: Request, guard: Guard) -> None:
    c, scorers = stage.candidates, stage.profile.scorers
    raw = np.full((len(scorers), len(c)), np.nan)
    for row, (plugged, _) in enumerate(scorers):
        scores = guard.call("Scorer", plugged, plugged.plugin.score, request, c)
        if scores is not None:
            _enter(raw, row, scores, plugged, c, guard)
    stage.raw = raw
    # fmax takes the number where the other is NaN: no points for an unknown score.
    stage.counted = np.fmin(np.fmax(_stand_in(stage, raw), 0.0), 1.0)
    weights = np.array([weight for _, weight in scorers])
    stage.totals = weights @ stage.counted
    _demote_stale(stage, float(np.abs(weights).sum()))


def _enter(raw: Floats, row: int, scores: Any, plugged: Plugged, c: Candidates, guard: Guard) -> None:
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        guard.fault("Scorer", plugged, "shape", str(error))
        return
    if values.shape != (len(c),):
        guard.fault("Scorer", plugged, "shape", f"{len(c)} scores are due, not shape {values.shape}")
        return
    raw[row] = values
    unknown = np.isnan(values)
    if unknown.any() and (unknown & c.fresh).any():
        guard.fault("Scorer", plugged, "nan", "NaN for an endpoint with fresh metrics")


def _reads_metrics(c: Candidates) -> bool:
    return any(key.source == "metrics" for key in c.read)


def _stand_in(stage: Stage, raw: Floats) -> Floats:
    c = stage.candidates
    if c.fresh.any() or not _reads_metrics(c):
        return raw
    silent = np.isnan(raw).all(axis=1)
    if not silent.any():
        return raw
    stage.stood_in = tuple(int(row) for row in np.flatnonzero(silent))
    counted = raw.copy()
    counted[silent] = lower_is_better(c[INFLIGHT_REQUESTS])
    return counted


def _demote_stale(stage: Stage, most: float) -> None:
    c, totals = stage.candidates, stage.totals
    if totals is None or c.fresh.all() or not c.fresh.any() or not _reads_metrics(c):
        return
    totals[~c.fresh] -= 2 * most + 1  # totals lie within [-most, most]


def _pick(stage: Stage, request: Request, guard: Guard) -> Pick:
    c, totals, plugged = stage.candidates, stage.totals, stage.profile.picker
    assert totals is not None  # noqa: S101 (_score has just set them)
    order = _valid(guard.call("Picker", plugged, plugged.plugin.pick, request, c, totals), len(c))
    if order is None:
        guard.fault("Picker", plugged, "shape", f"distinct indices below {len(c)} are due")
        order = [int(totals.argmax())]
    return c.pick(stage.profile.name, order, float(totals[order[0]]))


def _valid(order: Any, n: int) -> Sequence[int] | None:
    try:
        indices = [int(index) for index in order]
    except (TypeError, ValueError):
        return None
    valid = indices and len(set(indices)) == len(indices) and min(indices) >= 0 and max(indices) < n
    return indices if valid else None
