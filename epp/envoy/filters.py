"""The HTTP filters in front of the router: stripping what clients must not set, and asking the picker."""

from typing import Any

from epp.envoy.options import EnvoyOptions

DESTINATION = "x-gateway-destination-endpoint"
METADATA = "envoy.lb"
SUBSET_HINT = "envoy.lb.subset_hint"
PICKER_CLUSTER = "picker"
OBSERVER_CLUSTER = "observer"

ROUTING_HEADERS = (
    "x-prefiller-host-port",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
)
"""Addresses that engines and sidecars follow; like every header that begins with DESTINATION, the picker's to set."""

_MODES = {
    "standalone": ("SEND", "BUFFERED", "SKIP", "SEND", "NONE", "SEND"),
    "full-duplex": ("SEND", "FULL_DUPLEX_STREAMED", "SEND", "SEND", "FULL_DUPLEX_STREAMED", "SEND"),
    "original-dst": ("SEND", "FULL_DUPLEX_STREAMED", "SEND", "SEND", "FULL_DUPLEX_STREAMED", "SEND"),
}
_MODE_FIELDS = (
    "request_header_mode",
    "request_body_mode",
    "request_trailer_mode",
    "response_header_mode",
    "response_body_mode",
    "response_trailer_mode",
)
_NO_BODIES = {
    "request_body_mode": "NONE",
    "request_trailer_mode": "SKIP",
    "response_body_mode": "NONE",
    "response_trailer_mode": "SKIP",
}


def typed(name: str, **fields: Any) -> dict[str, Any]:
    """The body of a `typed_config`: the message's full name and its fields."""
    return {"@type": f"type.googleapis.com/{name}", **fields}


def processing_mode(options: EnvoyOptions) -> dict[str, str]:
    """What is sent to the picker: the mode's own settings, with what the options replace.

    A body in full duplex needs its trailers sent.
    """
    mode = dict(zip(_MODE_FIELDS, _MODES[options.mode], strict=True))
    mode |= {field: value for field in mode if (value := getattr(options, field))}
    for side in ("request", "response"):
        if mode[f"{side}_body_mode"] == "FULL_DUPLEX_STREAMED":
            mode[f"{side}_trailer_mode"] = "SEND"
    return mode


def http_filters(options: EnvoyOptions) -> list[dict[str, Any]]:
    """The chain of an ordinary request."""
    asked = ext_proc(_exchange(options, processing_mode(options)))
    return [_strip_routing_headers(), asked, *observers(options), router()]


def upgrade_filters(options: EnvoyOptions) -> list[dict[str, Any]]:
    """The chain of a WebSocket: its body never ends, so the picker decides on the headers."""
    headers_only = processing_mode(options) | _NO_BODIES
    return [_strip_routing_headers(), ext_proc(_exchange(options, headers_only)), router()]


def ext_proc(fields: dict[str, Any]) -> dict[str, Any]:
    """The filter that asks the picker."""
    name = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    return {"name": "envoy.filters.http.ext_proc", "typed_config": typed(name, **fields)}


def observers(options: EnvoyOptions) -> list[dict[str, Any]]:
    """The filter that shows a picker what another one has decided, if there is one.

    It stands behind the filter that asks, so that it sees the destination. Envoy goes on without waiting for it, minds
    nothing that it says, and takes no harm from its absence.
    """
    if not options.observe:
        return []
    mode = ("SEND", "STREAMED", "SEND", "SEND", "STREAMED", "SEND")
    fields = {
        "grpc_service": {"envoy_grpc": {"cluster_name": OBSERVER_CLUSTER}},
        "observability_mode": True,
        "failure_mode_allow": True,
        "processing_mode": dict(zip(_MODE_FIELDS, mode, strict=True)),
        "response_attributes": ["upstream.address", "response.flags"],
        "metadata_options": {"forwarding_namespaces": {"untyped": [METADATA, SUBSET_HINT]}},
    }
    return [ext_proc(fields) | {"name": "envoy.filters.http.ext_proc.observer"}]


def router() -> dict[str, Any]:
    """The last filter, which sends the request on."""
    name = "envoy.extensions.filters.http.router.v3.Router"
    return {"name": "envoy.filters.http.router", "typed_config": typed(name, suppress_envoy_headers=True)}


def _strip_routing_headers() -> dict[str, Any]:
    by_prefix = [{"remove_on_match": {"key_matcher": {"prefix": DESTINATION, "ignore_case": True}}}]
    by_name = [{"remove": name} for name in ROUTING_HEADERS]
    name = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    mutations = {"request_mutations": by_prefix + by_name}
    return {"name": "envoy.filters.http.header_mutation", "typed_config": typed(name, mutations=mutations)}


def _ask_another(options: EnvoyOptions) -> dict[str, Any]:
    """Of several replicas of the picker another one is asked where one has died: only streams that it had are lost.

    Where Envoy goes on without a picker it asks at once, as each request would wait; Envoy's default for gRPC is up to
    one second, then three. Where a request is lost without one, it is worth the two seconds or so in which a follower
    becomes the leader.
    """
    previous = typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    base, most, times = ("0.005s", "0.1s", 2) if options.failure_mode_allow else ("0.1s", "1s", 6)
    return {
        "retry_on": "connect-failure,refused-stream,reset",
        "num_retries": times,
        "retry_back_off": {"base_interval": base, "max_interval": most},
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": previous}],
        "host_selection_retry_max_attempts": 5,
    }


def _exchange(options: EnvoyOptions, mode: dict[str, str]) -> dict[str, Any]:
    return {
        "grpc_service": {"envoy_grpc": {"cluster_name": PICKER_CLUSTER}, "retry_policy": _ask_another(options)},
        "failure_mode_allow": options.failure_mode_allow,
        "status_on_error": {"code": "ServiceUnavailable"},
        "message_timeout": f"{options.message_timeout:g}s",
        "max_message_timeout": f"{options.queue_timeout:g}s",
        "processing_mode": mode,
        "allow_mode_override": True,
        "response_attributes": ["upstream.address", "response.flags", "response.code_details"],
        "metadata_options": {
            "forwarding_namespaces": {"untyped": [METADATA, SUBSET_HINT]},
            "receiving_namespaces": {"untyped": [METADATA]},
        },
    }
