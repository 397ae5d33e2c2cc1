"""The formulas of the scorers, with numbers worked out by hand."""

import numpy as np
import pytest
from epp_plugins.active_request import ActiveRequestScorer
from epp_plugins.kv_cache import KvCacheUtilizationScorer
from epp_plugins.load_aware import LoadAwareScorer
from epp_plugins.lora import LoraAffinityScorer
from epp_plugins.queue_depth import QueueScorer
from epp_plugins.running_requests import RunningRequestsSizeScorer

from epp.testing import candidates, request

NAN = float("nan")


def score(scorer, c, **arguments):
    return scorer.score(request("prompt", **arguments), c)


def made(cls, **parameters):
    return cls(cls.Parameters.model_validate(parameters))


@pytest.mark.parametrize(("scorer", "column"), [(QueueScorer(), "waiting"), (RunningRequestsSizeScorer(), "running")])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0, 5, 20], [1, 0.75, 0], id="between the extremes"),
        pytest.param([10, 20, 12], [1, 0, 0.8], id="relative to the shortest"),
        pytest.param([0, 1], [1, 0], id="a difference of one"),
        pytest.param([7, 7, 7], [1, 1, 1], id="all equal"),
        pytest.param([0], [1], id="one endpoint"),
        pytest.param([NAN, 4, 8], [NAN, 1, 0], id="missing"),
        pytest.param([NAN, 4], [NAN, 1], id="one known"),
        pytest.param([NAN, NAN], [NAN, NAN], id="nothing known"),
    ],
)
def test_shorter_is_better(scorer, column, values, expected):
    """(max - x) / (max - min) over what is known; 1 if all are equal."""
    np.testing.assert_allclose(score(scorer, candidates(**{column: values})), expected)


def test_stale_is_missing():
    """A column of the metrics is unknown where the last scrape is overdue, and doesn't set the extremes."""
    c = candidates(waiting=[0, 4, 8], stale=[True, False, False])
    np.testing.assert_allclose(score(QueueScorer(), c), [NAN, 1, 0])


def test_kv_cache():
    """The free share of the cache."""
    np.testing.assert_allclose(
        score(KvCacheUtilizationScorer(), candidates(kv_usage=[0, 0.25, 1, NAN])), [1, 0.75, 0, NAN]
    )


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, [0.5, 0.49609375, 0.25, 0, 0, NAN], id="default"),
        pytest.param({"threshold": 0}, [0.5, 0.49609375, 0.25, 0, 0, NAN], id="0 is the default"),
        pytest.param({"threshold": -1}, [0.5, 0.49609375, 0.25, 0, 0, NAN], id="less than 0 is the default"),
        pytest.param({"threshold": 4}, [0.5, 0.375, 0, 0, 0, NAN], id="4"),
    ],
)
def test_load_aware(parameters, expected):
    """0.5 * (1 - min(q, T) / T)."""
    c = candidates(waiting=[0, 1, 64, 128, 500, NAN])
    np.testing.assert_allclose(score(made(LoadAwareScorer, **parameters), c), expected)


@pytest.mark.parametrize(
    ("parameters", "counts", "expected"),
    [
        pytest.param({}, [0, 0, 0], [1, 1, 1], id="all idle"),
        pytest.param({}, [0, 1, 4], [1, 0.75, 0], id="the busiest gets nothing"),
        pytest.param({}, [3, 3], [0, 0], id="all equally busy"),
        pytest.param({}, [5], [0], id="one endpoint"),
        pytest.param({"idleThreshold": 2}, [0, 2, 3, 10], [1, 1, 0.7, 0], id="idle up to the threshold"),
        pytest.param({"idleThreshold": 2}, [2, 1], [1, 1], id="all up to the threshold"),
        pytest.param({"idleThreshold": -2}, [0, 4], [1, 0], id="negative threshold"),
        pytest.param({"maxBusyScore": 0.5}, [0, 1, 4], [1, 0.375, 0], id="less for the busy"),
        pytest.param({"maxBusyScore": 0}, [0, 1, 4], [1, 0, 0], id="nothing for the busy"),
        pytest.param({"maxBusyScore": 1.5}, [0, 1, 4], [1, 0.75, 0], id="more than 1 is the default"),
        pytest.param({"maxBusyScore": -0.1}, [0, 1, 4], [1, 0.75, 0], id="negative is the default"),
        pytest.param({"inFlightLoadProducerName": "mine"}, [0, 1], [1, 0], id="producer's name"),
    ],
)
def test_active_request(parameters, counts, expected):
    """1 up to the threshold, (max - c) / max * maxBusyScore above it."""
    c = candidates(inflight_requests=counts)
    np.testing.assert_allclose(score(made(ActiveRequestScorer, **parameters), c), expected)


def test_active_request_needs_no_metrics():
    """Our own count is never stale."""
    c = candidates(inflight_requests=[0, 2], stale=[True, True])
    np.testing.assert_allclose(score(made(ActiveRequestScorer), c), [1, 0])


def test_lora():
    """1 where the adapter runs, 0.8 where it fits in, 0.6 where it waits, else 0."""
    c = candidates(
        active_models=[["mine", "a"], ["a"], ["a", "b"], ["a", "b"], ["mine", "b"]],
        waiting_models=[[], [], ["mine"], ["c"], ["mine"]],
        active_loras=[2, 1, 2, 2, 2],
        waiting_loras=[0, 0, 1, 1, 1],
        max_loras=[2, 2, 2, 2, 2],
    )
    assert score(LoraAffinityScorer(), c, model="mine").tolist() == [1.0, 0.8, 0.6, 0.0, 1.0]
    assert score(LoraAffinityScorer(), c, model="other").tolist() == [0.0, 0.8, 0.0, 0.0, 0.0]


def test_lora_where_waiting_fits_in():
    """An adapter that waits where there is room has the room's score."""
    c = candidates(waiting_models=[["mine"]], active_loras=[0], waiting_loras=[1], max_loras=[4])
    assert score(LoraAffinityScorer(), c, model="mine").tolist() == [0.8]


def test_lora_without_metrics():
    """An engine without LoRA has no points; one whose scrape is overdue is unknown, whatever it had."""
    c = candidates(
        active_models=[[], ["mine"]],
        active_loras=[NAN, 1],
        waiting_loras=[NAN, 0],
        max_loras=[NAN, 2],
        stale=[False, True],
    )
    np.testing.assert_array_equal(score(LoraAffinityScorer(), c, model="mine"), [0.0, NAN])
