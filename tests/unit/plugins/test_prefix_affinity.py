"""The filter by prefix: who stays, and when holding the prompt isn't worth the wait."""

import pytest
from epp_plugins.prefix_affinity import PrefixCacheAffinityFilter
from pydantic import ValidationError

from epp.keys import latency
from epp.plugin import matchable_tokens, matched_tokens
from epp.testing import candidates, context, request

NAN = float("nan")


def made(**parameters):
    cls = PrefixCacheAffinityFilter
    return cls(cls.Parameters.model_validate(parameters), context())


def kept(plugin, matched, tokens=None, ttft=None):
    count = len(matched)
    columns = {
        matched_tokens(): matched,
        matchable_tokens(): [100.0] * count,
        latency().ttft: ttft or [NAN] * count,
    }
    c = candidates(inflight_tokens=tokens or [0.0] * count, columns=columns)
    return plugin.keep(request("prompt"), c).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("parameters", "matched", "expected"),
    [
        pytest.param({}, [80, 79, 100], [0, 2], id="the threshold included"),
        pytest.param({"affinityThreshold": 0.5}, [50, 49, 0], [0], id="another threshold"),
        pytest.param({}, [79, 0, 10], [0, 1, 2], id="nobody"),
        pytest.param({}, [100, 90, 80], [0, 1, 2], id="everybody"),
        pytest.param({}, [NAN, 90, 0], [1], id="unknown"),
        pytest.param({"affinityThreshold": 0}, [100, 0], [0, 1], id="no threshold"),
        pytest.param({"affinityThreshold": -1}, [100, 0], [0, 1], id="a threshold below 0"),
        pytest.param({"explorationProbability": 1}, [100, 0], [0, 1], id="exploring"),
        pytest.param({}, [0], [0], id="one endpoint"),
    ],
)
def test_holders(parameters, matched, expected):
    """Who holds enough of the prompt, or everybody."""
    assert kept(made(**parameters), matched) == expected


@pytest.mark.parametrize(
    ("parameters", "tokens", "expected"),
    [
        # 1,000 tokens a second: a token is a millisecond.
        pytest.param({"maxTTFTPenaltyMs": 500}, [900, 600, 100], [0, 1], id="500 ms worse"),
        pytest.param({"maxTTFTPenaltyMs": 500}, [900, 601, 100], [0, 1, 2], id="501 ms worse"),
        pytest.param({"maxTTFTPenaltyMs": 0}, [9e9, 9e9, 0], [0, 1], id="no limit"),
        pytest.param({}, [18_100, 18_200, 100], [0, 1], id="18 s by default"),
        pytest.param({}, [18_101, 18_200, 100], [0, 1, 2], id="18.001 s"),
        pytest.param(
            {"maxTokensInFlightPenalty": 500, "maxTTFTPenaltyMs": 0}, [900, 600, 100], [0, 1], id="500 tokens more"
        ),
        pytest.param(
            {"maxTokensInFlightPenalty": 500, "maxTTFTPenaltyMs": 0}, [900, 601, 100], [0, 1, 2], id="501 tokens more"
        ),
    ],
)
def test_penalty(parameters, tokens, expected):
    """The best holder's time against the best of the others."""
    plugin = made(peakPrefillThroughput=1000, **parameters)
    assert kept(plugin, [100, 90, 0], tokens) == expected


@pytest.mark.parametrize(
    ("ttft", "expected"),
    [
        pytest.param([600, 900, 100], [0, 1], id="500 ms worse"),
        pytest.param([601, 900, 100], [0, 1, 2], id="501 ms worse"),
        pytest.param([NAN, NAN, 100], [0, 1, 2], id="holders unknown"),
        pytest.param([600, NAN, NAN], [0, 1], id="others unknown"),
        pytest.param([NAN, NAN, NAN], [0, 1], id="no predictions"),
    ],
)
def test_predicted_penalty(ttft, expected):
    """With predictions in place of the estimate."""
    plugin = made(ttftSource="latencyPredictor", maxTTFTPenaltyMs=500)
    assert plugin.reads[-1] is latency().ttft
    assert kept(plugin, [100, 90, 0], ttft=ttft) == expected


@pytest.mark.parametrize(
    "parameters",
    [
        {"affinityThreshold": 1.1},
        {"explorationProbability": 2},
        {"maxTTFTPenaltyMs": -1},
        {"ttftSource": "guess"},
        {"peakPrefillThroughput": 0},
    ],
)
def test_bad_parameters(parameters):
    """What can't be meant is refused."""
    with pytest.raises(ValidationError):
        made(**parameters)
