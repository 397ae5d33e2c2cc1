"""What `epp serve` was told: one frozen value. `epp.cli.flags` reads it off the command line."""

from dataclasses import dataclass
from typing import Literal

from epp.errors import ConfigError

BodyModeName = Literal["FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "NONE"]

_REMEDY = "name the model servers with --endpoints IP:PORT,... or --endpoints-file FILE"
_IN_A_CLUSTER = "or their InferencePool with --pool-name NAME"


def listen_address(address: str, port: int) -> str:
    """Where gRPC listens: `ip:port`, IPv6 in brackets; the address "" stands for all interfaces."""
    host = address or "::"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Every option of `epp serve`: a field is the flag of its name, `epp serve --help` says what each one does.

    Durations are seconds, sizes bytes; a port of 0 is a free port; "" and () mean that nothing was given.

    Attributes:
        pool_group: "" for v1's, and where that has no such pool v1alpha2's.
        grpc_bind_address: "" for all interfaces; see `listen_address`.
        grpc_max_recv_msg_size: at least `max_request_body_bytes` and some more unless it was given.
        grpc_max_send_msg_size: None for no limit.
        metrics_bind_address: None if it wasn't given: see `metrics_host`.
        model_server_metrics_scheme: "" if not given: what the configuration says, or http. So is the path.
        model_server_metrics_port: 0 for the port of the endpoint.
        model_server_metrics_https_insecure_skip_verify: None if not given.
        total_queued_requests_metric: "" if not given: what the configuration says. So are the other four.
        tls_min_version: "", "VersionTLS12" or "VersionTLS13".
        verbosity: -v or --zap-log-level: 0 errors, 1 warnings too, 2 normal, 4 debug, 5 trace.
        warnings: what the operator should know before anything starts, a sentence each.
    """

    # Model servers
    endpoints: tuple[str, ...]
    endpoints_file: str
    pool_name: str
    pool_namespace: str
    pool_group: str
    endpoint_selector: str
    endpoint_target_ports: tuple[int, ...]
    disable_endpoint_subset_filter: bool

    # Configuration
    config_file: str
    config_text: str
    plugin_time_budget: float

    # Listening
    grpc_port: int
    grpc_health_port: int
    grpc_bind_address: str
    grpc_max_recv_msg_size: int
    grpc_max_send_msg_size: int | None
    drain_timeout: float
    ha_enable_leader_election: bool

    # Requests
    default_body_mode: BodyModeName
    max_request_body_bytes: int
    llm_d_status_codes: bool
    emit_endpoint_scores: bool

    # TLS
    secure_serving: bool
    cert_path: str
    enable_cert_reload: bool
    tls_min_version: str
    tls_cipher_suites: tuple[str, ...]

    # Metrics of the model servers
    refresh_metrics_interval: float
    metrics_staleness_threshold: float
    model_server_metrics_scheme: str
    model_server_metrics_path: str
    model_server_metrics_port: int
    model_server_metrics_https_insecure_skip_verify: bool | None
    total_queued_requests_metric: str
    total_running_requests_metric: str
    kv_cache_usage_percentage_metric: str
    lora_info_metric: str
    cache_info_metric: str

    # Metrics, logs and traces of our own
    metrics_port: int
    metrics_bind_address: str | None
    metrics_endpoint_auth: bool
    metrics_cert_dir: str
    metrics_client_ca_file: str
    refresh_prometheus_metrics_interval: float
    enable_grpc_stream_metrics: bool
    enable_pprof: bool
    tracing: bool
    decision_log: str
    decision_log_max_bytes: int
    decision_log_max_files: int
    decision_log_candidates: int
    verbosity: int

    warnings: tuple[str, ...] = ()

    def metrics_host(self, *, reviewed: bool) -> str:
        """The interface of the metrics port; "" for all.

        Args:
            reviewed: whether readers are checked. If they should be and can't, it is loopback unless one was given.
        """
        if self.metrics_bind_address is not None:
            return self.metrics_bind_address
        return "" if reviewed or not self.metrics_endpoint_auth else "127.0.0.1"

    def in_kubernetes(self, *, discovery: bool) -> bool:
        """Whether the model servers are pods that Kubernetes tells of. They come from exactly one place.

        Args:
            discovery: whether the configuration has a discovery plugin.

        Raises:
            ConfigError: they come from nowhere, or from two places.
        """
        places = {
            "--endpoints": self.endpoints,
            "--endpoints-file": self.endpoints_file,
            "dataLayer.discovery of the configuration": discovery,
            "--endpoint-selector": self.endpoint_selector,
        }
        sources = [place for place, given in places.items() if given]
        if len(sources) > 1:
            raise ConfigError(f"the model servers come from {' and from '.join(sources)}: keep one of them")
        if not sources and not self.pool_name:  # which beside another place is just a name
            remedy = f"{_REMEDY}, a file-discovery plugin in the configuration, {_IN_A_CLUSTER}"
            raise ConfigError(f"there are no model servers: {remedy}")
        return not sources or bool(self.endpoint_selector)
