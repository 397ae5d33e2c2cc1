"""How an Envoy asks the picker, off its admin page: what is set so that requests fail, or pass the picker by."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from epp.doctor.cluster import at
from epp.doctor.findings import Findings

_EXT_PROC = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
_PER_ROUTE = "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
_ROUTES = "envoy.config.route.v3.RouteConfiguration"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_DEFAULT_TIMEOUT = 0.2  # of Envoy's message_timeout
_DEFAULT_ROUTE_TIMEOUT = 15.0
_DEFAULT_CIRCUIT = 1024
_MOST_CLUSTERS = 4
_SECONDS = re.compile(r"([0-9.]+)s")


async def check(find: Findings, admin: str, within: float) -> None:
    """Reads the admin page.

    Args:
        find: takes what is found.
        admin: its address, host:port.
        within: seconds.
    """
    subject = f"Envoy {admin}"
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=within)) as session:
            async with session.get(f"http://{admin}/config_dump?include_eds") as response:
                dump = msgspec.json.decode(await response.read())
            async with session.get(f"http://{admin}/clusters?format=json") as response:
                states = msgspec.json.decode(await response.read())
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError) as error:
        message = f"its admin page can't be read: {error or type(error).__name__}"
        find.unknown("envoy.admin", subject, message, "kubectl port-forward to it, and name it with --envoy-admin")
        return
    examine(find, subject, dump, states)


def examine(find: Findings, subject: str, dump: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Looks at `/config_dump` and `/clusters?format=json`."""
    managers = list(_typed(dump, _MANAGER))
    # An upgrade has filters of its own, which may leave bodies out: those of a WebSocket never end.
    filters = [each for manager in managers for each in _typed(manager.get("http_filters"), _EXT_PROC)]
    routed = [each.get("overrides") or {} for each in _typed(dump, _PER_ROUTE)]
    if not filters:
        remedy = "see that its gateway has the inference extension enabled, and a route to the pool"
        find.broken("envoy.ext_proc", subject, "it asks no picker: no filter of its listeners is an ext_proc", remedy)
        return
    if all(_body(each) == "NONE" for each in (*filters, *routed)):
        remedy = "set processing_mode.request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"
        find.broken("envoy.ext_proc", subject, "the request's body isn't sent: the picker can't read the model", remedy)
    for each in {msgspec.json.encode(each): each for each in filters}.values():
        _check_filter(find, subject, each)
    clusters = [at(each, "grpc_service", "envoy_grpc", "cluster_name") for each in (*filters, *routed)]
    for cluster in dict.fromkeys(str(cluster) for cluster in clusters if cluster):
        _check_picker(find, subject, cluster, states)
    for manager in managers:
        _check_times(find, subject, manager)
    _check_routes(find, subject, dump, managers)
    _check_circuits(find, subject, dump)


def _typed(value: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Every message of a type anywhere in a dump."""
    if isinstance(value, dict):
        if str(value.get("@type", "")).endswith(f"/{name}"):
            yield value
        for each in value.values():
            yield from _typed(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _typed(each, name)


def _body(each: Mapping[str, Any]) -> str:
    return str(at(each, "processing_mode", "request_body_mode") or "NONE")


def _check_filter(find: Findings, subject: str, each: Mapping[str, Any]) -> None:
    mode = each.get("processing_mode") or {}
    body = _body(each)
    trailers = mode.get("request_trailer_mode")
    if body == "FULL_DUPLEX_STREAMED" and trailers != "SEND":
        remedy = "set processing_mode.request_trailer_mode to SEND"
        find.broken("envoy.ext_proc", subject, "FULL_DUPLEX_STREAMED without trailers: Envoy refuses it", remedy)
    seconds = _seconds(each.get("message_timeout"), _DEFAULT_TIMEOUT)
    if seconds < 1:
        message = f"the picker has {seconds:g} s to answer, less than a queue or a long prompt may take"
        find.warning("envoy.ext_proc", subject, message, "set message_timeout to some seconds")
    if not each.get("failure_mode_allow"):
        message = "without the picker every request fails (failure_mode_allow: false)"
        find.warning("envoy.failure", subject, message, "right for FailClose; set it to true for FailOpen")
    elif body == "FULL_DUPLEX_STREAMED":
        message = "failure_mode_allow: true, but a body in FULL_DUPLEX_STREAMED fails without the picker all the same"
        find.warning("envoy.failure", subject, message, "with an Envoy of your own use BUFFERED (docs/envoy.md)")
    if not each.get("metadata_options"):
        message = "dynamic metadata isn't exchanged: no subset of endpoints, no endpoint that served"
        find.warning("envoy.metadata", subject, message, "set metadata_options for the namespace envoy.lb")
    find.ok("envoy.ext_proc", subject, f"request body {body}, response body {mode.get('response_body_mode', 'NONE')}")


def _check_picker(find: Findings, subject: str, cluster: str, states: Mapping[str, Any]) -> None:
    found = [each for each in states.get("cluster_statuses") or () if each.get("name") == cluster]
    hosts = [host for each in found for host in each.get("host_statuses") or ()]
    if not hosts:
        remedy = "see the picker's Service and its endpoints"
        find.broken("envoy.picker", subject, f"cluster {cluster!r} of the picker has no host", remedy)
        return
    bad = [host for host in hosts if at(host, "health_status", "failed_active_health_check")]
    if len(bad) == len(hosts):
        remedy = (
            "see that the health check asks the port and the service name that the picker answers (9003, readiness)"
        )
        find.broken("envoy.picker", subject, f"all hosts of {cluster!r} fail their health check", remedy)
    else:
        find.ok("envoy.picker", subject, f"{len(hosts) - len(bad)} of {len(hosts)} hosts of {cluster!r} are healthy")


def _check_times(find: Findings, subject: str, manager: Mapping[str, Any]) -> None:
    if _seconds(manager.get("stream_idle_timeout"), 300.0) == 300.0:
        message = "a stream that is silent for 5 minutes is ended: a long prompt, or a long queue"
        find.warning("envoy.timeouts", subject, message, "set stream_idle_timeout, 0s for none")


def _check_routes(find: Findings, subject: str, dump: Mapping[str, Any], managers: Sequence[Mapping[str, Any]]) -> None:
    """The routes' timeouts. Where some have settings of their own for the picker, as gateways give them, only these."""
    configs = [*(at(manager, "route_config") or {} for manager in managers), *_typed(dump, _ROUTES)]
    routes = [
        route for each in configs for host in each.get("virtual_hosts") or () for route in host.get("routes") or ()
    ]
    asking = [route for route in routes if any(True for _ in _typed(route, _PER_ROUTE))]
    times = [
        (_shown(route.get("match")), _seconds(at(route, "route", "timeout"), _DEFAULT_ROUTE_TIMEOUT))
        for route in asking or routes
        if "route" in route
    ]
    for paths, seconds in dict.fromkeys(times):
        if 0 < seconds <= _DEFAULT_ROUTE_TIMEOUT:
            message = f"answers longer than {seconds:g} s are cut off (route of {paths})"
            find.broken("envoy.timeouts", subject, message, "set the route's timeout, 0s for none")


def _shown(match: Any) -> str:
    """What of a request's path a route takes."""
    for key in ("prefix", "path_separated_prefix", "path"):
        if isinstance(at(match, key), str):
            return f"{'path' if key == 'path' else 'paths from'} {match[key]}"
    return f"paths like {at(match, 'safe_regex', 'regex')}" if at(match, "safe_regex", "regex") else "some paths"


def _check_circuits(find: Findings, subject: str, dump: Mapping[str, Any]) -> None:
    clusters = list(_typed(dump, "envoy.config.cluster.v3.Cluster"))
    limits = [at(each, "circuit_breakers", "thresholds", 0, "max_requests") for each in clusters]
    low = [
        f"{each.get('name')} ({int(limit or _DEFAULT_CIRCUIT)})"
        for each, limit in zip(clusters, limits, strict=True)
        if int(limit or _DEFAULT_CIRCUIT) <= _DEFAULT_CIRCUIT
    ]
    if low:
        more = f", and {len(low) - _MOST_CLUSTERS} more" if len(low) > _MOST_CLUSTERS else ""
        told = ", ".join(low[:_MOST_CLUSTERS])
        message = f"clusters that take few requests at once, and answer more with 503: {told}{more}"
        remedy = "for the model servers' and the picker's raise circuit_breakers: max_requests, max_pending_requests"
        find.warning("envoy.circuits", subject, message, remedy)


def _seconds(text: Any, default: float) -> float:
    found = _SECONDS.fullmatch(str(text))
    return float(found[1]) if found else default
