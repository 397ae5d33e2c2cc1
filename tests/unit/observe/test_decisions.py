"""The last decisions: how many are kept, and what their explanation says."""

import gc
import math
from typing import Any

import msgspec

from epp.errors import BadRequest, ServiceUnavailable
from epp.observe.decisions import Decisions, render
from epp.observe.record import Record
from epp.plugin import Outcome, Usage
from epp.testing import request
from tests.unit.observe.parts import decided, endpoints, record


def test_a_ring_is_bounded_in_number() -> None:
    """The oldest go, and can't be found any more."""
    ring = Decisions(kept=3)
    for number in range(5):
        ring.keep(record(f"r-{number}"))
    assert len(ring) == 3
    assert [ring.find(f"r-{number}") is not None for number in range(5)] == [False, False, True, True, True]
    assert [each["request_id"] for each in ring.latest(2)] == ["r-4", "r-3"]
    assert [each["request_id"] for each in ring.latest(99)] == ["r-4", "r-3", "r-2"]
    assert ring.latest(0) == []


def test_a_ring_is_bounded_in_bytes() -> None:
    """A decision over many endpoints takes more of it than one over a few."""
    large = {"waiting": [0.0] * 2000, "inflight_requests": [0.0] * 2000, "labels": {"llm-d.ai/role": "decode"}}
    ring = Decisions(kept=1000, kept_bytes=300_000)
    for number in range(40):
        ring.keep(record(f"small-{number}"))
    assert len(ring) == 40
    ring.keep(record("large-0", decision=decided(endpoints(**large))))
    ring.keep(record("large-1", decision=decided(endpoints(**large))))
    assert 2 <= len(ring) < 40
    assert ring.find("small-0") is None
    assert ring.find("large-1") is not None


def test_one_record_is_kept_however_large() -> None:
    """The latest can always be explained."""
    ring = Decisions(kept_bytes=1)
    ring.keep(record("r-1"))
    ring.keep(record("r-2", decision=None, error=BadRequest("no")))
    assert len(ring) == 1
    assert ring.find("r-2") is not None


def test_long_ids_take_their_room() -> None:
    """Clients choose them."""
    ring = Decisions(kept_bytes=100_000)
    for number in range(9):
        ring.keep(record(f"{number}" * 30_000, decision=None, error=BadRequest("no")))
    assert len(ring) == 3


def test_of_several_requests_with_one_id_the_latest_is_found() -> None:
    """Also when the earlier one goes."""
    ring = Decisions(kept=2)
    ring.keep(record("twice", model="first"))
    ring.keep(record("twice", model="second"))
    assert ring.find("twice")["model"] == "second"  # type: ignore[index]
    ring.keep(record("other"))
    assert ring.find("twice")["model"] == "second"  # type: ignore[index]
    ring.keep(record("another"))
    assert ring.find("twice") is None


def test_the_estimate_is_near_the_truth() -> None:
    """What the ring believes to hold is what it holds, within a factor of two."""
    import tracemalloc

    columns = {"waiting": [0.0] * 100, "inflight_requests": [0.0] * 100, "labels": {"llm-d.ai/role": "decode"}}
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        ring = Decisions()
        pool = endpoints(**columns)._pool
        shared, _ = tracemalloc.get_traced_memory()
        for number in range(100):
            ring.keep(record(f"r-{number}", decision=decided(endpoints(of=pool, **dict.fromkeys(columns, ())))))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - shared
    finally:
        tracemalloc.stop()
    assert before <= shared
    assert ring._bytes / 2 < held < ring._bytes * 2


def explained(**fields: Any) -> dict[str, Any]:
    """What a client of /debug/decisions reads: the explanation there and back through JSON."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(render(record(**fields))))
    return found


def test_the_candidates_and_their_signals() -> None:
    """Every endpoint that the decision began with: each value that was read, its unit and its age."""
    c = endpoints(waiting=[0, 0, math.nan], stale=[False, False, True])
    candidates = explained(decision=decided(c))["candidates"]
    assert [each["endpoint"] for each in candidates] == ["default/pod-0", "default/pod-1", "default/pod-2"]
    assert [each["address"] for each in candidates] == ["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]
    assert [each["fresh"] for each in candidates] == [True, True, False]
    assert candidates[0]["signals"] == {
        "waiting": {"value": 0, "unit": "requests", "age_s": 1000},
        "inflight_requests": {"value": 0, "unit": "requests", "age_s": 0},
    }
    assert candidates[2]["signals"]["waiting"]["value"] is None
    assert candidates[2]["signals"]["inflight_requests"]["value"] == 2


def test_the_profiles_run() -> None:
    """What each filter dropped, each scorer's raw and weighted score, the totals, the picker and its pick."""
    (stage,) = explained()["profiles"]
    assert stage["profile"] == "default"
    assert stage["filters"] == [{"plugin": "decode-filter", "type": "decode-filter", "dropped": ["default/pod-1"]}]
    assert [(s["plugin"], s["weight"], s["in_flight_stood_in"]) for s in stage["scorers"]] == [
        ("queue-scorer", 2, False),
        ("active-request-scorer", 1, False),
    ]
    assert stage["scorers"][0]["scores"] == {
        "default/pod-0": {"raw": 1, "weighted": 2},
        "default/pod-2": {"raw": 0, "weighted": 0},
    }
    assert stage["totals"] == {"default/pod-0": 3, "default/pod-2": 0}
    assert stage["picker"] == "max-score-picker"
    assert stage["pick"] == {"endpoints": ["default/pod-0"], "destination": "10.0.0.1:8000", "score": 3}


def test_who_stood_in_is_told() -> None:
    """Nobody's metrics are fresh: the raw score is unknown, and what counted is our own count."""
    c = endpoints(waiting=[0, 0, 4], inflight_requests=[2, 0, 0], stale=[True] * 3)
    queue = explained(decision=decided(c))["profiles"][0]["scorers"][0]
    assert queue["in_flight_stood_in"]
    assert queue["scores"]["default/pod-2"] == {"raw": None, "weighted": 2}
    assert queue["scores"]["default/pod-0"] == {"raw": None, "weighted": 0}


def test_the_request_and_its_outcome() -> None:
    """What was asked, where it went, and what became of it."""
    outcome = Outcome(200, "10.0.0.1:8000", "done", 0.25, 1.5, 300, True, Usage(10, 20, 5))
    said = explained(decided_in=0.00012361, priority=-1, outcome=outcome)
    wanted = {
        "request_id": "r-1",
        "timestamp": 1.5e9,
        "model": "m",
        "priority": -1,
        "fairness_id": "default-flow",
        "size_bytes": 100,
        "decided_in_us": 123.6,
        "destination": "10.0.0.1:8000",
        "profile": "default",
        "score": 3,
        "error": None,
        "outcome": {
            "status": 200,
            "served_by": "10.0.0.1:8000",
            "ending": "done",
            "ttft_ms": 250,
            "duration_ms": 1500,
            "response_bytes": 300,
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "cached_tokens": 5,
        },
    }
    assert {name: said[name] for name in wanted} == wanted


def test_what_the_body_mode_does_not_show_is_null() -> None:
    """And never 0."""
    said = explained(size=None, model="", decided_in=None)
    assert (said["size_bytes"], said["model"], said["decided_in_us"]) == (None, None, None)
    assert set(said["outcome"].values()) == {None}


def test_a_refused_request() -> None:
    """One without a decision, and one whose filters left nobody."""
    bad = explained(decision=None, error=BadRequest("not JSON"))
    assert bad["error"] == {"status": 400, "code": "BadRequest", "reason": None, "message": "not JSON"}
    assert (bad["candidates"], bad["profiles"], bad["destination"]) == ([], [], None)
    nobody = decided(endpoints(labels={"llm-d.ai/role": "prefill"}))
    error = ServiceUnavailable("nobody", reason="rejected-no-endpoints")
    said = explained(decision=nobody, error=error)
    assert said["error"]["reason"] == "rejected-no-endpoints"
    (stage,) = said["profiles"]
    assert len(stage["filters"][0]["dropped"]) == len(said["candidates"]) == 3
    assert (stage["pick"], stage["scorers"], stage["totals"]) == (None, [], {})


def test_endpoints_that_have_left_are_still_explained() -> None:
    """The explanation has the pool as it was."""
    c = endpoints()
    noted: Record = record(decision=decided(c))
    for name in ("pod-0", "pod-1", "pod-2"):
        c._pool.remove(f"default/{name}")
    assert [each["endpoint"] for each in render(noted)["candidates"]] == [f"default/pod-{n}" for n in range(3)]
    assert render(noted)["profiles"][0]["pick"]["endpoints"] == ["default/pod-0"]


def test_prompts_are_not_kept() -> None:
    """Neither the explanation nor what it is made of has the request's text."""
    marker = "a-secret-of-the-client"
    noted = record(decision=decided(sent=request(marker, headers={"authorization": marker})))
    assert marker not in repr(render(noted))
    seen: set[int] = set()
    reachable: list[Any] = [noted.decision]
    while reachable:
        item = reachable.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        assert item not in (marker, marker.encode()) if isinstance(item, str | bytes) else True
        if type(item).__module__.startswith("epp.") or isinstance(item, dict | list | tuple | set):
            reachable += gc.get_referents(item)
