"""One run of a profile: filters in order, weighted scores, the pick."""

import math
from dataclasses import replace

import numpy as np
import pytest

from epp.plugin import Plugged
from epp.schedule import Unguarded
from epp.schedule.profile import run_profile
from epp.testing import candidates, request
from tests.unit.schedule.parts import Keeping, Noting, Scoring, names, profile

NAN, INF = math.nan, math.inf

TOTALS = {
    "one scorer": ([([0.2, 0.8], 1)], [0.2, 0.8]),
    "weights are not normalised": ([([1, 0], 2), ([0, 1], 5)], [2, 5]),
    "a weight of 0": ([([1, 0], 0), ([0, 1], 1)], [0, 1]),
    "a negative weight": ([([1, 0], -2)], [-2, 0]),
    "scores are clamped": ([([7, -7], 1)], [1, 0]),
    "infinite ones too": ([([INF, -INF], 1)], [1, 0]),
    "no scorer": ([], [0, 0]),
    "unknown is no points": ([([NAN, 0.5], 1), ([0.25, 0.25], 1)], [0.25, 0.75]),
}


@pytest.mark.parametrize(("scorers", "totals"), TOTALS.values(), ids=TOTALS)
def test_totals(scorers, totals):
    """total = sum of clamp(score, 0, 1) * weight."""
    scoring = [(Scoring(says), weight) for says, weight in scorers]
    stage = run_profile(profile(*scoring), request(), candidates(count=2), None, Noting())
    assert stage.totals.tolist() == pytest.approx(totals)
    assert stage.pick.score == pytest.approx(max(totals))


FILTERS = {
    "none": ([], ["pod-0", "pod-1", "pod-2"], []),
    "one": ([("pod-0", "pod-2")], ["pod-0", "pod-2"], [2]),
    "one after the other": ([("pod-0", "pod-2"), ("pod-1", "pod-2")], ["pod-2"], [2, 1]),
    "one that keeps all": ([("pod-0", "pod-1", "pod-2"), ("pod-1",)], ["pod-1"], [3, 1]),
    "one that leaves nobody": ([("pod-0",), ("pod-1",), ("pod-0",)], None, [1, 0]),
}


@pytest.mark.parametrize(("kept", "picked", "left"), FILTERS.values(), ids=FILTERS)
def test_filters(kept, picked, left):
    """Each sees what the one before it has left; after one that leaves nobody nothing runs any more."""
    seen = []
    scorer = Scoring(lambda c: seen.append(len(c)) or np.zeros(len(c)))
    stage = run_profile(
        profile((scorer, 1), filters=[Keeping(*each) for each in kept]),
        request(),
        candidates(count=3),
        None,
        Noting(),
    )
    assert [len(c) for _, c in stage.kept] == left
    assert (names(stage.pick.endpoints) if stage.pick else None) == picked
    assert seen == ([] if picked is None else [len(picked)])
    assert (stage.emptied_by.name if stage.emptied_by else None) == ("filter-1" if picked is None else None)


class Failing:
    """A filter that fails as it is told to."""

    def __init__(self, says, *, mandatory):
        self._says, self.mandatory = says, mandatory

    def keep(self, request, c):
        if self._says == "raises":
            raise ZeroDivisionError
        return self._says


@pytest.mark.parametrize("says", ["raises", np.ones(5, dtype=bool), np.ones(2)], ids=["raises", "shape", "type"])
@pytest.mark.parametrize("mandatory", [False, True])
def test_a_filter_that_fails(says, mandatory):
    """It keeps everybody; nobody, where only it can say who can serve the request."""
    failing = Failing(says, mandatory=mandatory)
    stage = run_profile(profile(filters=[failing]), request(), candidates(count=2), None, Noting())
    assert stage.failed == {"filter-0"}
    assert len(stage.candidates) == (0 if mandatory else 2)
    assert (stage.emptied_by.plugin if stage.emptied_by else None) is (failing if mandatory else None)


class Picking:
    def __init__(self, says):
        self._says = says

    def pick(self, request, c, totals):
        return self._says


ORDERS = {
    "one": ([1], ["pod-1"], 0),
    "several": ((2, 0), ["pod-2", "pod-0"], 0),
    "numpy": (np.array([1, 0]), ["pod-1", "pod-0"], 0),
    "none": ([], ["pod-2"], 1),
    "twice": ([1, 1], ["pod-2"], 1),
    "below": ([-1], ["pod-2"], 1),
    "beyond": ([3], ["pod-2"], 1),
    "one beyond among others": ([0, 3], ["pod-2"], 1),
    "infinite": ([INF], ["pod-2"], 1),
    "not a number": ([NAN], ["pod-2"], 1),
    "no list": (5, ["pod-2"], 1),
    "words": (["pod-1"], ["pod-2"], 1),
}


@pytest.mark.parametrize(("says", "picked", "faults"), ORDERS.values(), ids=ORDERS)
def test_pick(says, picked, faults):
    """Indices best first; where they are none the best total is picked, and the fault counted."""
    guard = Noting()
    best_last = Scoring([0, 0.5, 1])
    stage = run_profile(profile((best_last, 1), picker=Picking(says)), request(), candidates(count=3), None, guard)
    assert names(stage.pick.endpoints) == picked
    assert guard.faults == [("Picker", "picker", "shape")] * faults
    assert stage.pick.score == stage.totals[int(picked[0][-1])]


def test_a_peer_reaches_the_plugins():
    """What another profile has picked is `c.peer`, before and after filters."""
    c = candidates(count=3)
    peer = c.pick("prefill", [1], 1.0)
    seen = []
    scorer = Scoring(lambda c: seen.append(c.peer) or np.zeros(len(c)))
    run_profile(profile((scorer, 1)), request(), c, peer, Noting())
    run_profile(profile((scorer, 1), filters=[Keeping("pod-0")]), request(), c, peer, Noting())
    run_profile(profile((scorer, 1)), request(), c, None, Noting())
    assert seen == [peer, peer, None]


def test_plugin_authors_see_their_faults():
    """With the guard for tests of one plugin nothing is swallowed."""
    with pytest.raises(ZeroDivisionError):
        run_profile(profile((Scoring(lambda c: 1 / 0), 1)), request(), candidates(), None, Unguarded())
    with pytest.raises(ValueError, match=r"scorer-0 \(Scorer\): shape"):
        run_profile(profile((Scoring([1, 2]), 1)), request(), candidates(count=3), None, Unguarded())


class Wrong:
    """A picker that points at nobody."""

    def pick(self, request, c, totals):
        return [99]


@pytest.mark.parametrize(
    ("scores", "inflight", "picked"), [([0, 1, 1], [0, 5, 2], "pod-2"), ([0.5, 1, 0], [0, 9, 0], "pod-1")]
)
def test_in_place_of_a_picker_that_fails(scores, inflight, picked):
    """The highest total, and among equals who has least to do; the explanation says that the picker has failed."""
    wrong = replace(profile((Scoring(scores), 1)), picker=Plugged("wrong", "wrong", Wrong()))
    stage = run_profile(wrong, request(), candidates(inflight_requests=inflight), None, Noting())
    assert names(stage.pick.endpoints) == [picked]
    assert stage.failed == {"wrong"}
