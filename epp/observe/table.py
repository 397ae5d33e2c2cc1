"""The table of metrics: every name, its labels, its buckets, its deprecated twin.

Names and buckets are llm-d's (docs/protocol.md names the differences), so dashboards and autoscalers written for it
work.
"""

from epp.observe.series import Spec, Twin

L2 = ("model_name", "target_model_name")
L4 = (*L2, "fairness_id", "priority")

LATENCY = (
    *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60, 120),
    *(180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600),
)
TTFT = LATENCY[:24]
REQUEST_SIZE = tuple(float(64 << n) for n in range(25))
RESPONSE_SIZE = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32778, 65536)
TOKENS_IN = (*RESPONSE_SIZE, 131072, 262144, 524288, 1048576)
TOKENS_OUT = RESPONSE_SIZE[:12]
SCHEDULING = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
NTPOT = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TPOT = (0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 2)
ITL = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2)
REQUEST_PROCESSING = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STREAM = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)
REGRET = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RATIO = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

HIT_BYTES = (0.0, *(float(16 << n) for n in range(13)))

INDEXER = ("plugin_name", "plugin_type")
PLUGIN = ("extension_point", "plugin_type", "plugin_name")
DECISION = ("plugin_name", "plugin_type", "model_name", "decision_type")
REWRITE = ("model_rewrite_name", "model_name", "target_model")
ATTEMPT = ("status", "target_model_name", "endpoint_name", "namespace", "port")


def _epp(tail: str, kind: str, labels: tuple[str, ...], text: str, bounds: tuple[float, ...] = ()) -> Spec:
    return Spec(f"llm_d_epp_{tail}", kind, labels, f"[ALPHA] {text}", bounds)  # type: ignore[arg-type]


def _with(spec: Spec, twin: str, labels: tuple[str, ...], *, deprecated: bool = True) -> Spec:
    return Spec(
        spec.name, spec.kind, spec.labels, spec.help, spec.bounds, (*spec.twins, Twin(twin, labels, deprecated))
    )


def _objective(spec: Spec, twin: str, labels: tuple[str, ...] = L2) -> Spec:
    return _with(spec, f"inference_objective_{twin}", labels)


SPECS = (
    _objective(
        _epp("request_total", "counter", L4, "Requests that were accepted and routed."),
        "request_total",
        (*L2, "priority"),
    ),
    _objective(
        _epp("request_error_total", "counter", (*L4, "error_code"), "Requests that failed, by code."),
        "request_error_total",
        (*L2, "error_code"),
    ),
    _objective(
        _epp("request_duration_seconds", "histogram", L4, "Arrival to the end of the response.", LATENCY),
        "request_duration_seconds",
    ),
    _objective(_epp("request_size_bytes", "histogram", L4, "Request body size.", REQUEST_SIZE), "request_sizes"),
    _objective(_epp("response_size_bytes", "histogram", L4, "Response body size.", RESPONSE_SIZE), "response_sizes"),
    _objective(_epp("request_input_tokens", "histogram", L4, "Prompt tokens.", TOKENS_IN), "input_tokens"),
    _objective(_epp("request_output_tokens", "histogram", L4, "Generated tokens.", TOKENS_OUT), "output_tokens"),
    _objective(
        _epp("request_cached_tokens", "histogram", L4, "Prompt tokens that the engine had cached.", TOKENS_IN),
        "prompt_cached_tokens",
    ),
    _objective(_epp("request_running", "gauge", L4, "Requests in flight."), "running_requests", ("model_name",)),
    _objective(
        _epp("request_ntpot_seconds", "histogram", L4, "Duration over generated tokens.", NTPOT),
        "normalized_time_per_output_token_seconds",
    ),
    _epp("request_ttft_seconds", "histogram", (*L4, "streaming"), "Arrival to the first byte of the body.", TTFT),
    _epp("request_streaming_tpot_seconds", "histogram", L4, "(duration - TTFT) / (tokens - 1).", TPOT),
    _epp("request_streaming_itl_seconds", "histogram", L4, "Gap between pieces of the body.", ITL),
    _epp(
        "request_processing_duration_seconds",
        "histogram",
        (),
        "Arrival to the replies to the request.",
        REQUEST_PROCESSING,
    ),
    _with(
        _with(
            _epp("scheduler_e2e_duration_seconds", "histogram", (), "Duration of a decision.", SCHEDULING),
            "inference_extension_scheduler_e2e_duration_seconds",
            (),
        ),
        "scheduler_decision_duration_seconds",
        (),
        deprecated=False,
    ),
    _epp("scheduler_attempts_total", "counter", ATTEMPT, "Decisions by result."),
    _with(
        _epp("plugin_duration_seconds", "histogram", PLUGIN, "Duration of a plugin call.", SCHEDULING),
        "inference_extension_plugin_duration_seconds",
        PLUGIN,
    ),
    _epp("plugin_faults_total", "counter", (*PLUGIN, "fault"), "Plugin results that were left out, by fault."),
    _epp("plugin_overruns_total", "counter", PLUGIN, "Plugin calls that took longer than --plugin-time-budget."),
    _epp("plugin_bypasses_total", "counter", PLUGIN, "Plugin calls that were left out after overruns in a row."),
    _epp("config_reloads_total", "counter", ("result",), "Loads of a changed configuration: ok, or failed."),
    _with(
        _epp("prefix_indexer_size", "gauge", INDEXER, "Blocks in the prefix index."),
        "inference_extension_prefix_indexer_size",
        (),
    ),
    _with(
        _epp("prefix_indexer_hit_ratio", "histogram", INDEXER, "Matched share of the prompt at the pick.", RATIO),
        "inference_extension_prefix_indexer_hit_ratio",
        (),
    ),
    _with(
        _epp("prefix_indexer_hit_bytes", "histogram", INDEXER, "Matched bytes of the prompt at the pick.", HIT_BYTES),
        "inference_extension_prefix_indexer_hit_bytes",
        (),
    ),
    _with(
        _epp("info", "gauge", ("commit", "build_ref"), "1, with the version."),
        "inference_extension_info",
        ("commit", "build_ref"),
    ),
    _with(
        _epp("model_rewrite_decisions_total", "counter", REWRITE, "Requests whose model a rule has chosen."),
        "inference_extension_model_rewrite_decisions_total",
        REWRITE,
    ),
    _epp("datalayer_poll_errors_total", "counter", ("source_type",), "Scrapes that failed."),
    _epp(
        "datalayer_extract_errors_total",
        "counter",
        ("source_type", "extractor_type"),
        "Pages that an extractor could not read.",
    ),
    _with(
        _epp("disagg_decision_total", "counter", DECISION, "Requests by the stages that they were split into."),
        "llm_d_inference_scheduler_disagg_decision_total",
        DECISION[2:],
    ),
    _with(
        _epp("pd_decision_total", "counter", DECISION, "Requests by the stages that they were split into."),
        "llm_d_inference_scheduler_pd_decision_total",
        DECISION[2:],
    ),
    _epp("compared_decisions_total", "counter", ("other", "result"), "Decisions against the shadow's, or a picker's."),
    _epp("regret", "histogram", ("other",), "What the other decision would have won, in shares of its points.", REGRET),
    _epp("decision_log_rows_total", "counter", ("result",), "Rows of the decision log: written, or dropped."),
    _epp("discovery_stale", "gauge", (), "1 while the API server is lost and the endpoints stay as they were."),
    _epp("discovery_unread", "gauge", (), "Objects of the API server that can't be read, and stay as they were."),
    _epp("leader", "gauge", (), "1 if this replica leads, where there is an election."),
    _epp("endpoint_changes_total", "counter", ("state",), "Endpoints taken out, back in, or seen to restart."),
    _epp("extproc_streams_inflight", "gauge", (), "ext_proc streams in flight."),
    _epp("extproc_stream_duration_seconds", "histogram", (), "Duration of an ext_proc stream.", STREAM),
    _epp("extproc_streams_total", "counter", ("code",), "ext_proc streams by how they ended."),
    Spec("scheduler_requests_total", "counter", ("profile",), "Requests scheduled, by primary profile."),
    Spec("scheduler_pod_score", "gauge", ("pod",), "Total score of the endpoint when it was last picked."),
    Spec("scheduler_cache_hits_total", "counter", (), "Picks that are believed to hold a part of the prompt."),
    Spec("scheduler_cache_misses_total", "counter", (), "Picks that are believed to hold nothing of the prompt."),
)
