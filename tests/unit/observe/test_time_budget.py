"""A plugin that takes longer than its budget again and again is left out for a while."""

from dataclasses import dataclass, field

import pytest

from epp.observe.guard import Budget, TimingGuard
from epp.observe.series import Buckets, Family, Spec
from epp.observe.table import PLUGIN, SCHEDULING
from epp.plugin import Plugged
from epp.testing import FakeClock


class Mandatory:
    mandatory = True


LIMIT = 0.005
PLUGGED = Plugged("mine", "my-type", None)


@dataclass
class Setup:
    """A guard with a clock of ours; `call` calls a plugin that takes so many seconds."""

    clock: FakeClock = field(default_factory=FakeClock)
    seconds: float = LIMIT

    def __post_init__(self) -> None:
        durations = Family(Spec("durations", "histogram", PLUGIN, "", SCHEDULING))
        faults, self.overruns, self.bypasses = (
            Family(Spec(name, "counter", PLUGIN, "")) for name in ("faults", "overruns", "bypasses")
        )
        budget = Budget(self.seconds, self.overruns, self.bypasses, in_a_row=3, pause=10.0) if self.seconds else None
        self.guard = TimingGuard(durations, faults, budget, self.clock)

    def call(self, took: float, point: str = "Scorer", plugged: Plugged = PLUGGED) -> bool:
        """Whether it was called."""

        def plugin() -> bool:
            self.clock.advance(took)
            return True

        return bool(self.guard.call(point, plugged, plugin))

    def counted(self, point: str = "Scorer") -> tuple[float, float]:
        labels = (point, PLUGGED.type, PLUGGED.name)
        return self.overruns.value(*labels).value, self.bypasses.value(*labels).value


@pytest.mark.parametrize(
    ("times", "called", "overruns"),
    [
        pytest.param([6, 6, 6, 1], [1, 1, 1, 0], 3, id="in a row"),
        pytest.param([6, 6, 1, 6, 6, 1], [1] * 6, 4, id="with timely calls between"),
        pytest.param([5] * 5, [1] * 5, 0, id="just in time"),
    ],
)
def test_overruns(times, called, overruns):
    """Only overruns in a row leave a plugin out; all of them are counted."""
    setup = Setup()
    assert [setup.call(ms / 1000 - 1e-9) for ms in times] == list(map(bool, called))
    assert setup.counted() == (overruns, called.count(0))


def test_tried_again(caplog):
    """After the pause one call is made: a timely one ends the bypass, a late one begins the next."""
    setup = Setup()
    for _ in range(3):
        setup.call(0.02)
    assert "plugin mine (Scorer) is left out for 10 s: it took 20.0 ms, and its budget is 5.0 ms" in caplog.text
    setup.clock.advance(9.9)
    assert not setup.call(0.0)
    setup.clock.advance(0.2)
    assert setup.call(0.02)
    assert not setup.call(0.0)
    setup.clock.advance(10.1)
    assert [setup.call(0.0), setup.call(0.02), setup.call(0.02), setup.call(0.0)] == [True] * 4
    assert setup.counted() == (6, 2)


@pytest.mark.parametrize(
    ("seconds", "point"),
    [
        pytest.param(0.0, "Scorer", id="no budget"),
        pytest.param(LIMIT, "ProfilePicker", id="a handler's time is its profiles'"),
        pytest.param(LIMIT, "ResponseParsing", id="a parser has no stand-in"),
    ],
)
def test_unlimited(seconds, point):
    """Some calls are never left out."""
    setup = Setup(seconds=seconds)
    assert [setup.call(1.0, point) for _ in range(9)] == [True] * 9
    assert setup.counted(point) == (0, 0)


def test_mandatory(caplog):
    """One that says who can serve a request is called however long it takes; what it takes is counted and told."""
    setup, plugged = Setup(), Plugged("mine", "my-type", Mandatory())
    assert [setup.call(0.02, "Filter", plugged) for _ in range(7)] == [True] * 7
    assert setup.counted("Filter") == (7, 0)
    told = [record.message for record in caplog.records]
    assert (
        told == ["plugin mine (Filter) is mandatory, and not left out: it took 20.0 ms, and its budget is 5.0 ms"] * 2
    )


def test_each_for_itself():
    """An overrun at one extension point, or of another instance, leaves nobody else out."""
    setup, other = Setup(), Plugged("other", "my-type", None)
    for _ in range(3):
        setup.call(0.02)
    assert [setup.call(0.0), setup.call(0.0, "Filter"), setup.call(0.0, plugged=other)] == [False, True, True]


def test_a_replaced_plugin():
    """The next configuration's plugin of the same name has a fresh start; the counts go on."""
    setup, following = Setup(), Plugged(PLUGGED.name, PLUGGED.type, None)
    for _ in range(3):
        setup.call(0.02)
    setup.guard.forget([PLUGGED])
    assert setup.call(0.0, plugged=following)
    (shown,) = setup.guard.shown(following)
    assert (shown["calls"], shown["overruns"], shown["left_out_for_seconds"]) == (4, 3, 0.0)


def test_shown():
    """The debug page tells calls, faults, overruns and times, by extension point."""
    setup = Setup()
    setup.guard.call("Scorer", PLUGGED, lambda: 1 / 0)
    for _ in range(3):
        setup.call(0.008)
    setup.call(0.0)
    (shown,) = setup.guard.shown(PLUGGED)
    assert shown == {
        "extension_point": "Scorer",
        "calls": 4,
        "faults": {"raised": 1.0},
        "overruns": 3.0,
        "calls_left_out": 1.0,
        "left_out_for_seconds": 10.0,
        "mean_us": 6000.0,
        "p50_us": pytest.approx(5000 + 5000 / 3, abs=0.1),
        "p99_us": pytest.approx(5000 + 5000 * 2.96 / 3, abs=0.1),
    }


@pytest.mark.parametrize(
    ("values", "share", "quantile"),
    [
        pytest.param([], 0.5, None, id="none"),
        pytest.param([0.5], 0.5, 0.5, id="the middle of the first bucket"),
        pytest.param([1.5, 1.5, 3.0, 3.0], 0.5, 2.0, id="a bucket's end"),
        pytest.param([0.5, 9.0], 0.99, 4.0, id="beyond the last bound"),
    ],
)
def test_quantile(values, share, quantile):
    """A quantile is linear within its bucket."""
    buckets = Buckets((1.0, 2.0, 4.0))
    for value in values:
        buckets.observe(value)
    assert buckets.quantile(share) == quantile
