"""Header readers and admitters."""

import pytest
from epp_plugins.agent_identity import AgentIdentity
from epp_plugins.probabilistic_admitter import ProbabilisticAdmitter
from epp_plugins.session_id import SessionIdProducer
from pydantic import ValidationError

from epp.errors import ResourceExhausted
from epp.schedule import Unguarded, admit, produce
from epp.testing import candidates, context, pool, request
from tests.unit.plugins.picking import PREDICTIONS, router_of

NAN = float("nan")


def made(cls, **parameters):
    return cls(cls.Parameters.model_validate(parameters), context("mine"))


@pytest.mark.parametrize(
    ("parameters", "headers", "expected"),
    [
        pytest.param({}, {"session_id": "d", "session-id": "c"}, "c", id="in order"),
        pytest.param({}, {"session_id": "d", "session-id": "b", "x-claude-code-session-id": "a"}, "a", id="all"),
        pytest.param({}, {"x-claude-code-session-id": " ", "session_id": "d"}, "d", id="an empty one is none"),
        pytest.param(
            {"additionalSessionHeaders": ["X-Mine"]}, {"x-mine": "m", "session-id": "c"}, "m", id="one's own first"
        ),
        pytest.param({}, {"x-session": "x"}, None, id="none"),
    ],
)
def test_agent_identity(parameters, headers, expected):
    """The first session header with a value."""
    found = made(AgentIdentity, **parameters).attributes(headers)
    assert found == ({} if expected is None else {"agent-identity/mine": expected})


@pytest.mark.parametrize(
    ("parameters", "headers", "expected"),
    [
        pytest.param({"headerName": "X-Session"}, {"x-session": "s"}, "s", id="header"),
        pytest.param({"headerName": "x-session"}, {"cookie": "x-session=s"}, None, id="no header"),
        pytest.param({"cookieName": "s"}, {"cookie": "a=b; s=1=2; c"}, "1=2", id="cookie"),
        pytest.param({"cookieName": "s"}, {"cookie": 's="q"'}, "q", id="in quotes"),
        pytest.param({"cookieName": "s"}, {"cookie": "S=1; ss=2; s"}, None, id="another cookie"),
        pytest.param({"cookieName": "s"}, {"cookie": "s="}, None, id="an empty cookie"),
        pytest.param({"cookieName": "s"}, {}, None, id="no cookies"),
    ],
)
def test_session_id(parameters, headers, expected):
    """The value of the header or of the cookie."""
    found = made(SessionIdProducer, **parameters).attributes(headers)
    assert found == ({} if expected is None else {"SessionID/mine": expected})


@pytest.mark.parametrize("parameters", [{}, {"headerName": "a", "cookieName": "b"}, {"headerName": "a b"}])
def test_bad_session_id(parameters):
    """Exactly one of the two, and a name."""
    with pytest.raises(ValidationError):
        made(SessionIdProducer, **parameters)


class Draws:
    """A source of randomness that gives one number."""

    def __init__(self, value):
        self._value = value

    def random(self):
        return self._value


def denies(draw, load, priority=-1, **parameters):
    plugin = made(ProbabilisticAdmitter, **parameters)
    plugin._random = Draws(draw)
    return plugin.deny(request(priority=priority), candidates(**load)) is not None


@pytest.mark.parametrize(
    ("parameters", "load", "probability"),
    [
        # max(1 / 5, 0.08 / 0.8) is 0.2 and max(0, 0) is 0: on average 0.1, to the 5th 1e-5, times 300.
        pytest.param({}, {"waiting": [1, 0], "kv_usage": [0.08, 0]}, 0.003, id="default"),
        # 0.2 and 0.6: on average 0.4, to the 5th 0.01024, times 300.
        pytest.param({}, {"waiting": [1, 0], "kv_usage": [0, 0.48]}, 1.0, id="certain"),
        pytest.param({"power": 1, "k": 1}, {"waiting": [2, 0], "kv_usage": [0, 0.08]}, 0.25, id="linear"),
        pytest.param({"power": 1, "k": 1, "queueDepthThreshold": 10, "kvCacheUtilThreshold": 1},
                     {"waiting": [2, 0], "kv_usage": [0, 0.6]}, 0.4, id="thresholds"),
        pytest.param({"power": 1, "k": 1}, {"waiting": [2, NAN], "kv_usage": [NAN, NAN]}, 0.4, id="unknown"),
    ],
)  # fmt: skip
def test_probability(parameters, load, probability):
    """min(sat ** power * k, 1) of the mean saturation."""
    assert denies(probability - 1e-9, load, **parameters)
    assert not denies(probability + 1e-9, load, **parameters)


@pytest.mark.parametrize(
    ("priority", "load"),
    [
        pytest.param(0, {"waiting": [99], "kv_usage": [1]}, id="not sheddable"),
        pytest.param(-1, {"waiting": [NAN], "kv_usage": [NAN]}, id="nothing known"),
        pytest.param(-1, {"waiting": [0], "kv_usage": [0]}, id="idle"),
    ],
)
def test_admits(priority, load):
    """Whatever is drawn."""
    assert not denies(0.0, load, priority)


@pytest.mark.parametrize("parameters", [{"queueDepthThreshold": 0}, {"kvCacheUtilThreshold": 1.5}, {"k": -1}])
def test_bad_admitter(parameters):
    """What can't be meant is refused."""
    with pytest.raises(ValidationError):
        made(ProbabilisticAdmitter, **parameters)


LATE = {
    "type": PREDICTIONS,
    "name": "predicted-latency-producer",
    "parameters": {"ttft": [9.0], "tpot": [9.0], "ttftHeadroom": [-1.0], "tpotHeadroom": [1.0], "dispatched": [1.0]},
}


@pytest.mark.parametrize("admitter", ["probabilistic-admitter", "latency-slo-admitter"])
def test_admitters_turn_away(admitter):
    """With it a sheddable request gets 429, without it passes: the queue is at its threshold, and nobody in time."""
    own = pool(waiting=[5], kv_usage=[0.8], running=[9])
    sent = request("prompt", headers={"x-slo-ttft-ms": "1"}, priority=-1)
    for plugins, status in (([LATE], None), ([LATE, {"type": admitter}], 429)):
        router = router_of([*plugins, {"type": "queue-scorer"}], own)
        c = candidates(of=own)
        produce(router, sent, c, Unguarded())
        if status is None:
            admit(router, sent, c, Unguarded())
            continue
        with pytest.raises(ResourceExhausted) as caught:
            admit(router, sent, c, Unguarded())
        assert (caught.value.status, caught.value.reason) == (status, "rejected-saturated")
