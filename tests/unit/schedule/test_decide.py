"""The profile loop: whatever the handler says, the request goes somewhere sensible, or it is clear why not."""

import math

import numpy as np
import pytest

from epp.plugin import Plugged, Router, request_key
from epp.schedule import decide, produce
from epp.testing import candidates, request
from tests.unit.schedule.parts import Keeping, Noting, Scoring, profile, router

FIRST = profile((Scoring([1, 0]), 1), name="first")
SECOND = profile((Scoring([0, 1]), 1), name="second")
NOBODY = profile(filters=[Keeping()], name="nobody")
BUSY = profile(filters=[Keeping(load_based=True)], name="busy")


def fails(run):
    run("first")
    raise ZeroDivisionError


def both(run):
    run("first")
    run("second")
    return "second"


# the handler, profiles; the pick's endpoint, the primary profile, who emptied it, faults
CASES = {
    "one profile": (lambda run: run("first") and "first", [FIRST], "pod-0", "first", None, []),
    "the second is primary": (both, [FIRST, SECOND], "pod-1", "second", None, []),
    "it runs nothing": (lambda run: None, [FIRST, SECOND], "pod-0", "first", None, []),
    "it fails at once": (lambda run: 1 / 0, [SECOND, FIRST], "pod-1", "second", None, ["raised"]),
    "it fails after a run": (fails, [SECOND, FIRST], "pod-0", "first", None, ["raised"]),
    "it runs what isn't there": (lambda run: run("third"), [FIRST], "pod-0", "first", None, ["raised"]),
    "it names what isn't there": (lambda run: run("first") and "third", [FIRST], "pod-0", "first", None, ["shape"]),
    "it names what didn't run": (
        lambda run: run("first") and "second",
        [FIRST, SECOND],
        "pod-0",
        "first",
        None,
        ["shape"],
    ),
    "it says something else": (lambda run: [run("first")], [FIRST], "pod-0", "first", None, ["shape"]),
    "nobody is left": (lambda run: run("nobody") and "nobody", [NOBODY], None, "nobody", "filter-0", []),
    "nobody is left and it says so": (lambda run: run("nobody") or "nobody", [NOBODY], None, "nobody", "filter-0", []),
    "one of two has nobody, and there is no primary": (
        lambda run: None if run("first") and run("busy") is None else "first",
        [FIRST, BUSY],
        None,
        "busy",
        "filter-0",
        [],
    ),
}


@pytest.mark.parametrize(("handler", "profiles", "picked", "primary", "emptied", "faults"), CASES.values(), ids=CASES)
def test_decide(handler, profiles, picked, primary, emptied, faults):
    """The primary profile's pick counts."""
    guard = Noting()
    decision = decide(router(handler, *profiles), request(), candidates(count=2), guard)
    found = decision.found()
    assert (found.endpoints[0].name if found else None) == picked
    assert decision.handler_result == primary
    assert (decision.emptied_by().name if decision.emptied_by() else None) == emptied
    assert guard.faults == [("ProfilePicker", "handler", fault) for fault in faults]


def test_a_profile_sees_what_another_has_picked():
    """run(profile, peer=...) hands it on; every pick is kept by its profile's name."""
    seen = []
    after = profile((Scoring(lambda c: seen.append(c.peer) or np.ones(len(c))), 1), name="after")
    chain = router(lambda run: run("after", peer=run("first")) and "first", FIRST, after)
    decision = decide(chain, request(), candidates(count=2), Noting())
    assert seen == [decision.primary]
    assert list(decision.picks) == ["first", "after"]


@pytest.mark.parametrize(
    ("encodes", "computing", "encoding"),
    [
        pytest.param(None, ["first", "vision"], ["encode"], id="by default"),
        pytest.param(("vision",), ["first", "encode"], ["vision"], id="as the handler says"),
        pytest.param((), ["first", "encode", "vision"], [], id="nobody"),
    ],
)
def test_who_only_encodes(encodes, computing, encoding):
    """The handler names the profiles that have nothing of the prompt computed."""
    profiles = [profile((Scoring([1, 0]), 1), name=name) for name in ("first", "encode", "vision")]
    chain = router(lambda run: [run(name) for name in ("first", "encode", "vision")] and "first", *profiles)
    if encodes is not None:
        chain.handler.plugin.encodes = encodes
    decision = decide(chain, request(), candidates(count=2), Noting())
    assert (list(decision.computing), list(decision.encoding)) == (computing, encoding)


def test_of_several_runs_the_last_counts():
    """A handler may run a profile again."""
    likes = iter([[1, 0], [0, 1]])
    twice = profile((Scoring(lambda c: np.array(next(likes), dtype=float)), 1), name="twice")
    chain = router(lambda run: run("twice") and run("twice") and "twice", twice)
    decision = decide(chain, request(), candidates(count=2), Noting())
    assert decision.primary.endpoints[0].name == "pod-1"
    assert decision.picks == {"twice": decision.primary}


ONE, TWO = request_key("one", "p"), request_key("two", "p")
WRITTEN = {
    "as due": ({ONE: [1, 2], TWO: np.array([3, 4])}, [[1, 2], [3, 4]], 0),
    "one is missing": ({ONE: [1, 2]}, [[1, 2], None], 1),
    "one is too long": ({ONE: [1, 2, 3], TWO: [3, 4]}, [None, [3, 4]], 1),
    "one is of words": ({ONE: ["a", "b"], TWO: [3, 4]}, [None, [3, 4]], 1),
    "one is a number": ({ONE: 1.0, TWO: [3, 4]}, [None, [3, 4]], 1),
    "one is ragged": ({ONE: [[1], [1, 2]], TWO: [3, 4]}, [None, [3, 4]], 1),
    "one is None": ({ONE: None, TWO: [3, 4]}, [None, [3, 4]], 1),
    "no mapping": ([1, 2], [None, None], 2),
    "a number": (7, [None, None], 2),
    "more than due": ({ONE: [1, 2], TWO: [3, 4], request_key("three", "p"): [5]}, [[1, 2], [3, 4]], 0),
}


class Writing:
    writes = (ONE, TWO)

    def __init__(self, says):
        self._says = says

    def produce(self, request, c):
        return self._says


@pytest.mark.parametrize(("says", "columns", "faults"), WRITTEN.values(), ids=WRITTEN)
def test_produce(says, columns, faults):
    """A column that is due and doesn't come in the right shape is unknown; each is counted."""
    guard, c = Noting(), candidates(count=2)
    producing = Router({}, Plugged("h", "h", None), parsers=(), producers=(Plugged("p", "test", Writing(says)),))
    produce(producing, request(), c, guard)
    for key, expected in zip((ONE, TWO), columns, strict=True):
        assert c[key].tolist() == pytest.approx([math.nan] * 2 if expected is None else expected, nan_ok=True)
    assert guard.faults == [("DataProducer", "p", "shape")] * faults
