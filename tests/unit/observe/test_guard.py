"""The guard around plugin calls: it times, counts and catches, and is soon quiet about what keeps failing."""

import asyncio
import logging
import sys

import pytest

from epp.observe.guard import QUIET_AFTER, TimingGuard
from epp.observe.series import Family
from epp.observe.table import SPECS
from epp.plugin import Plugged

SCORER = Plugged("mine", "my-scorer", object())
BY_NAME = {spec.name: spec for spec in SPECS}


class Guarded:
    def __init__(self) -> None:
        self.durations = Family(BY_NAME["llm_d_epp_plugin_duration_seconds"])
        self.faults = Family(BY_NAME["llm_d_epp_plugin_faults_total"])
        self.guard = TimingGuard(self.durations, self.faults)

    def counted(self) -> dict[tuple[str, ...], float]:
        return {labels: child.value for labels, child in self.faults.children.items()}


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_a_result_passes_and_the_call_is_timed(guarded: Guarded) -> None:
    assert guarded.guard.call("Scorer", SCORER, divmod, 7, 2) == (3, 1)
    buckets = guarded.durations.buckets("Scorer", "my-scorer", "mine")
    assert (sum(buckets.counts), 0 < buckets.sum < 1) == (1, True)
    assert guarded.counted() == {}


def failing() -> None:
    raise ValueError("a word of the prompt")


@pytest.mark.parametrize(("level", "told"), [(logging.INFO, False), (logging.DEBUG, True)], ids=["info", "debug"])
def test_an_exception_is_counted_and_logged(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, level: int, told: bool
) -> None:
    """With the plugin's name and the line that it came from; what it says may quote the prompt, so only at -v 4."""
    with caplog.at_level(level, "epp.observe.guard"):
        assert guarded.guard.call("Scorer", SCORER, failing) is None
    assert guarded.counted() == {("Scorer", "my-scorer", "mine", "raised"): 1}
    (logged,) = caplog.records
    assert "plugin mine (Scorer) raised: ValueError at test_guard.py:" in logged.getMessage()
    assert ("a word of the prompt" in caplog.text) is told
    assert sum(guarded.durations.buckets("Scorer", "my-scorer", "mine").counts) == 1


NOTHING = {"Filter": 1, "Scorer": 1, "Picker": 1, "DataProducer": 1, "ProfilePicker": 0, "PreRequest": 0}


@pytest.mark.parametrize(("point", "faults"), NOTHING.items())
def test_nothing_is_a_fault_where_something_is_due(guarded: Guarded, point: str, faults: int) -> None:
    """A filter that forgets its `return` would otherwise be left out in silence."""
    assert guarded.guard.call(point, SCORER, lambda: None) is None
    assert sum(guarded.counted().values()) == faults


def test_a_plugin_cant_end_the_process(guarded: Guarded) -> None:
    """Calling exit() is a fault like any other."""
    assert guarded.guard.call("Scorer", SCORER, sys.exit, 3) is None
    assert sum(guarded.counted().values()) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, asyncio.CancelledError])
def test_what_ends_the_process_or_the_task_passes(guarded: Guarded, stop: type[BaseException]) -> None:
    """It is no fault of the plugin's."""

    def stopping() -> None:
        raise stop

    with pytest.raises(stop):
        guarded.guard.call("Scorer", SCORER, stopping)
    assert guarded.counted() == {}


def test_faults_are_told_apart(guarded: Guarded) -> None:
    """By extension point, plugin and fault."""
    guarded.guard.fault("Scorer", SCORER, "nan", "a detail")
    guarded.guard.fault("Scorer", SCORER, "nan", "a detail")
    guarded.guard.fault("Scorer", SCORER, "shape", "a detail")
    guarded.guard.fault("Filter", Plugged("other", "o", None), "shape", "a detail")
    assert sorted(guarded.counted().values()) == [1, 1, 2]


def test_it_is_soon_quiet(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """A plugin that fails at every request is logged so many times, the last time with a word on that."""
    with caplog.at_level(logging.WARNING):
        for _ in range(QUIET_AFTER + 50):
            guarded.guard.call("Scorer", SCORER, divmod, 1, 0)
    assert len(caplog.records) == QUIET_AFTER
    assert ["only counted" in logged.getMessage() for logged in caplog.records] == [False] * (QUIET_AFTER - 1) + [True]
    assert sum(guarded.counted().values()) == QUIET_AFTER + 50


async def test_a_call_that_is_waited_for(guarded: Guarded) -> None:
    """Its time is the whole wait; it is counted and caught in the same way."""

    async def answer(value: object) -> object:
        await asyncio.sleep(0)
        if isinstance(value, Exception):
            raise value
        return value

    assert await guarded.guard.wait("DataProducer", SCORER, answer, 5) == 5
    assert await guarded.guard.wait("DataProducer", SCORER, answer, KeyError("k")) is None
    assert await guarded.guard.wait("DataProducer", SCORER, answer, None) is None
    assert guarded.counted() == {
        ("DataProducer", "my-scorer", "mine", "raised"): 1,
        ("DataProducer", "my-scorer", "mine", "shape"): 1,
    }
    assert sum(guarded.durations.buckets("DataProducer", "my-scorer", "mine").counts) == 3


async def test_a_wait_that_is_cut_off(guarded: Guarded) -> None:
    """The cancellation passes, and the time is noted all the same."""
    task = asyncio.create_task(guarded.guard.wait("DataProducer", SCORER, asyncio.Event().wait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sum(guarded.durations.buckets("DataProducer", "my-scorer", "mine").counts) == 1
    assert guarded.counted() == {}
