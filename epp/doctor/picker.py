"""The picker's own pods: ready, for this pool, their health services, certificates, lease and metrics."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from epp.doctor import certificates
from epp.doctor.cluster import Cluster, at, labels_of, matches
from epp.doctor.findings import Findings
from epp.doctor.flags import Picker
from epp.doctor.pods import explain, is_ready
from epp.doctor.reach import Failed, Reach
from epp.doctor.target import Target
from epp.kube.client import LEASES, PODS, SERVICES
from epp.kube.election import lease_name

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
NAMES = ("liveness", "readiness", EXT_PROC)


async def pods(cluster: Cluster, target: Target) -> Sequence[Picker]:
    """Those that the picker's Service selects; if it may not be read, those whose flags name the pool."""
    if not target.picker:
        return ()
    service = await cluster.get(SERVICES, target.namespace, target.picker)
    everyone = [Picker(pod) for pod in await cluster.list(PODS, target.namespace) or ()]
    if cluster.refused(SERVICES):
        return [each for each in everyone if target.pool_name and each.flag("pool-name") == target.pool_name]
    selector = at(service, "spec", "selector")
    return [each for each in everyone if selector and matches(labels_of(each.pod), selector)]


async def check(cluster: Cluster, find: Findings, reach: Reach, target: Target, pickers: Sequence[Picker]) -> None:
    """Looks at all of them."""
    if not target.picker:
        return
    subject = f"Service {target.namespace}/{target.picker}"
    elects = any(picker.on("ha-enable-leader-election") for picker in pickers)
    ready = [picker for picker in pickers if is_ready(picker.pod)]
    if not pickers and cluster.refused(SERVICES):
        find.unknown("picker.ready", subject, "may not be read, and no pod names the pool", "ask as somebody who may")
    elif not pickers and cluster.refused(PODS):
        find.unknown("picker.ready", subject, "its pods may not be read", "ask as somebody who may")
    elif not pickers:
        remedy = "see the Deployment of the picker, and that the Service's selector has its pods' labels"
        find.broken("picker.ready", subject, "selects no pod", remedy)
    elif not ready:
        find.broken("picker.ready", subject, f"none of its {len(pickers)} pickers is ready", "see why, below")
    elif elects and len(ready) > 1:
        names = ", ".join(picker.subject for picker in ready)
        remedy = "only the leader should be: see the readiness probe (service: readiness, on the health port)"
        find.warning("picker.ready", subject, f"several pickers are ready in spite of leader election: {names}", remedy)
    else:
        kind = "one of them as leader" if elects else "each on its own"
        find.ok("picker.ready", subject, f"{len(ready)} of {len(pickers)} pickers are ready, {kind}")
    for picker in pickers:
        if not (elects and ready):
            explain(find, picker.pod)
        _check_flags(find, target, picker, elects=elects)
        if picker.address:
            await _check_health(find, reach, picker, elects=elects)
            await _check_tls(find, reach, target, picker)
            await _check_metrics(find, reach, picker)
    if elects and target.pool_name:
        await _check_lease(cluster, find, target)


def _check_flags(find: Findings, target: Target, picker: Picker, *, elects: bool) -> None:
    pool, namespace = picker.flag("pool-name"), picker.flag("pool-namespace")
    if target.pool_name and pool is not None and pool != target.pool_name:
        message = f"is for InferencePool {pool!r}, not for {target.pool_name!r}, whose requests it gets"
        find.broken("picker.pool", picker.subject, message, "correct --pool-name, or the pool's endpointPickerRef")
    if target.pool_name and namespace and namespace != target.namespace:
        message = f"looks for its pool in namespace {namespace!r}, not in {target.namespace!r}"
        find.broken(
            "picker.pool", picker.subject, message, "correct --pool-namespace, or leave it out with env NAMESPACE set"
        )
    group = picker.flag("pool-group")
    if target.pool_group and group and group != target.pool_group:
        message = f"looks for its pool in {group}, the one that routes lead to is of {target.pool_group}"
        find.warning("picker.pool", picker.subject, message, "two pools of one name can differ: use one group for both")
    probe = at(picker.container, "livenessProbe", "grpc", "service")
    if elects and probe not in (None, "liveness"):
        message = (
            f"its liveness probe asks for {probe!r}, which a follower doesn't serve: it is started again and again"
        )
        find.broken("picker.probe", picker.subject, message, "ask for the service liveness")


async def _check_health(find: Findings, reach: Reach, picker: Picker, *, elects: bool) -> None:
    port = picker.port("grpc-health")
    subject = f"{picker.subject} port {port}"
    if not reach.direct:
        remedy = "run epp doctor in the cluster: kubectl exec deploy/PICKER -- /app/epp doctor ..."
        find.unknown("picker.health", subject, "gRPC can't be asked through the API server", remedy)
        return
    try:
        said = {name: await reach.health(picker.address, port, name) for name in NAMES}
    except Failed as error:
        remedy = "see its log, --grpc-health-port, and network policies"
        find.broken("picker.health", subject, f"its health service doesn't answer: {error}", remedy)
        return
    told = ", ".join(f"{name}: {state}" for name, state in said.items())
    if said["liveness"] != "SERVING":
        find.broken("picker.health", subject, told, "it is draining, or hasn't found its pool: see its log")
    elif said["readiness"] != "SERVING" and elects:
        find.ok("picker.health", subject, f"{told}; a follower")
    elif said["readiness"] != "SERVING":
        remedy = "it doesn't know its pool yet: see picker.rights, picker.pool, and its log"
        find.broken("picker.health", subject, told, remedy)
    else:
        find.ok("picker.health", subject, told)


async def _check_tls(find: Findings, reach: Reach, target: Target, picker: Picker) -> None:
    if not reach.direct:
        return
    port = picker.port("grpc")
    subject = f"{picker.subject} port {port}"
    try:
        shown = await reach.certificate(picker.address, port)
    except Failed as error:
        find.broken("picker.ext_proc", subject, str(error), "see its log, --grpc-port, and network policies")
        return
    secure = picker.on("secure-serving", default=True)
    if (shown is not None) != secure:
        message = f"speaks {'TLS' if shown else 'plain text'}, its flags say {'TLS' if secure else 'plain text'}"
        find.broken("picker.ext_proc", subject, message, "see what listens there")
    elif shown is None:
        find.ok("picker.ext_proc", subject, "speaks plain text, as its flags say")
    else:
        names = [f"{target.picker}.{target.namespace}.svc"] if picker.flag("cert-path") else []
        certificates.check(find, subject, shown, names, datetime.now(UTC))


async def _check_metrics(find: Findings, reach: Reach, picker: Picker) -> None:
    port = picker.port("metrics")
    subject = f"{picker.subject} port {port}"
    try:
        answer = await reach.page(picker.pod, port, "/metrics")
    except Failed as error:
        remedy = "see --metrics-port and --metrics-bind-address, and network policies"
        find.warning("picker.metrics", subject, f"its metrics can't be read: {error}", remedy)
        return
    if answer.status == 200:
        find.ok("picker.metrics", subject, "are there for everybody")
    elif answer.status in (401, 403):
        find.ok("picker.metrics", subject, "are there for who shows a token with the right to get /metrics")
    else:
        find.warning("picker.metrics", subject, f"/metrics answers {answer.status}", "see the picker's log")


async def _check_lease(cluster: Cluster, find: Findings, target: Target) -> None:
    name = lease_name(target.namespace, target.pool_name)
    subject = f"Lease {target.namespace}/{name}"
    lease = await cluster.get(LEASES, target.namespace, name)
    if cluster.refused(LEASES):
        return
    holder = at(lease, "spec", "holderIdentity")
    renewed = at(lease, "spec", "renewTime")
    if lease is None or not holder or not renewed:
        remedy = "see that the picker may create and update leases (picker.rights)"
        find.broken("picker.leader", subject, "nobody leads", remedy)
        return
    seconds = int(at(lease, "spec", "leaseDurationSeconds") or 15)
    now = cluster.api.time or datetime.now(UTC)  # our clock may be that of somebody's laptop
    age = now - datetime.fromisoformat(str(renewed))
    if age > timedelta(seconds=seconds):
        message = f"{holder} leads, but hasn't renewed it for {age.total_seconds():.0f} s, of {seconds}"
        find.broken(
            "picker.leader", subject, message, "see whether it still runs, and whether it reaches the API server"
        )
    else:
        find.ok("picker.leader", subject, f"{holder} leads")
