"""What leads to the pool: who has accepted it, the routes, the Service that it names, and what Istio needs."""

from collections.abc import Iterator, Mapping
from typing import Any

from epp.doctor.cluster import DESTINATION_RULES, ROUTES, Cluster, Object, at, conditions, name_of, why
from epp.doctor.findings import Findings
from epp.doctor.picker import pods as pickers
from epp.doctor.target import Target
from epp.kube.client import SERVICES

_REASONS = {
    "NotSupportedByParent": "this gateway doesn't know InferencePools of this group: see its documentation, or try the"
    " other group (epp migrate, or --pool-group)",
    "HTTPRouteNotAccepted": "the route is refused: see its own conditions, below",
    "EndpointPickerRefMissing": "name the picker's Service in spec.endpointPickerRef",
    "InvalidExtensionRef": "spec.endpointPickerRef names no Service that there is, or a port that it doesn't have",
    "Pending": "the gateway's controller hasn't looked at it: is it running, and is its inference extension enabled?",
}


async def check(cluster: Cluster, find: Findings, target: Target) -> None:
    """Looks at all of it. Raises Unreachable if the API server is gone."""
    if target.pool is None:
        return
    routes = await _routes(cluster, target)
    for route in routes:
        _check_route(find, target, route)
    if routes == [] and await cluster.list(ROUTES, target.namespace) is not None:
        remedy = (
            f"make an HTTPRoute with a backendRef of {target.pool_group}, kind InferencePool, name {target.pool_name}"
        )
        find.warning("route.found", str(target), "no HTTPRoute of its namespace leads to it", remedy)
    _check_accepted(find, target, target.pool, routed=bool(routes))
    await _check_service(cluster, find, target)
    if any(controller.startswith("istio.io/") for controller in _controllers(target.pool, routes)):
        await _check_istio(cluster, find, target)


async def _routes(cluster: Cluster, target: Target) -> list[Object]:
    found = await cluster.list(ROUTES, target.namespace)
    return [route for route in found or () if any(True for _ in _backends(route, target.pool_name))]


def _backends(route: Object, name: str) -> Iterator[Mapping[str, Any]]:
    for rule in at(route, "spec", "rules") or ():
        for backend in rule.get("backendRefs") or ():
            if backend.get("kind") == "InferencePool" and backend.get("name") == name:
                yield backend


def _check_route(find: Findings, target: Target, route: Object) -> None:
    for backend in _backends(route, target.pool_name):
        if backend.get("group") != target.pool_group:
            message = f"its backendRef has the group {backend.get('group') or ''!r}, the pool is of {target.pool_group}"
            remedy = f"set the backendRef's group to {target.pool_group} (epp migrate does that)"
            find.broken("route.group", name_of(route), message, remedy)
    parents = at(route, "status", "parents") or []
    if not parents:
        remedy = "see that spec.parentRefs names a Gateway that is there, and that its listener takes this namespace"
        find.broken("route.accepted", name_of(route), "no Gateway has looked at it", remedy)
    for parent in parents:
        _check_parent(find, "route", name_of(route), parent, route)


def _check_accepted(find: Findings, target: Target, pool: Object, *, routed: bool) -> None:
    parents = at(pool, "status", "parents") or at(pool, "status", "parent") or []
    real = [each for each in parents if at(each, "parentRef", "kind") != "Status"]
    if not real:
        remedy = "see that the gateway supports the Inference Extension and has it enabled, and that a route leads here"
        state = find.broken if routed else find.warning
        state("pool.accepted", str(target), "no Gateway has accepted it", remedy)
    for parent in real:
        _check_parent(find, "pool", str(target), parent, pool)


def _check_parent(find: Findings, what: str, subject: str, parent: Mapping[str, Any], each: Object) -> None:
    found = conditions(parent.get("conditions"))
    gateway = at(parent, "parentRef", "name") or "without a name"
    bad = [
        found[kind] for kind in ("Accepted", "ResolvedRefs") if kind in found and found[kind].get("status") != "True"
    ]
    for one in bad:
        message = f"{one.get('type')} is {one.get('status')} at Gateway {gateway}: {why(one)}"
        remedy = _REASONS.get(str(one.get("reason")), f"see what Gateway {gateway} and its controller say")
        find.broken(f"{what}.accepted", subject, message, remedy)
    generation = at(each, "metadata", "generation")
    old = [one for one in found.values() if (one.get("observedGeneration") or generation) != generation]
    if old and not bad:
        remedy = "wait a moment; if it stays, the gateway's controller is stuck"
        find.warning(f"{what}.accepted", subject, f"Gateway {gateway} has not seen its last change yet", remedy)
    elif "Accepted" not in found:
        remedy = "wait a moment; if it stays so, see the gateway's controller, and whether it knows InferencePools"
        find.warning(f"{what}.accepted", subject, f"Gateway {gateway} hasn't said whether it accepts it", remedy)
    elif not bad:
        find.ok(f"{what}.accepted", subject, f"accepted by Gateway {gateway}")


async def _check_service(cluster: Cluster, find: Findings, target: Target) -> None:
    if not target.picker:
        find.broken("picker.service", str(target), "names no picker", "name its Service in spec.endpointPickerRef")
        return
    subject = f"Service {target.namespace}/{target.picker}"
    service = await cluster.get(SERVICES, target.namespace, target.picker)
    if cluster.refused(SERVICES):
        return
    if service is None:
        remedy = "create it, or correct spec.endpointPickerRef.name (extensionRef.name in v1alpha2)"
        find.broken("picker.service", subject, f"is not there, and {target} names it", remedy)
        return
    ports = {each.get("port"): each for each in at(service, "spec", "ports") or ()}
    wanted = target.picker_port or 9002
    if wanted not in ports:
        message = f"has no port {wanted}, which {target} names; it has {', '.join(map(str, ports)) or 'none'}"
        find.broken("picker.service", subject, message, "correct the port in spec.endpointPickerRef, or the Service")
        return
    to = ports[wanted].get("targetPort") or wanted
    for each in await pickers(cluster, target):
        if astray := each.leads_astray(to):
            message = f"its port {wanted} leads to targetPort {to} of {each.subject}: {astray}"
            find.broken("picker.service", subject, message, f"set its targetPort to {each.port('grpc')}")
            return
    find.ok("picker.service", subject, f"has port {wanted}, which the pool names")


def _controllers(pool: Object, routes: list[Object]) -> set[str]:
    parents = at(pool, "status", "parents") or []
    parents = [*parents, *(parent for route in routes for parent in at(route, "status", "parents") or ())]
    return {str(each.get("controllerName")) for each in parents}


async def _check_istio(cluster: Cluster, find: Findings, target: Target) -> None:
    rules = await cluster.list(DESTINATION_RULES, target.namespace)
    hosts = {f"{target.picker}{suffix}" for suffix in ("", f".{target.namespace}", f".{target.namespace}.svc")}
    mine = [rule for rule in rules or () if any(_is_host(str(at(rule, "spec", "host")), host) for host in hosts)]
    if mine:
        mode = at(mine[0], "spec", "trafficPolicy", "tls", "mode")
        find.ok("istio.tls", name_of(mine[0]), f"tells Istio to speak to the picker with TLS mode {mode}")
    elif rules is not None:
        message = "no DestinationRule for it: Istio speaks plain text to a picker that speaks TLS"
        remedy = "apply config/kubernetes/components/istio, or start the picker with --secure-serving=false"
        find.broken("istio.tls", f"Service {target.namespace}/{target.picker}", message, remedy)


def _is_host(host: str, name: str) -> bool:
    return host == name or (name.endswith(".svc") and host.startswith(f"{name}."))
