"""The saturation detectors, as filters and as what they say of a pool, with numbers worked out by hand."""

import pytest
from epp_plugins.detectors import ConcurrencyDetector, UtilizationDetector
from pydantic import ValidationError

from epp.plugin import Candidates
from epp.testing import candidates, pool, request

NAN = float("nan")


def made(cls, **parameters):
    return cls(cls.Parameters.model_validate(parameters))


def kept(plugin, c):
    return plugin.keep(request("prompt"), c).nonzero()[0].tolist()


LOAD = {"waiting": [0, 4, 5, 0, NAN, 2], "kv_usage": [0.1, 0.79, 0.1, 0.8, NAN, 0.4]}


@pytest.mark.parametrize(
    ("parameters", "load", "expected"),
    [
        pytest.param({}, LOAD, [0, 1, 5], id="below both, known"),
        pytest.param({"headroom": 0.25}, LOAD, [0, 1, 2, 3, 5], id="a quarter beyond"),
        pytest.param({"queueDepthThreshold": 1, "kvCacheUtilThreshold": 0.2}, LOAD, [0], id="other limits"),
        pytest.param({}, {"waiting": [5, NAN], "kv_usage": [0.9, NAN]}, [0, 1], id="nobody: everybody"),
    ],
)
def test_utilization(parameters, load, expected):
    """Queue and cache below their limits; everybody if nobody's are."""
    assert kept(made(UtilizationDetector, **parameters), candidates(**load)) == expected


def test_stale_endpoints_have_no_room():
    """What was reported before a missed scrape is unknown."""
    c = candidates(waiting=[0, 0], kv_usage=[0, 0], stale=[True, False])
    assert kept(made(UtilizationDetector), c) == [1]


def test_utilization_of_a_pool():
    """The mean of max(w / 5, kv / 0.8): 0.125, 0.9875, 1, 1, 1 for the unknown one, 0.5."""
    assert made(UtilizationDetector).saturation(candidates(**LOAD)) == pytest.approx(4.6125 / 6)


INFLIGHT = {"inflight_requests": [0, 7, 8, 10], "inflight_tokens": [50, 0, 10, 100]}


@pytest.mark.parametrize(
    ("parameters", "expected", "saturation"),
    [
        pytest.param({}, [0, 1], (0 + 7 + 8 + 10) / 32, id="requests"),
        pytest.param({"headroom": 0.3}, [0, 1, 2], (0 + 7 + 8 + 10) / 32, id="int(8 * 1.3) is 10"),
        pytest.param({"concurrencyMode": "tokens"}, [1, 2], 160 / 200, id="tokens"),
        pytest.param({"concurrencyMode": "hybrid"}, [1], (1 + 7 / 8 + 1 + 2) / 4, id="both"),
        pytest.param({"concurrencyMode": "hybrid", "maxConcurrency": 7}, [], (1 + 1 + 8 / 7 + 2) / 4, id="nobody"),
    ],
)
def test_concurrency(parameters, expected, saturation):
    """What is in flight below what may be; it may leave nobody."""
    plugin = made(ConcurrencyDetector, **{"maxConcurrency": 8, "maxTokenConcurrency": 50} | parameters)
    c = candidates(**INFLIGHT)
    assert kept(plugin, c) == expected
    assert plugin.saturation(c) == pytest.approx(saturation)
    assert plugin.load_based


@pytest.mark.parametrize("cls", [UtilizationDetector, ConcurrencyDetector])
def test_an_empty_pool_is_saturated(cls):
    """Nobody can take anything."""
    own = pool(count=1)
    assert made(cls).saturation(Candidates(own, own.all_slots()[:0], 0.0)) == 1.0


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        (UtilizationDetector, {"queueDepthThreshold": 0}),
        (UtilizationDetector, {"kvCacheUtilThreshold": 1.1}),
        (UtilizationDetector, {"headroom": -0.1}),
        (UtilizationDetector, {"metricsStalenessThreshold": "0s"}),
        (UtilizationDetector, {"metricsStalenessThreshold": "200"}),
        (ConcurrencyDetector, {"maxConcurrency": 0}),
        (ConcurrencyDetector, {"maxTokenConcurrency": -1}),
        (ConcurrencyDetector, {"concurrencyMode": "both"}),
    ],
)
def test_bad_parameters(cls, parameters):
    """What can't be meant is refused."""
    with pytest.raises(ValidationError):
        made(cls, **parameters)
