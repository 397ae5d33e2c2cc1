"""What stands before a decision: screeners and admitters."""

import numpy as np
import pytest

from epp.errors import ResourceExhausted, ServiceUnavailable
from epp.plugin import Plugged, Profile, Router
from epp.schedule import admit, screen
from epp.testing import candidates, request


class Guard:
    """Lets results through, and keeps the faults."""

    def __init__(self):
        self.faults = []

    def call(self, point, plugged, function, *arguments):
        try:
            return function(*arguments)
        except ZeroDivisionError:
            self.faults.append((point, plugged.name, "raised"))

    def fault(self, point, plugged, fault, detail):
        self.faults.append((point, plugged.name, fault))


class Screen:
    def __init__(self, mask):
        self._mask = mask

    def screen(self, request, c):
        return np.array(self._mask) if self._mask is not None else 1 / 0


class Deny:
    def __init__(self, reason):
        self._reason = reason

    def deny(self, request, c):
        return self._reason


def router(screeners=(), admitters=()):
    def plugged(plugins):
        return tuple(Plugged(f"plugin-{i}", "test", plugin) for i, plugin in enumerate(plugins))

    picker = Plugged("picker", "test", None)
    return Router(
        {"default": Profile("default", (), (), picker)},
        picker,
        (),
        screeners=plugged(screeners),
        admitters=plugged(admitters),
    )


CASES = {
    "one": ([[True, False, True]], [0, 2], []),
    "the intersection of two": ([[True, False, True], [False, True, True]], [2], []),
    "one that fails is left out": ([None, [False, True, True]], [1, 2], ["raised"]),
    "one of the wrong shape is left out": ([[True], [True, True, False]], [0, 1], ["shape"]),
    "one of the wrong type is left out": ([[1.0, 0.0, 0.0]], [0, 1, 2], ["shape"]),
    "all": ([[True, True, True]], [0, 1, 2], []),
}


@pytest.mark.parametrize(("masks", "left", "faults"), CASES.values(), ids=CASES.keys())
def test_screen(masks, left, faults):
    """Who stays is in the masks of all screeners that work."""
    guard, c = Guard(), candidates(count=3)
    kept = screen(router([Screen(mask) for mask in masks]), request(), c, guard)
    assert kept.slots.tolist() == [c.slots[i] for i in left]
    assert [fault for _, _, fault in guard.faults] == faults


def test_screened_out():
    """Nobody left is 503, and the message names who did it."""
    with pytest.raises(ServiceUnavailable, match="'plugin-1' has left none") as caught:
        screen(router([Screen([True, False]), Screen([False, True])]), request(), candidates(count=2), Guard())
    assert caught.value.reason == "rejected-no-endpoints"


@pytest.mark.parametrize("mask", [None, [True], [1.0, 0.0]], ids=["raises", "shape", "type"])
def test_a_mandatory_screener_that_fails(mask):
    """Nobody else can say who may serve the request; what it would say of a mask of its own is not asked."""
    failing = Screen(mask)
    failing.mandatory, failing.refusal = True, lambda request, c: "not there"
    with pytest.raises(ServiceUnavailable, match="the screener 'plugin-0' has failed") as caught:
        screen(router([failing, Screen([True, True])]), request(), candidates(count=2), Guard())
    assert caught.value.reason == "rejected-no-endpoints"


def test_a_screener_without_an_answer():
    """None lets everybody through, mandatory or not."""

    class Silent:
        mandatory = True

        def screen(self, request, c):
            return None

    c = candidates(count=2)
    assert screen(router([Silent()]), request(), c, Guard()) is c


def test_admit():
    """The first reason counts; without one the request goes on."""
    admit(router(admitters=[Deny(None)]), request(), candidates(count=1), Guard())
    with pytest.raises(ResourceExhausted, match="too busy"):
        admit(router(admitters=[Deny(None), Deny("too busy"), Deny("other")]), request(), candidates(count=1), Guard())
