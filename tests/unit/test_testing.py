"""The fakes that ship."""

import numpy as np
import pytest

from epp.plugin import ACTIVE_MODELS, INFLIGHT_REQUESTS, KV_USAGE, WAITING, Candidates, pool_key, request_key
from epp.testing import FakeClock, candidates, context, decided, pool, request

NAN = float("nan")


def test_candidates():
    """One line makes real candidates of a real pool."""
    c = candidates(
        waiting=[0, NAN, 5],
        kv_usage=[0.1, 0.2, 0.3],
        labels=[{"zone": "a"}, {}, {"zone": "b"}],
        active_models=[["x"], [], ["x", "y"]],
    )
    assert isinstance(c, Candidates)
    assert len(c) == 3
    np.testing.assert_array_equal(c[WAITING], [0, NAN, 5])
    assert c[KV_USAGE].tolist() == [0.1, 0.2, 0.3]
    assert c[INFLIGHT_REQUESTS].tolist() == [0, 0, 0]
    assert (c.label("zone") == c.code("zone", "b")).tolist() == [False, False, True]
    assert c.has(ACTIVE_MODELS, "x").tolist() == [True, False, True]
    assert [endpoint.id for endpoint in c.endpoints] == ["default/pod-0", "default/pod-1", "default/pod-2"]
    assert len({endpoint.hostport for endpoint in candidates(count=600).endpoints}) == 600


def test_stale():
    """A stale endpoint's metrics are missing; our own counts are not."""
    c = candidates(waiting=[1, 2], inflight_requests=[3, 4], stale=[True, False])
    np.testing.assert_array_equal(c[WAITING], [NAN, 2])
    assert c[INFLIGHT_REQUESTS].tolist() == [3, 4]


def test_keys_of_ones_own():
    """Columns may be given by key, those of the pool and those of a producer."""
    watts, matched = pool_key("watts"), request_key("matched", "mine")
    c = candidates(columns={watts: [5, 6], matched: [7, 8]})
    assert (c[watts].tolist(), c[matched].tolist()) == ([5, 6], [7, 8])


@pytest.mark.parametrize(
    ("arguments", "count"),
    [({}, 1), ({"count": 3}, 3), ({"names": ["a", "b"]}, 2), ({"labels": {"a": "b"}}, 1), ({"waiting": [1, 2]}, 2)],
)
def test_count(arguments, count):
    """There are as many endpoints as the lists are long."""
    assert len(candidates(**arguments)) == count


def test_mistakes():
    """A misspelt column and lists of different lengths are errors."""
    with pytest.raises(TypeError, match=r"there is no column 'wating'; there are: .*waiting"):
        candidates(wating=[1])
    with pytest.raises(ValueError, match=r"the lists differ in length: \[1, 2\]"):
        candidates(waiting=[1, 2], running=[1])


def test_pool_outlives_its_candidates():
    """Candidates may be made of a pool again, after it has changed."""
    own = pool(waiting=[1, 2], names=["a", "b"])
    own.remove("default/a")
    assert candidates(of=own)[WAITING].tolist() == [2]


def test_request():
    """A request as a parser would have read it."""
    made = request("héllo", model="m", headers={"X-Session-Id": "1"}, priority=-1)
    assert (made.body.prompts, made.model, made.priority, made.size) == (("héllo".encode(),), "m", -1, 6)
    assert made.headers == {"x-session-id": "1"}
    assert request(["a", b"b"]).body.prompts == (b"a", b"b")


def test_clock_and_context():
    """Time stands still until it is told to move; the same seed gives the same randomness."""
    clock = FakeClock(5.0)
    made = context("mine", seed=3, clock=clock)
    clock.advance(2.5)
    assert (made.name, made.now()) == ("mine", 7.5)
    assert made.random.random() == context(seed=3).random.random() != context(seed=4).random.random()


def test_decided():
    """A decision by indices into the candidates."""
    c = candidates(count=3)
    decision = decided(c, 2, 0, profile="decode", others={"prefill": 1})
    assert [endpoint.name for endpoint in decision.primary.endpoints] == ["pod-2", "pod-0"]
    assert {name: pick.endpoints[0].name for name, pick in decision.picks.items()} == {
        "decode": "pod-2",
        "prefill": "pod-1",
    }
