"""What is entered from records, and what is read off the pool when somebody scrapes."""

import math
from typing import Any

import pytest

from epp.errors import BadRequest, RequestError, ResourceExhausted
from epp.keys import RUNNING, WAITING
from epp.observe.metrics import MOST_FAIRNESS_IDS, MOST_MODELS, OTHER, Metrics
from epp.plugin import Endpoint, Outcome, Pool, Usage
from epp.testing import pool as make_pool
from tests.unit.observe.parts import decided, endpoints, one, record, samples

LABELS = {"model_name": "m", "target_model_name": "m", "fairness_id": "default-flow", "priority": "0"}
P = "llm_d_epp_"


def entered(*outcomes: Outcome, **fields: Any) -> dict[Any, float]:
    """The samples after requests with these outcomes."""
    metrics = Metrics(Pool(), "p")
    for outcome in outcomes:
        noted = record(outcome=outcome, **fields)
        series = metrics.of(noted)
        metrics.routed(noted, series)
        metrics.finished(noted, series)
    return samples(metrics)


def test_a_request_from_its_pick_to_its_end() -> None:
    """Each family has its sample; what is in flight goes up and down."""
    metrics = Metrics(Pool(), "p")
    outcome = Outcome(200, duration=2.0, first_byte=0.5, response_bytes=300, streaming=True, usage=Usage(1000, 31, 640))
    noted = record(outcome=outcome)
    series = metrics.of(noted)
    metrics.routed(noted, series)
    assert one(samples(metrics), P + "request_running", **LABELS) == 1
    metrics.finished(noted, series)
    found = samples(metrics)
    assert one(found, P + "request_running", **LABELS) == 0
    assert one(found, "inference_objective_running_requests", model_name="m") == 0
    assert one(found, P + "request_total", **LABELS) == 1
    assert one(found, "inference_objective_request_total", model_name="m", priority="0") == 1
    sums = {
        "request_duration_seconds": 2.0,
        "request_size_bytes": 100,
        "response_size_bytes": 300,
        "request_input_tokens": 1000,
        "request_output_tokens": 31,
        "request_cached_tokens": 640,
        "request_ntpot_seconds": 2.0 / 31,
        "request_streaming_tpot_seconds": 1.5 / 30,
    }
    for name, expected in sums.items():
        assert one(found, f"{P}{name}_sum", **LABELS) == pytest.approx(expected), name
        assert one(found, f"{P}{name}_count", **LABELS) == 1, name
    attempt = {"status": "success", "target_model_name": "m", "endpoint_name": "pod-0", "namespace": "default"}
    assert one(found, P + "scheduler_attempts_total", **attempt, port="8000") == 1
    assert one(found, "scheduler_requests_total", profile="default") == 1
    assert one(found, "scheduler_pod_score", pod="pod-0") == 3
    for name in ("llm_d_epp_scheduler_e2e", "inference_extension_scheduler_e2e", "scheduler_decision"):
        assert one(found, f"{name}_duration_seconds_sum") == pytest.approx(0.0002)
    assert one(found, P + "request_processing_duration_seconds_sum") == pytest.approx(0.001)


# what the body mode doesn't show has no sample: families by outcome
ABSENT = {
    "nothing is shown": (Outcome(), {"size": None}, "duration size response_size input output cached ntpot tpot"),
    "only the status": (Outcome(200, duration=1.0), {}, "response_size input output cached ntpot tpot"),
    "no usage": (Outcome(200, duration=1.0, response_bytes=0), {}, "input output cached ntpot tpot"),
    "not streamed": (
        Outcome(200, duration=1.0, response_bytes=9, first_byte=0.5, streaming=False, usage=Usage(5, 5, 0)),
        {},
        "tpot",
    ),
    "one token": (
        Outcome(200, duration=1.0, response_bytes=9, first_byte=0.5, streaming=True, usage=Usage(5, 1, 0)),
        {},
        "tpot",
    ),
    "an embedding": (Outcome(200, duration=1.0, response_bytes=9, usage=Usage(5, 0)), {}, "output cached ntpot tpot"),
}
FAMILIES = {
    "duration": "request_duration_seconds",
    "size": "request_size_bytes",
    "response_size": "response_size_bytes",
    "input": "request_input_tokens",
    "output": "request_output_tokens",
    "cached": "request_cached_tokens",
    "ntpot": "request_ntpot_seconds",
    "tpot": "request_streaming_tpot_seconds",
}


@pytest.mark.parametrize(("outcome", "fields", "absent"), ABSENT.values(), ids=ABSENT)
def test_what_is_not_shown_is_not_counted(outcome: Outcome, fields: dict[str, Any], absent: str) -> None:
    """A request of which something is unknown has no sample of it, rather than one of 0."""
    found = entered(outcome, **fields)
    counted = {name for name, family in FAMILIES.items() if one(found, f"{P}{family}_count", **LABELS) == 1}
    assert counted == set(FAMILIES) - set(absent.split())


@pytest.mark.parametrize(("status", "errors"), [(200, math.nan), (399, math.nan), (400, 1), (503, 1), (None, math.nan)])
def test_errors_of_the_model_server(status: int | None, errors: float) -> None:
    """Its answers from 400 on count as ModelServerError."""
    found = entered(Outcome(status))
    counted = one(found, P + "request_error_total", error_code="ModelServerError")
    assert counted == pytest.approx(errors, nan_ok=True)


@pytest.mark.parametrize(
    ("error", "code", "failures"),
    [
        pytest.param(BadRequest("no"), "BadRequest", math.nan, id="before the decision"),
        pytest.param(ResourceExhausted("no"), "ResourceExhausted", 1, id="by the decision"),
    ],
)
def test_a_refused_request(error: RequestError, code: str, failures: float) -> None:
    """It counts as an error by its code; as a failed attempt only if there was a decision."""
    metrics = Metrics(Pool(), "p")
    nobody = decided(endpoints(labels={"llm-d.ai/role": "prefill"}))
    assert nobody.found() is None
    metrics.refused(record(error=error, decision=nobody if failures == 1 else None))
    found = samples(metrics)
    assert one(found, P + "request_error_total", **LABELS, error_code=code) == 1
    assert one(found, "inference_objective_request_error_total", model_name="m", error_code=code) == 1
    assert one(found, P + "scheduler_attempts_total", status="failure") == pytest.approx(failures, nan_ok=True)
    assert one(found, P + "request_total", **LABELS) == 0


PREFIX = {
    "nobody keeps an index": ({"matched": None}, 0, 0, math.nan),
    "nothing is held": ({"matched": 0.0, "matchable": 40.0}, 0, 1, 0),
    "a part is held": ({"matched": 10.0, "matchable": 40.0}, 1, 0, 0.25),
    "nothing could be held": ({"matched": 0.0, "matchable": 0.0}, 0, 1, math.nan),
}


@pytest.mark.parametrize(("fields", "hits", "misses", "ratio"), PREFIX.values(), ids=PREFIX)
def test_prefix_hits(fields: dict[str, float], hits: int, misses: int, ratio: float) -> None:
    """Hits, misses and the matched share, by the plugin that keeps the index."""
    found = entered(Outcome(200), indexer=("own", "approx-prefix-cache-producer"), **fields)
    assert one(found, "scheduler_cache_hits_total") == hits
    assert one(found, "scheduler_cache_misses_total") == misses
    labels = {"plugin_name": "own", "plugin_type": "approx-prefix-cache-producer"}
    assert one(found, P + "prefix_indexer_hit_ratio_sum", **labels) == pytest.approx(ratio, nan_ok=True)
    expected = (fields["matched"] or 0) * 4 if not math.isnan(ratio) else math.nan
    assert one(found, P + "prefix_indexer_hit_bytes_sum", **labels) == pytest.approx(expected, nan_ok=True)


def test_the_size_of_an_index_is_looked_up_when_it_is_scraped() -> None:
    """As it is at that moment."""
    sizes = {("own", "approx-prefix-cache-producer"): 5}
    metrics = Metrics(Pool(), "p", sizes=lambda: sizes)
    sizes["own", "approx-prefix-cache-producer"] = 7
    found = samples(metrics)
    assert one(found, P + "prefix_indexer_size", plugin_name="own") == 7
    assert one(found, "inference_extension_prefix_indexer_size") == 7


@pytest.mark.parametrize(("field", "most"), [("model", MOST_MODELS), ("fairness_id", MOST_FAIRNESS_IDS)])
def test_label_values_that_clients_choose_are_bounded(field: str, most: int) -> None:
    """Beyond so many, all others count together; those that were there first keep their own."""
    metrics = Metrics(Pool(), "p")
    for number in range(most + 20):
        noted = record(f"r-{number}", **{field: f"value-{number}"})
        metrics.routed(noted, metrics.of(noted))
    family = metrics.families[P + "request_total"]
    place = family.spec.labels.index({"model": "model_name", "fairness_id": "fairness_id"}[field])
    totals = {labels[place]: child.value for labels, child in family.children.items()}
    assert len(totals) == most + 1
    assert totals[OTHER] == 20
    assert totals["value-0"] == 1


# --- the pool's gauges


def test_the_pools_gauges() -> None:
    """Means and deviations over the endpoints that are known, and the twins of llm-d."""
    pool = make_pool(
        waiting=[1, 4, math.nan], running=[2, 2, 2], kv_usage=[0.123, 0.5, 0.2], inflight_requests=[1, 0, 2]
    )
    pool.eligible[1] = False
    found = samples(Metrics(pool, "mine", now=lambda: 1.0))
    mine = {"name": "mine"}
    assert one(found, P + "average_queue_size", **mine) == 2.5
    assert one(found, "inference_pool_average_queue_size", **mine) == 2.5
    assert one(found, P + "std_dev_queue_size", **mine) == pytest.approx(2.1213, abs=1e-4)
    assert one(found, P + "average_kv_cache_utilization", **mine) == 0.27
    assert one(found, P + "std_dev_running_requests", **mine) == 0
    assert one(found, P + "ready_endpoints", **mine) == one(found, "inference_pool_ready_pods", **mine) == 2
    assert one(found, P + "per_endpoint_queue_size", model_server_endpoint="pod-1", **mine) == 4
    assert one(found, "inference_pool_per_pod_queue_size", model_server_pod="pod-1", **mine) == 4
    assert math.isnan(one(found, P + "per_endpoint_queue_size", model_server_endpoint="pod-2"))
    assert one(found, P + "inflight_requests", endpoint_name="pod-2") == 2
    assert one(found, P + "inflight_tokens", endpoint_name="pod-2") == 0


def test_averages_leave_out_what_is_old() -> None:
    """--metrics-staleness-threshold; where nobody is left the average is absent, and not that of yesterday."""
    pool, now = Pool(), [100.0]
    for number, (seen, waiting) in enumerate([(98.5, 1.0), (96.0, 9.0)]):
        slot = pool.add(Endpoint(f"pod-{number}", f"10.0.0.{number}", 8000))
        pool.write(slot, {WAITING: waiting, RUNNING: 0.0}, now=seen, fresh_until=math.inf)
    metrics = Metrics(pool, "p", now=lambda: now[0], staleness=2.0)
    assert one(samples(metrics), P + "average_queue_size") == 1
    now[0] = 101.0
    assert math.isnan(one(samples(metrics), P + "average_queue_size"))
    assert one(samples(metrics), P + "ready_endpoints") == 2


def test_an_empty_pool() -> None:
    """0 endpoints are ready, and there are no averages."""
    found = samples(Metrics(Pool(), "p"))
    assert one(found, P + "ready_endpoints") == 0
    assert math.isnan(one(found, P + "average_queue_size"))


def test_an_endpoint_that_has_left() -> None:
    """Its gauges go; its counters stay, since counters never fall."""
    pool = make_pool(names=["pod-0"], waiting=[1])
    metrics = Metrics(pool, "p")
    noted = record()
    metrics.routed(noted, metrics.of(noted))
    pool.remove("default/pod-0")
    metrics.forget_endpoint("pod-0")
    metrics.forget_endpoint("never-there")
    found = samples(metrics)
    assert math.isnan(one(found, "scheduler_pod_score", pod="pod-0"))
    assert math.isnan(one(found, P + "inflight_requests", endpoint_name="pod-0"))
    assert one(found, P + "scheduler_attempts_total", endpoint_name="pod-0") == 1


@pytest.mark.parametrize("streams", [False, True])
def test_the_families_of_streams_are_for_those_who_ask(streams: bool) -> None:
    """--enable-grpc-stream-metrics."""
    metrics = Metrics(Pool(), "p", streams=streams)
    metrics.streams_inflight.inc()
    metrics.stream_ended("OK", 3.0)
    found = samples(metrics)
    assert one(found, P + "extproc_streams_total", code="OK") == pytest.approx(1 if streams else math.nan, nan_ok=True)
    assert (P + "extproc_streams_inflight" in {name for name, _ in found}) == streams
    assert (P + "extproc_stream_duration_seconds_sum" in {name for name, _ in found}) == streams


def test_the_process_is_described() -> None:
    """Its version, and what prometheus_client knows of it."""
    found = samples(Metrics(Pool(), "p"))
    assert one(found, P + "info", commit="") == 1
    assert one(found, "process_resident_memory_bytes") > 0
