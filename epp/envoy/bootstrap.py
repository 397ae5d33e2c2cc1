"""Envoy's bootstrap as plain data, for each way of asking the picker. docs/envoy.md says why each setting is there."""

from typing import Any

import yaml

from epp.envoy import chart, clusters, logs
from epp.envoy.filters import http_filters, processing_mode, typed, upgrade_filters
from epp.envoy.options import MIB, EnvoyOptions
from epp.envoy.replies import local_replies

MOST_CONNECTIONS = 50_000
"""Client connections at once; more are refused instead of using up the memory."""

_RETRIED = {"BUFFERED", "NONE"}
"""Body modes in which a request may be retried: in the others Envoy 1.40 sends a body twice that ends in trailers."""


def bootstrap(options: EnvoyOptions) -> dict[str, Any]:
    """The whole bootstrap: one listener, the engines and the picker."""
    resources = chart.resources(options) if options.mode == "original-dst" else _resources(options)
    monitor = typed(
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=MOST_CONNECTIONS,
    )
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {
        **({"admin": {"address": clusters.socket(options.admin)}} if options.admin else {}),
        "static_resources": resources,
        "overload_manager": {"resource_monitors": [{"name": name, "typed_config": monitor}]},
    }


def to_yaml(data: dict[str, Any]) -> str:
    """Block-style YAML in the order of the data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _resources(options: EnvoyOptions) -> dict[str, Any]:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", **_manager(options)
    )
    listener = {
        "name": "gateway",
        "address": clusters.socket(options.listen),
        "per_connection_buffer_limit_bytes": MIB,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    return {
        "listeners": [listener],
        "clusters": [clusters.engines(options), clusters.picker(options), *clusters.observer(options)],
    }


def _manager(options: EnvoyOptions) -> dict[str, Any]:
    return {
        "stat_prefix": "gateway",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "stream_idle_timeout": "0s",
        "request_headers_timeout": "60s",
        "common_http_protocol_options": {"headers_with_underscores_action": "ALLOW"},
        "http_protocol_options": {"enable_trailers": True},
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            "initial_stream_window_size": MIB,
            "initial_connection_window_size": 16 * MIB,
        },
        "upgrade_configs": [{"upgrade_type": "websocket", "filters": upgrade_filters(options)}],
        "access_log": logs.access_log(options.access_log),
        "local_reply_config": local_replies(),
        "http_filters": http_filters(options),
        "route_config": {"name": "all", "virtual_hosts": [_virtual_host(options)]},
    }


def _virtual_host(options: EnvoyOptions) -> dict[str, Any]:
    action = {"cluster": clusters.ENGINES_CLUSTER, "timeout": "0s", **_retries(options)}
    route = {"match": {"prefix": "/"}, "request_body_buffer_limit": options.buffer_bytes, "route": action}
    return {"name": "all", "domains": ["*"], "routes": [route]}


def _retries(options: EnvoyOptions) -> dict[str, Any]:
    if not options.retry_on or processing_mode(options)["request_body_mode"] not in _RETRIED:
        return {}
    name = "envoy.retry_host_predicates.previous_hosts"
    previous = typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    policy = {
        "retry_on": options.retry_on,
        "num_retries": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
        "retry_host_predicate": [{"name": name, "typed_config": previous}],
        "host_selection_retry_max_attempts": 10,
    }
    return {"retry_policy": policy}
