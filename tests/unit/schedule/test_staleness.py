"""Endpoints whose metrics are stale or were never scraped: they rank below fresh ones, and never cost a request."""

import math

import numpy as np
import pytest

from epp.keys import INFLIGHT_REQUESTS, KV_USAGE, WAITING
from epp.plugin import lower_is_better
from epp.schedule.profile import run_profile
from epp.testing import candidates, request
from tests.unit.schedule.parts import Keeping, Noting, Scoring, names, profile

NAN = math.nan
QUEUE = Scoring(lambda c: lower_is_better(c[WAITING]))
CACHE = Scoring(lambda c: 1 - c[KV_USAGE])
BUSY = Scoring(lambda c: lower_is_better(c[INFLIGHT_REQUESTS]))


def liking(*scores: float) -> Scoring:
    """A scorer that knows nothing of metrics, such as one of sessions or prefixes."""
    return Scoring(scores)


# scorers with weights, columns, the order in which endpoints 0, 1, ... are preferred
CASES = {
    "an idle stale one is behind the longest fresh queue": (
        [(QUEUE, 1)],
        {"waiting": [0, 50, 90], "stale": [True, False, False]},
        [1, 2, 0],
    ),
    "so is one that was never scraped": (
        [(QUEUE, 1), (CACHE, 1)],
        {"waiting": [NAN, 9], "kv_usage": [NAN, 0.9], "stale": [True, False]},
        [1, 0],
    ),
    "whatever else speaks for it": (
        [(QUEUE, 1), (liking(1, 0), 100)],
        {"waiting": [0, 50], "stale": [True, False]},
        [1, 0],
    ),
    "also under a negative weight": (
        [(QUEUE, 1), (liking(0, 1), -100)],
        {"waiting": [0, 50], "stale": [True, False]},
        [1, 0],
    ),
    "stale ones among themselves go by what is known": (
        [(QUEUE, 1), (liking(0, 0, 1), 1)],
        {"waiting": [5, 5, 5], "stale": [False, True, True]},
        [0, 2, 1],
    ),
    "none is fresh: our own count decides": (
        [(QUEUE, 2), (CACHE, 1)],
        {"waiting": [0, 50, 9], "kv_usage": [0, 1, 0], "inflight_requests": [3, 1, 2], "stale": [True] * 3},
        [1, 2, 0],
    ),
    "none was ever scraped: the same": (
        [(QUEUE, 2)],
        {"waiting": [NAN] * 3, "inflight_requests": [0, 2, 1], "stale": [True] * 3},
        [0, 2, 1],
    ),
    "it stands in with the weight of those that are silent": (
        [(QUEUE, 3), (liking(1, 0), 2)],
        {"waiting": [0, 0], "inflight_requests": [4, 0], "stale": [True, True]},
        [1, 0],
    ),
    "and only for those": (
        [(QUEUE, 1), (liking(1, 0), 2)],
        {"waiting": [0, 0], "inflight_requests": [4, 0], "stale": [True, True]},
        [0, 1],
    ),
    "who reads no metrics doesn't care": (
        [(liking(1, 0), 1)],
        {"inflight_requests": [9, 0], "stale": [True, False]},
        [0, 1],
    ),
    "nor does our own count": (
        [(BUSY, 1)],
        {"inflight_requests": [1, 2], "stale": [True, False]},
        [0, 1],
    ),
    "all fresh: nothing of this": (
        [(QUEUE, 1)],
        {"waiting": [1, 0], "inflight_requests": [0, 9], "stale": [False, False]},
        [1, 0],
    ),
}


@pytest.mark.parametrize(("scorers", "columns", "order"), CASES.values(), ids=CASES)
def test_order(scorers, columns, order):
    """Every endpoint stays a candidate; the picker sees them in this order, and nobody is at fault."""
    guard = Noting()
    stage = run_profile(profile(*scorers), request(), candidates(**columns), None, guard)
    assert names(stage.pick.endpoints) == [f"pod-{index}" for index in order]
    assert np.isfinite(stage.totals).all()
    assert guard.faults == []


@pytest.mark.parametrize("stale", [[True, True], [True, False], [False, False]])
@pytest.mark.parametrize("waiting", [[NAN, NAN], [0, NAN], [7, 7]])
def test_staleness_alone_never_costs_a_request(stale, waiting):
    """Whoever is stale, somebody is picked."""
    c = candidates(waiting=waiting, stale=stale)
    assert run_profile(profile((QUEUE, 1)), request(), c, None, Noting()).pick is not None


def test_what_stood_in_is_told():
    """The explanation has the raw scores, which are unknown, and what counted in their place."""
    c = candidates(waiting=[0, 0], inflight_requests=[4, 0], stale=[True, True])
    stage = run_profile(profile((liking(0.5, 0.5), 1), (QUEUE, 1)), request(), c, None, Noting())
    assert stage.stood_in == (1,)
    assert np.isnan(stage.raw[1]).all()
    assert stage.counted.tolist() == [[0.5, 0.5], [0, 1]]
    assert stage.totals.tolist() == [0.5, 1.5]


def test_what_is_fresh_counts_after_the_filters():
    """If the filters leave only stale ones, our own count decides among them."""
    c = candidates(waiting=[0, 9, 9], inflight_requests=[0, 5, 1], stale=[False, True, True])
    keep = Keeping("pod-1", "pod-2")
    stage = run_profile(profile((QUEUE, 1), filters=[keep]), request(), c, None, Noting())
    assert names(stage.pick.endpoints) == ["pod-2", "pod-1"]


def test_unknown_although_fresh_is_the_scorers_fault():
    """No points, one count a profile run, and no demotion: the endpoint is alive."""
    guard = Noting()
    c = candidates(waiting=[0, 5], stale=[False, False])
    stage = run_profile(profile((QUEUE, 1), (liking(NAN, 0.1), 10)), request(), c, None, guard)
    assert stage.totals.tolist() == [1.0, 1.0]
    assert guard.faults == [("Scorer", "scorer-1", "nan")]


SILENT = {
    "somebody is fresh": (QUEUE, {"waiting": [NAN] * 3, "stale": [True, False, False]}, [1, 2, 0]),
    "nobody reads metrics": (liking(NAN, NAN, NAN), {"stale": [True] * 3}, [0, 1, 2]),
}


@pytest.mark.parametrize(("scorer", "columns", "order"), SILENT.values(), ids=SILENT)
def test_nothing_stands_in(scorer, columns, order):
    """Our own count is for the case that nobody's metrics are known, not for a scorer that says nothing."""
    c = candidates(inflight_requests=[9, 5, 0], **columns)
    stage = run_profile(profile((scorer, 1)), request(), c, None, Noting())
    assert stage.stood_in == ()
    assert names(stage.pick.endpoints) == [f"pod-{index}" for index in order]
