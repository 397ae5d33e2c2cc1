"""The settings of the Envoy in llm-d's standalone chart, to see the picker work behind it as it is deployed today.

Addresses, limits and the access log aside nothing is improved: no retries, no fallback, no metadata, Envoy's own
errors as plain text, and with the picker dead a destination that the client names is followed.
"""

from typing import Any

from epp.envoy import clusters, logs
from epp.envoy.filters import DESTINATION, PICKER_CLUSTER, ext_proc, observers, processing_mode, router, typed
from epp.envoy.options import EnvoyOptions

ENGINES_CLUSTER = "original_destination_cluster"
_LONG = "86400s"
_WINDOWS = {"initial_stream_window_size": 65_536, "initial_connection_window_size": 1_048_576}


def resources(options: EnvoyOptions) -> dict[str, Any]:
    """`static_resources` of the mode original-dst."""
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", **_manager(options)
    )
    listener = {
        "name": "gateway",
        "address": clusters.socket(options.listen),
        "per_connection_buffer_limit_bytes": 32_768,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {"listeners": [listener], "clusters": [_engines(), _picker(options), *clusters.observer(options)]}


def _manager(options: EnvoyOptions) -> dict[str, Any]:
    upgrades = [{"upgrade_type": "websocket"}]
    action = {"cluster": ENGINES_CLUSTER, "timeout": _LONG, "idle_timeout": _LONG, "upgrade_configs": upgrades}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}]
    return {
        "stat_prefix": "gateway",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "server_header_transformation": "PASS_THROUGH",
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http2_protocol_options": {"max_concurrent_streams": 100, **_WINDOWS},
        "access_log": logs.access_log(options.access_log),
        "http_filters": [ext_proc(_exchange(options)), *observers(options), router()],
        "route_config": {"name": "all", "virtual_hosts": hosts},
    }


def _exchange(options: EnvoyOptions) -> dict[str, Any]:
    grpc = {"envoy_grpc": {"cluster_name": PICKER_CLUSTER, "authority": str(options.picker[0])}, "timeout": "10s"}
    return {
        "grpc_service": grpc,
        "failure_mode_allow": options.failure_mode_allow,
        "message_timeout": "1000s",
        "processing_mode": processing_mode(options),
    }


def _engines() -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), clusters.BREAKER)
    return {
        "name": ENGINES_CLUSTER,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "1000s",
        "circuit_breakers": {"thresholds": [limits]},
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": DESTINATION},
    }


def _picker(options: EnvoyOptions) -> dict[str, Any]:
    health = {
        "timeout": "2s",
        "interval": "10s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 2,
        "reuse_connection": True,
        "grpc_health_check": {"service_name": clusters.EXT_PROC_SERVICE},
    }
    return {
        "name": PICKER_CLUSTER,
        "connect_timeout": _LONG,
        **clusters.discovery(PICKER_CLUSTER, options.picker),
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": clusters.breakers(retries=1024),
        "health_checks": [health],
        "typed_extension_protocol_options": clusters.http2(_WINDOWS),
        **clusters.transport_socket(options),
    }
