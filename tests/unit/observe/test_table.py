"""The table of metrics: the names, labels and buckets that dashboards and autoscalers written for llm-d ask for."""

import re

import pytest

from epp.observe.metrics import Metrics
from epp.observe.series import Spec
from epp.observe.table import SPECS
from epp.plugin import Pool

L2 = ("model_name", "target_model_name")
L4 = (*L2, "fairness_id", "priority")
PLUGIN = ("extension_point", "plugin_type", "plugin_name")
INDEXER = ("plugin_name", "plugin_type")
OBJECTIVE = "inference_objective_"

# name: kind, labels, deprecated twin, its labels
LLM_D = {
    "llm_d_epp_request_total": ("counter", L4, OBJECTIVE + "request_total", (*L2, "priority")),
    "llm_d_epp_request_error_total": (
        "counter",
        (*L4, "error_code"),
        OBJECTIVE + "request_error_total",
        (*L2, "error_code"),
    ),
    "llm_d_epp_request_duration_seconds": ("histogram", L4, OBJECTIVE + "request_duration_seconds", L2),
    "llm_d_epp_request_size_bytes": ("histogram", L4, OBJECTIVE + "request_sizes", L2),
    "llm_d_epp_response_size_bytes": ("histogram", L4, OBJECTIVE + "response_sizes", L2),
    "llm_d_epp_request_input_tokens": ("histogram", L4, OBJECTIVE + "input_tokens", L2),
    "llm_d_epp_request_output_tokens": ("histogram", L4, OBJECTIVE + "output_tokens", L2),
    "llm_d_epp_request_cached_tokens": ("histogram", L4, OBJECTIVE + "prompt_cached_tokens", L2),
    "llm_d_epp_request_running": ("gauge", L4, OBJECTIVE + "running_requests", ("model_name",)),
    "llm_d_epp_request_ntpot_seconds": (
        "histogram",
        L4,
        OBJECTIVE + "normalized_time_per_output_token_seconds",
        L2,
    ),
    "llm_d_epp_request_ttft_seconds": ("histogram", (*L4, "streaming"), None, ()),
    "llm_d_epp_request_streaming_tpot_seconds": ("histogram", L4, None, ()),
    "llm_d_epp_request_streaming_itl_seconds": ("histogram", L4, None, ()),
    "llm_d_epp_request_processing_duration_seconds": ("histogram", (), None, ()),
    "llm_d_epp_info": ("gauge", ("commit", "build_ref"), "inference_extension_info", ("commit", "build_ref")),
    "llm_d_epp_scheduler_e2e_duration_seconds": (
        "histogram",
        (),
        "inference_extension_scheduler_e2e_duration_seconds",
        (),
    ),
    "llm_d_epp_scheduler_attempts_total": (
        "counter",
        ("status", "target_model_name", "endpoint_name", "namespace", "port"),
        None,
        (),
    ),
    "llm_d_epp_plugin_duration_seconds": (
        "histogram",
        PLUGIN,
        "inference_extension_plugin_duration_seconds",
        PLUGIN,
    ),
    "llm_d_epp_datalayer_poll_errors_total": ("counter", ("source_type",), None, ()),
    "llm_d_epp_datalayer_extract_errors_total": ("counter", ("source_type", "extractor_type"), None, ()),
    "llm_d_epp_prefix_indexer_size": ("gauge", INDEXER, "inference_extension_prefix_indexer_size", ()),
    "llm_d_epp_prefix_indexer_hit_ratio": (
        "histogram",
        INDEXER,
        "inference_extension_prefix_indexer_hit_ratio",
        (),
    ),
    "llm_d_epp_prefix_indexer_hit_bytes": (
        "histogram",
        INDEXER,
        "inference_extension_prefix_indexer_hit_bytes",
        (),
    ),
    "llm_d_epp_extproc_streams_inflight": ("gauge", (), None, ()),
    "llm_d_epp_extproc_stream_duration_seconds": ("histogram", (), None, ()),
    "llm_d_epp_extproc_streams_total": ("counter", ("code",), None, ()),
    "scheduler_requests_total": ("counter", ("profile",), None, ()),
    "scheduler_pod_score": ("gauge", ("pod",), None, ()),
    "scheduler_cache_hits_total": ("counter", (), None, ()),
    "scheduler_cache_misses_total": ("counter", (), None, ()),
}
BY_NAME = {spec.name: spec for spec in SPECS}


@pytest.mark.parametrize(("name", "expected"), LLM_D.items(), ids=LLM_D)
def test_a_family_that_is_asked_for(
    name: str, expected: tuple[str, tuple[str, ...], str | None, tuple[str, ...]]
) -> None:
    """It is there with exactly these labels, and so is its deprecated twin."""
    kind, labels, twin, kept = expected
    spec = BY_NAME[name]
    assert (spec.kind, spec.labels) == (kind, labels)
    if twin is not None:
        assert (twin, kept) in [(each.name, each.labels) for each in spec.twins]


def test_the_decisions_duration_has_the_books_name_too() -> None:
    """`scheduler_decision_duration_seconds`, a histogram without labels."""
    twins = BY_NAME["llm_d_epp_scheduler_e2e_duration_seconds"].twins
    assert ("scheduler_decision_duration_seconds", ()) in [(twin.name, twin.labels) for twin in twins]


POOL = """
    llm_d_epp_average_kv_cache_utilization inference_pool_average_kv_cache_utilization
    llm_d_epp_average_queue_size inference_pool_average_queue_size
    llm_d_epp_average_running_requests inference_pool_average_running_requests
    llm_d_epp_std_dev_kv_cache_utilization llm_d_epp_std_dev_queue_size llm_d_epp_std_dev_running_requests
    llm_d_epp_ready_endpoints inference_pool_ready_pods
    llm_d_epp_per_endpoint_queue_size inference_pool_per_pod_queue_size
    llm_d_epp_inflight_requests llm_d_epp_inflight_tokens
""".split()  # noqa: SIM905 (a list of quoted names reads worse)


def test_names_are_well_formed_and_taken_once() -> None:
    """No two families share a name, twins and the pool's gauges included."""
    names = [name for spec in SPECS for name in (spec.name, *(twin.name for twin in spec.twins))] + POOL
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in names)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_row(spec: Spec) -> None:
    """Counters end in _total, histograms have ascending bounds, twins keep labels that there are."""
    assert (spec.kind == "counter") == spec.name.endswith("_total")
    assert (spec.kind == "histogram") == bool(spec.bounds)
    assert list(spec.bounds) == sorted(set(spec.bounds))
    assert all(set(twin.labels) <= set(spec.labels) for twin in spec.twins)
    assert spec.help.startswith("[ALPHA] ") == spec.name.startswith("llm_d_epp_")


BOUNDS = {
    "llm_d_epp_request_duration_seconds": (35, 0.005, 3600),
    "llm_d_epp_request_ttft_seconds": (24, 0.005, 120),
    "llm_d_epp_request_size_bytes": (25, 64, 1 << 30),
    "llm_d_epp_response_size_bytes": (15, 1, 65536),
    "llm_d_epp_request_input_tokens": (19, 1, 1 << 20),
    "llm_d_epp_request_output_tokens": (12, 1, 8192),
    "llm_d_epp_request_ntpot_seconds": (13, 0.001, 10),
    "llm_d_epp_request_streaming_tpot_seconds": (19, 0.0005, 2),
    "llm_d_epp_request_streaming_itl_seconds": (15, 0.001, 2),
    "llm_d_epp_request_processing_duration_seconds": (16, 0.0005, 10),
    "llm_d_epp_scheduler_e2e_duration_seconds": (10, 0.0001, 0.1),
    "llm_d_epp_plugin_duration_seconds": (10, 0.0001, 0.1),
    "llm_d_epp_prefix_indexer_hit_ratio": (11, 0, 1),
    "llm_d_epp_prefix_indexer_hit_bytes": (14, 0, 65536),
    "llm_d_epp_extproc_stream_duration_seconds": (14, 0.001, 600),
}


@pytest.mark.parametrize(("name", "expected"), BOUNDS.items(), ids=BOUNDS)
def test_buckets_are_llm_ds(name: str, expected: tuple[int, float, float]) -> None:
    """Queries over quantiles need the same bounds: how many, the lowest, the highest."""
    bounds = BY_NAME[name].bounds
    assert (len(bounds), bounds[0], bounds[-1]) == expected


def test_every_family_is_exposed() -> None:
    """What the table lists is what Metrics has."""
    assert set(Metrics(Pool(), "p").families) == set(BY_NAME)
