"""Where requests go: the engines, and the picker that is asked about them."""

from typing import Any

from epp.envoy.filters import DESTINATION, METADATA, OBSERVER_CLUSTER, PICKER_CLUSTER, typed
from epp.envoy.options import MIB, Address, EnvoyOptions

ENGINES_CLUSTER = "engines"
EXT_PROC_SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
BREAKER = 40_000
"""Connections, pending requests, requests and retries at once, a cluster; Envoy's defaults are 1,024 and 3 retries."""

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_POLICIES = "envoy.extensions.load_balancing_policies"
_SOCKETS = "envoy.extensions.transport_sockets"
_IDLE = "4s"
"""Less than the 5 s after which vLLM (uvicorn) closes an idle connection: nothing is written into a closing one."""


def socket(address: Address) -> dict[str, Any]:
    """An address as a listener, an endpoint or the admin page has it."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def engines(options: EnvoyOptions) -> dict[str, Any]:
    """The cluster that takes the picked host where it is one of the list, and otherwise the least busy one."""
    return {
        "name": ENGINES_CLUSTER,
        "connect_timeout": "2s",
        **discovery(ENGINES_CLUSTER, options.endpoints),
        "load_balancing_policy": _override_host(),
        "circuit_breakers": breakers(),
        "typed_extension_protocol_options": _engine_protocol(options.engine_protocol),
        "upstream_connection_options": _keepalive(),
    }


def picker(options: EnvoyOptions) -> dict[str, Any]:
    """The picker's cluster."""
    found = discovery(PICKER_CLUSTER, options.picker, health_port=options.picker_health_port)
    return _processor(PICKER_CLUSTER, options, found, _health_checks(options))


def observer(options: EnvoyOptions) -> list[dict[str, Any]]:
    """The cluster of a picker that looks on, if there is one."""
    found = discovery(OBSERVER_CLUSTER, options.observe)
    return [_processor(OBSERVER_CLUSTER, options, found, {})] if options.observe else []


def _processor(name: str, options: EnvoyOptions, hosts: dict[str, Any], checks: dict[str, Any]) -> dict[str, Any]:
    """Streams to a picker stay open as long as the responses, so its cluster has the engines' breakers."""
    windows = {"initial_stream_window_size": MIB, "initial_connection_window_size": 16 * MIB}
    return {
        "name": name,
        "connect_timeout": "2s",
        **hosts,
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": breakers(),
        "typed_extension_protocol_options": http2(windows),
        "upstream_connection_options": _keepalive(),
        **checks,
        **transport_socket(options),
    }


def discovery(name: str, addresses: tuple[Address, ...], health_port: int | None = None) -> dict[str, Any]:
    """A static cluster, or as soon as one is a name a DNS cluster: every address found is a host."""
    endpoints = [{"endpoint": _endpoint(address, health_port)} for address in addresses]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    if all(address.is_ip for address in addresses):
        return {"type": "STATIC", "load_assignment": assignment}
    dns = typed(
        "envoy.extensions.clusters.dns.v3.DnsCluster",
        # IPv4 addresses, and IPv6 ones only where there are no others: as the picker does it
        dns_lookup_family="V4_PREFERRED",
        # not the TTL: Docker's is ten minutes, and a restarted container has another address at once
        dns_refresh_rate="1s",
        dns_failure_refresh_rate={"base_interval": "1s", "max_interval": "2s"},
    )
    return {"cluster_type": {"name": "envoy.clusters.dns", "typed_config": dns}, "load_assignment": assignment}


def breakers(retries: int = BREAKER) -> dict[str, Any]:
    """Circuit breakers that a few thousand open responses don't trip."""
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), BREAKER)
    return {"thresholds": [limits | {"max_retries": retries}]}


def http2(windows: dict[str, int]) -> dict[str, Any]:
    """HTTP/2 without negotiation, which gRPC needs."""
    return {_OPTIONS: typed(_OPTIONS, explicit_http_config={"http2_protocol_options": windows})}


def transport_socket(options: EnvoyOptions) -> dict[str, Any]:
    """TLS to the picker, if it is wanted; without an authority any certificate is taken, as for a self-signed one.

    The health port is plain text in either case.
    """
    if not options.secure_picker:
        return {}
    raw = {"name": "envoy.transport_sockets.raw_buffer", "typed_config": typed(f"{_SOCKETS}.raw_buffer.v3.RawBuffer")}
    plain = {"name": "plain", "match": {"plain": True}, "transport_socket": raw}
    context: dict[str, Any] = {"alpn_protocols": ["h2"], "validation_context": {}}
    if options.picker_ca:
        context["validation_context"] = {"trusted_ca": {"filename": options.picker_ca}}
    tls = typed(f"{_SOCKETS}.tls.v3.UpstreamTlsContext", common_tls_context=context)
    encrypted = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return {"transport_socket": encrypted, "transport_socket_matches": [plain]}


def _endpoint(address: Address, health_port: int | None) -> dict[str, Any]:
    health = {"health_check_config": {"port_value": health_port}} if health_port else {}
    return {"address": socket(address), **health}


def _override_host() -> dict[str, Any]:
    least_request = typed(f"{_POLICIES}.least_request.v3.LeastRequest")
    override = typed(
        f"{_POLICIES}.override_host.v3.OverrideHost",
        override_host_sources=[
            {"metadata": {"key": METADATA, "path": [{"key": DESTINATION}]}},
            {"header": DESTINATION},
        ],
        fallback_policy=_policy("envoy.load_balancing_policies.least_request", least_request),
    )
    return _policy("envoy.load_balancing_policies.override_host", override)


def _policy(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]}


def _engine_protocol(protocol: str) -> dict[str, Any]:
    fields = (
        {"http2_protocol_options": {}} if protocol == "http2" else {"http_protocol_options": {"enable_trailers": True}}
    )
    common = {"idle_timeout": _IDLE}
    return {_OPTIONS: typed(_OPTIONS, common_http_protocol_options=common, explicit_http_config=fields)}


def _keepalive() -> dict[str, Any]:
    """A peer that vanished without a word is noticed after a minute; no other timeout ends a long response."""
    return {"tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 30, "keepalive_interval": 10}}


def _health_checks(options: EnvoyOptions) -> dict[str, Any]:
    if not options.picker_health_port:
        return {}
    check = {
        "timeout": "1s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "grpc_health_check": {"service_name": EXT_PROC_SERVICE},
    }
    if options.secure_picker:
        check["transport_socket_match_criteria"] = {"plain": True}
    return {"health_checks": [check]}
