"""The baselines of the routing benchmark choose by the rules that they are named after."""

from pathlib import Path

import pytest

from epp.plugin import APPROX_PREFIX_PRODUCER, Outcome, matchable_tokens, matched_tokens
from epp.schedule import decide, produce
from epp.schedule.guard import Unguarded
from epp.settings import Registry, load
from epp.testing import FakeClock, candidates, context, decided, request

POLICIES = Path(__file__).parents[2] / "benchmarks" / "policies"
MATCHED, MATCHABLE = matched_tokens(APPROX_PREFIX_PRODUCER), matchable_tokens(APPROX_PREFIX_PRODUCER)
PROMPT = "a" * 4000  # 1,000 tokens


def router_of(name, clock=None):
    path = POLICIES / f"{name}.yaml"
    return load(path.read_text(), path, Registry.installed(), lambda n: context(n, clock=clock))


def picker_of(name, clock=None):
    return router_of(name, clock).profiles["default"].picker.plugin


def offered(matched=(), matchable=1000.0, **columns):
    """Candidates, what they have cached of the prompt included."""
    c = candidates(**(columns or {"count": len(matched)}))
    c.put(MATCHED, list(matched) or [0.0] * len(c))
    c.put(MATCHABLE, [matchable] * len(c))
    return c


def picks(picker, c, prompt=PROMPT, times=40):
    return {int(picker.pick(request(prompt), c, c[MATCHED] * 0)[0]) for _ in range(times)}


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_loads_and_decides(path):
    """A request finds an endpoint among eight."""
    router = load(path.read_text(), path, Registry.installed(), context)
    c = candidates(waiting=[0] * 8, running=[0] * 8, kv_usage=[0.5] * 8)
    produce(router, request(PROMPT), c, Unguarded())
    assert decide(router, request(PROMPT), c, Unguarded()).found() is not None
    assert router.warnings == ()


def test_round_robin_takes_turns():
    """One after the other, and those that are left when one is gone."""
    picker, c = picker_of("round-robin"), candidates(count=3)
    assert [picker.pick(request(), c, None)[0] for _ in range(4)] == [0, 1, 2, 0]
    assert picker.pick(request(), candidates(count=1), None) == [0]


def test_least_request_takes_the_least():
    """Of all the fewest in flight, ties at random; of two drawn, never the worst of three."""
    c = offered(inflight_requests=[3, 1, 1])
    assert picks(picker_of("least-request"), c) == {1, 2}
    assert picks(picker_of("power-of-two"), offered(inflight_requests=[3, 1, 2]), times=80) == {1, 2}


@pytest.mark.parametrize(
    ("name", "matched", "inflight", "chosen"),
    [
        pytest.param("sglang-cache-aware", [0, 900, 400], [0, 60, 0], {1}, id="sglang: the best match"),
        pytest.param("sglang-cache-aware", [0, 300, 0], [1, 9, 1], {0, 2}, id="sglang: matches too little"),
        pytest.param("sglang-cache-aware", [0, 900, 0], [0, 65, 0], {0, 2}, id="sglang: unequal loads"),
        pytest.param("sglang-cache-aware", [0, 900, 0], [140, 205, 150], {1}, id="sglang: unequal by difference only"),
        pytest.param("aibrix-prefix-cache", [0, 900, 400], [0, 9, 0], {1}, id="aibrix: the longest match"),
        pytest.param("aibrix-prefix-cache", [500, 500, 0], [4, 3, 0], {1}, id="aibrix: of equal ones the least loaded"),
        pytest.param("aibrix-prefix-cache", [0, 900, 0], [1, 17, 0], {2}, id="aibrix: unequal loads"),
        pytest.param("aibrix-prefix-cache", [900] + [0] * 8, [9] + [0] * 8, set(range(1, 9)), id="aibrix: 2 sigma"),
        pytest.param("bounded-hash", [0] * 3, [1, 1, 90], {0, 1}, id="hash: never an overloaded one"),
    ],
)
def test_rules_of_matches_and_loads(name, matched, inflight, chosen):
    """Who may be picked is who is picked."""
    found = picks(picker_of(name), offered(matched, inflight_requests=inflight))
    assert found <= chosen
    assert found == chosen or name == "bounded-hash"


def test_bounded_hash_is_consistent():
    """Equal beginnings go to one endpoint, different ones spread, and without one hardly any of the others move."""
    picker, c = picker_of("bounded-hash"), offered(inflight_requests=[0] * 8)
    prompts = [f"{number}" * 1500 for number in range(100)]
    places = [picks(picker, c, prompt, times=3) for prompt in prompts]
    assert {len(place) for place in places} == {1}
    assert len(set().union(*places)) == 8
    tails = [picks(picker, c, prompt + "tail", times=1) for prompt in prompts]
    assert sum(a == b for a, b in zip(places, tails, strict=True)) >= 99  # "0" * 1500 is as long as any


def test_lmetric_multiplies():
    """1,500 tokens in a batch of 1 are more than 700 in a batch of 2, and less than 800."""
    picker = picker_of("lmetric")
    for others, chosen in ((700, {1}), (800, {0})):
        c = offered([0, 1000], inflight_tokens=[500, others], inflight_requests=[0, 1])
        assert picks(picker, c) == chosen


def test_dynamo_adds_prefill_and_decode():
    """Active blocks count until the request has ended, and those that are shared with it count once."""
    picker, prompt = picker_of("dynamo-kv"), "b" * 4096
    assert picks(picker, offered(inflight_tokens=[0, 64])) == {0}
    c = offered(inflight_tokens=[0, 0])
    decision = decided(c, 0)
    picker.picked(request(prompt), decision, c)
    assert picks(picker, c) == {1}  # 16 + 16 active blocks against 16
    shared = offered([1024, 0], inflight_tokens=[0, 0])
    assert picks(picker, shared, prompt) == {0}  # 0 + 16 against 16 + 16
    picker.done(request(prompt), decision, Outcome(), 0.0)
    assert picks(picker, c) == {0, 1}


def test_preble_exploits_or_explores():
    """A match longer than the rest decides, unless its holder has twice the least load; a shorter one is but a cost."""
    clock = FakeClock()
    picker = picker_of("preble-e2", clock)
    c = offered([0, 600])
    assert picks(picker, c) == {1}
    assert picks(picker, offered([0, 400])) == {1}  # explored: it costs less there
    sent = offered([0, 0])
    for _ in range(3):
        picker.picked(request(PROMPT), decided(sent, 1), sent)
    assert picks(picker, c) == {0}
    assert picks(picker, offered([0, 400])) == {0}
    clock.advance(200.0)
    assert picks(picker, c) == {1}
