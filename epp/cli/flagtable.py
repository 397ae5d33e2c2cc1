"""The table of flags of `epp serve`: each with its type, default and help, and whether anything stands behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from epp.cli import flagtypes as a

Status = Literal["built", "accepted", "removed"]
"""built: it does what it says. accepted: the feature isn't built yet, and setting it says so. removed: by llm-d."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag.

    Attributes:
        name: as llm-d spells it, in kebab case; the camel case of the same name is understood too.
        default: as one would write it; None for a value of None.
        note: for accepted and removed flags, why; for a built one, a warning for whoever sets it.
        field: the field of `ServeOptions`, or "" if the flag is no option of its own.
    """

    name: str
    kind: a.Kind
    default: str | None
    help: str
    status: Status = "built"
    note: str = ""
    own_field: str | None = None

    @property
    def field(self) -> str:
        """The field of `ServeOptions`; "" if the flag is no option of its own."""
        return self.name.replace("-", "_") if self.own_field is None else self.own_field


def camel(name: str) -> str:
    """`grpc-health-port` as `grpcHealthPort`."""
    first, *rest = name.split("-")
    return first + "".join(word.capitalize() for word in rest)


_ENGINES = "deprecated in favour of engineConfigs of core-metrics-extractor in the configuration, and wins over them"
_SCRAPE = "deprecated in favour of the parameters of metrics-data-source in the configuration, and wins over them"
_LOGS = "the log has one form of its own"


GROUPS: Mapping[str, tuple[Flag, ...]] = {
    "Model servers": (
        Flag("endpoints", a.LIST, "", "the model servers; a comma list, and repeatable"),
        Flag("endpoints-file", a.FILE, "", "a file that lists the model servers, read again when it changes"),
        Flag("pool-name", a.TEXT, "", "the InferencePool whose pods are the model servers; with a list, just its name"),
        Flag("pool-namespace", a.TEXT, "", "its namespace; the environment's NAMESPACE, or default"),
        Flag("pool-group", a.TEXT, "", "inference.networking.k8s.io or ...x-k8s.io; the first that has it by default"),
        Flag("endpoint-selector", a.TEXT, "", "a label selector for the model servers' pods, without a pool"),
        Flag("endpoint-target-ports", a.PORTS, "", "the ports of those pods, 1 to 8"),
        Flag("disable-endpoint-subset-filter", a.BOOL, "false", "ignore the subset of endpoints that Envoy names"),
    ),
    "Configuration": (
        Flag("config-file", a.FILE, "", "an EndpointPickerConfig, read again when it changes, and on SIGHUP"),
        Flag("config-text", a.TEXT, "", "the same, inline"),
        Flag("plugin-time-budget", a.DURATION, "5ms", "of a plugin call; overruns in a row bypass it, 0: no limit"),
        Flag("allow-experimental-plugins", a.BOOL, "false", "what llm-d calls Alpha; always permitted", own_field=""),
    ),
    "Listening": (
        Flag("grpc-port", a.PORT, "9002", "where Envoy asks (ext_proc); 0 is a free port, as for all ports"),
        Flag("grpc-health-port", a.PORT, "9003", "gRPC health, without TLS"),
        Flag("grpc-bind-address", a.ADDRESS, "", "the interface of both; all by default"),
        Flag("health-checking", a.BOOL, "true", "gRPC health on the ext_proc port, too; always on", own_field=""),
        Flag("grpc-max-recv-msg-size", a.SIZE, None, "of one message; 4Mi more than --max-request-body-bytes"),
        Flag("grpc-max-send-msg-size", a.SIZE, None, "of one message; no limit by default"),
        Flag("drain-timeout", a.DURATION, "30s", "how long to go on serving after SIGTERM"),
        Flag("ha-enable-leader-election", a.BOOL, "false", "only one replica at a time is ready (in Kubernetes)"),
        Flag("grpc-enable-compression", a.BOOL, "false", "", "removed", "gRPC's clients ask for it", ""),
    ),
    "Requests": (
        Flag(
            "default-body-mode",
            a.BODY_MODE,
            "FULL_DUPLEX_STREAMED",
            "how request bodies come when Envoy doesn't say; or BUFFERED, STREAMED, BUFFERED_PARTIAL, NONE",
        ),
        Flag("max-request-body-bytes", a.SIZE, "32Mi", "a longer body is answered with 413"),
        Flag("llm-d-status-codes", a.BOOL, "false", "answer with llm-d's status codes where ours differ"),
        Flag("emit-endpoint-scores", a.BOOL, "false", "tell Envoy the scores as dynamic metadata"),
    ),
    "TLS": (
        Flag("secure-serving", a.BOOL, "true", "TLS on the ext_proc port"),
        Flag("cert-path", a.FOLDER, "", "holds tls.crt and tls.key; without it a certificate is made up at start"),
        Flag("enable-cert-reload", a.BOOL, "true", "take a new certificate when the files change"),
        Flag("tls-min-version", a.TLS_VERSION, "", "VersionTLS12 (gRPC's lowest) or VersionTLS13"),
        Flag("tls-cipher-suites", a.SUITES, "", "Go's names, for TLS 1.2; those of TLS 1.3 are always on"),
    ),
    "Metrics of the model servers": (
        Flag("refresh-metrics-interval", a.DURATION, "50ms", "between two scrapes of one server, at least 50ms"),
        Flag("metrics-staleness-threshold", a.DURATION, "2s", "how old a value may be in the pool's own metrics"),
        Flag("model-server-metrics-scheme", a.SCHEME, "", "http or https", note=_SCRAPE),
        Flag("model-server-metrics-path", a.PATH, "", "such as /metrics", note=_SCRAPE),
        Flag("model-server-metrics-port", a.PORT, "0", "0 for the server's own", note=_SCRAPE),
        Flag("model-server-metrics-https-insecure-skip-verify", a.BOOL, None, "trust any server", note=_SCRAPE),
        Flag("total-queued-requests-metric", a.TEXT, "", "the name of vLLM's num_requests_waiting", note=_ENGINES),
        Flag("total-running-requests-metric", a.TEXT, "", "the name of vLLM's num_requests_running", note=_ENGINES),
        Flag("kv-cache-usage-percentage-metric", a.TEXT, "", "the name of vLLM's kv_cache_usage_perc", note=_ENGINES),
        Flag("lora-info-metric", a.TEXT, "", "the name of vLLM's lora_requests_info", note=_ENGINES),
        Flag("cache-info-metric", a.TEXT, "", "the name of vLLM's cache_config_info", note=_ENGINES),
    ),
    "Metrics, logs and traces": (
        Flag("metrics-port", a.PORT, "9090", "Prometheus metrics and debugging"),
        Flag("metrics-bind-address", a.ADDRESS, None, "all; 127.0.0.1 where readers should be checked and can't be"),
        Flag("metrics-endpoint-auth", a.BOOL, "true", "ask Kubernetes who may read; without it, serve 127.0.0.1"),
        Flag("metrics-cert-dir", a.FOLDER, "", "TLS for metrics: a folder with tls.crt and tls.key"),
        Flag("metrics-client-ca-file", a.FILE, "", "who signs the certificates that readers must show"),
        Flag(
            "refresh-prometheus-metrics-interval",
            a.DURATION,
            "5s",
            "between two updates of the pool's metrics",
            "accepted",
            "the pool's metrics are computed whenever they are asked for",
        ),
        Flag("enable-grpc-stream-metrics", a.BOOL, "false", "count and time ext_proc streams"),
        Flag("enable-pprof", a.BOOL, "true", "Go's profiler", "accepted", "it is a profiler of Go programs"),
        Flag("tracing", a.BOOL, "true", "OpenTelemetry", "accepted", "traces aren't built yet"),
        Flag("decision-log", a.FILE, "", "write a compact row a request there: docs/decision-log.md"),
        Flag("decision-log-max-bytes", a.BYTES, "100Mi", "begin a new file when it is so long"),
        Flag("decision-log-max-files", a.COUNT, "10", "how many are kept: FILE, FILE.1, ..."),
        Flag("decision-log-candidates", a.COUNT, "32", "how many candidates a row has, the best and the picks"),
        Flag("v", a.INT, "2", "verbosity: 0 errors, 1 warnings, 2 normal, 4 debug, 5 trace", own_field="verbosity"),
        Flag("zap-log-level", a.LEVEL, "", "the same as a name: error, warn, info, debug; or a number", own_field=""),
        Flag("zap-encoder", a.ENCODER, "json", "the form of log lines; always json", own_field=""),
        Flag("zap-devel", a.BOOL, "false", "zap's development mode", "accepted", _LOGS, ""),
        Flag("zap-stacktrace-level", a.TEXT, "", "from which level on", "accepted", _LOGS, ""),
        Flag("zap-time-encoding", a.TEXT, "", "the form of times", "accepted", _LOGS, ""),
    ),
}

FLAGS: tuple[Flag, ...] = tuple(flag for group in GROUPS.values() for flag in group)

BY_SPELLING: Mapping[str, Flag] = {name: flag for flag in FLAGS for name in (flag.name, camel(flag.name))}
