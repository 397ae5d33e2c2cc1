"""Session affinity by token and by session id."""

import base64

import epp_plugins.session_affinity
import pytest
from epp_plugins.session_affinity import SessionAffinityFilter, SessionAffinityScorer, SessionParameters
from pydantic import ValidationError

from epp.plugin import Endpoint
from epp.testing import FakeClock, candidates, context, decided, pool, request


def token(endpoint_id):
    return base64.b64encode(endpoint_id.encode()).decode()


def made(cls=SessionAffinityScorer, of=None, clock=None, **parameters):
    return cls(SessionParameters.model_validate(parameters), context(pool=of, clock=clock))


def by_id(**config):
    return {"strategy": "session_id", "sessionIdConfig": config}


def of_session(name, header="x-session-id"):
    return request("prompt", headers={header: name})


# --- encoded_endpoint_header


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"X-Session-Token": token("default/pod-1")}, [0, 1, 0], id="pinned"),
        pytest.param({}, [0, 0, 0], id="no token"),
        pytest.param({"x-session-token": ""}, [0, 0, 0], id="empty token"),
        pytest.param({"x-session-token": token("default/gone")}, [0, 0, 0], id="unknown endpoint"),
        pytest.param({"x-session-token": token("other/pod-1")}, [0, 0, 0], id="other namespace"),
        pytest.param({"x-session-token": "default/pod-1"}, [0, 0, 0], id="not encoded"),
        pytest.param({"x-session-token": base64.b64encode(b"\xff\xfe").decode()}, [0, 0, 0], id="not UTF-8"),
        pytest.param({"x-session-token": "ü"}, [0, 0, 0], id="not ASCII"),
    ],
)
def test_token(headers, expected):
    """The endpoint in the token has 1; a token that says nothing does nothing."""
    c = candidates(count=3)
    assert made().score(request("prompt", headers=headers), c).tolist() == expected


def test_token_outside_the_candidates():
    """A token can't choose an endpoint that is not a candidate."""
    c = candidates(count=3)
    sent = request("prompt", headers={"x-session-token": token("default/pod-1")})
    others = c.narrow(c.slots != c.slots[1])
    assert made().score(sent, others).tolist() == [0, 0]
    assert made(SessionAffinityFilter).keep(sent, others).tolist() == [True, True]


def test_token_on_the_response():
    """The response tells the client where its session is: the first endpoint that was picked."""
    c = candidates(count=3)
    decision = decided(c, 2, 0)
    headers = made().response_headers(request(), decision, decision.primary.endpoints[0])
    assert headers == {"x-session-token": "ZGVmYXVsdC9wb2QtMg=="}
    assert base64.b64decode(headers["x-session-token"]) == b"default/pod-2"


def test_token_comes_back():
    """What a response sets leads the next request to the same endpoint, whatever the header's name."""
    c, scorer = candidates(count=3), made(encodedEndpointHeaderConfig={"header": "X-My-Session"})
    headers = scorer.response_headers(request(), decided(c, 1), c.endpoints[1])
    assert list(headers) == ["x-my-session"]
    assert scorer.score(request("prompt", headers=headers), c).tolist() == [0, 1, 0]


def test_profile_that_is_pinned():
    """profileName says whose pick is pinned; a profile that didn't run pins nothing."""
    c = candidates(count=3)
    decision = decided(c, 2, profile="decode", others={"prefill": 0})
    served = c.endpoints[2]
    assert made(profileName="prefill").response_headers(request(), decision, served) == {
        "x-session-token": token("default/pod-0")
    }
    assert made(profileName="encode").response_headers(request(), decision, served) == {}


def test_token_after_a_fallback():
    """Where Envoy has gone on to a fallback, the session is there from now on."""
    c = candidates(count=3)
    headers = made().response_headers(request(), decided(c, 2, 0), c.endpoints[0])
    assert headers == {"x-session-token": token("default/pod-0")}


# --- session_id


def test_session():
    """A session is pinned by its first request."""
    c, scorer = candidates(count=3), made(**by_id())
    assert scorer.score(of_session("s"), c).tolist() == [0, 0, 0]
    scorer.picked(of_session("s"), decided(c, 1), c)
    assert scorer.score(of_session("s"), c).tolist() == [0, 1, 0]
    assert scorer.score(of_session("t"), c).tolist() == [0, 0, 0]
    assert scorer.score(request(), c).tolist() == [0, 0, 0]
    assert scorer.response_headers(of_session("s"), decided(c, 1), c.endpoints[1]) == {}


def test_sources():
    """The first source with a value names the session."""
    c, scorer = candidates(count=2), made(**by_id(sources=[{"header": "X-A"}, {"header": "x-b"}]))
    scorer.picked(of_session("s", "x-b"), decided(c, 1), c)
    both = request("prompt", headers={"x-a": "s", "x-b": "t"})
    assert scorer.score(both, c).tolist() == [0, 1]
    assert scorer.score(of_session("s"), c).tolist() == [0, 0]


def test_going_elsewhere_leaves_the_pin():
    """A request that is picked elsewhere while its endpoint is a candidate neither moves the pin nor prolongs it."""
    clock = FakeClock()
    c, scorer = candidates(count=3), made(clock=clock, **by_id(evictionTtlSeconds=100))
    scorer.picked(of_session("s"), decided(c, 1), c)
    clock.advance(60)
    scorer.picked(of_session("s"), decided(c, 2), c)
    assert scorer.score(of_session("s"), c).tolist() == [0, 1, 0]
    clock.advance(60)
    assert scorer.score(of_session("s"), c).tolist() == [0, 0, 0]


def test_absent_endpoint_moves_the_pin():
    """If its endpoint was no candidate, the session is pinned to what was picked."""
    c, scorer = candidates(count=3), made(**by_id())
    scorer.picked(of_session("s"), decided(c, 1), c)
    others = c.narrow(c.slots != c.slots[1])
    scorer.picked(of_session("s"), decided(others, 1), others)
    assert scorer.score(of_session("s"), c).tolist() == [0, 0, 1]


def test_use_prolongs_the_pin():
    """The time to live is counted from the last request that went to the endpoint."""
    clock = FakeClock()
    c, scorer = candidates(count=2), made(clock=clock, **by_id(evictionTtlSeconds=100))
    for _ in range(5):
        scorer.picked(of_session("s"), decided(c, 1), c)
        clock.advance(100)
        assert scorer.score(of_session("s"), c).tolist() == [0, 1]
    clock.advance(0.5)
    assert scorer.score(of_session("s"), c).tolist() == [0, 0]


@pytest.mark.parametrize("leave", ["remove", "restart"])
def test_endpoint_is_forgotten(leave):
    """The sessions of an endpoint that leaves or restarts are forgotten, and those of others are not."""
    own = pool(count=2)
    scorer, c = made(of=own, **by_id()), candidates(of=own)
    scorer.picked(of_session("s"), decided(c, 0), c)
    scorer.picked(of_session("t"), decided(c, 1), c)
    if leave == "remove":
        own.remove("default/pod-0")
        own.add(Endpoint("pod-9", "10.0.0.9", 8000))
    else:
        own.restarted(own.slots["default/pod-0"])
    c = candidates(of=own)
    assert scorer.score(of_session("s"), c).sum() == 0
    assert scorer.score(of_session("t"), c).tolist() == c.named("default/pod-1").tolist()


def test_sessions_are_bounded(monkeypatch):
    """Beyond the bound the session goes that was used longest ago."""
    monkeypatch.setattr(epp_plugins.session_affinity, "MAX_SESSIONS", 3)
    c, scorer = candidates(count=1), made(**by_id())
    for name in ["a", "b", "c", "a", "d"]:
        scorer.picked(of_session(name), decided(c, 0), c)
    assert [name for name in "abcd" if scorer.score(of_session(name), c)[0]] == ["a", "c", "d"]


def test_expired_sessions_are_dropped():
    """Sessions past their time are dropped as others come, a few at once."""
    clock = FakeClock()
    c, scorer = candidates(count=1), made(clock=clock, **by_id(evictionTtlSeconds=1))
    for name in range(100):
        scorer.picked(of_session(str(name)), decided(c, 0), c)
    clock.advance(2)
    held = []
    for _ in range(10):
        scorer.picked(of_session("new"), decided(c, 0), c)
        held.append(repr(scorer._strategy))
    assert held[0] == "<85 sessions>"
    assert held[-1] == "<1 sessions>"


@pytest.mark.parametrize("length", [1, 60_000])
def test_session_ids_of_any_length(length):
    """A session id is kept as a digest of one length."""
    c, scorer = candidates(count=1), made(**by_id())
    scorer.picked(of_session("ü" * length), decided(c, 0), c)
    assert scorer.score(of_session("ü" * length), c).tolist() == [1]
    assert [len(session) for session in scorer._strategy._pins] == [16]


# --- the filter, and parameters


def test_filter():
    """The filter keeps the pinned endpoint alone, and everybody without a session."""
    c, plugin = candidates(count=3), made(SessionAffinityFilter, **by_id())
    assert plugin.keep(of_session("s"), c).tolist() == [True, True, True]
    plugin.picked(of_session("s"), decided(c, 1), c)
    assert plugin.keep(of_session("s"), c).tolist() == [False, True, False]
    others = c.narrow(c.slots != c.slots[1])
    assert plugin.keep(of_session("s"), others).tolist() == [True, True]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strategy": "cookie"}, "strategy"),
        (by_id(sources=[]), "at least 1 item"),
        (by_id(sources=[{}]), "either a header or an attribute"),
        (by_id(sources=[{"header": "a", "attribute": "b"}]), "either a header or an attribute"),
        (by_id(sources=[{"attribute": "b"}]), "producer: is required of a source that is an attribute"),
        (by_id(sources=[{"header": "b", "producer": "c"}]), "producer: must not stand beside a header"),
        (by_id(sources=[{"header": "no header"}]), "is no header's name"),
        (by_id(evictionTtlSeconds=0), "greater than 0"),
        (by_id(evictionSweepSeconds=-1), "greater than 0"),
    ],
)
def test_bad_parameters(parameters, message):
    """Parameters are checked when they are read."""
    with pytest.raises(ValidationError, match=message):
        made(**parameters)
