"""All checks in their order."""

from collections.abc import Sequence
from dataclasses import dataclass

from epp.doctor import engines, envoy, gateway, history, picker, pods, rights
from epp.doctor.cluster import Cluster
from epp.doctor.findings import Findings
from epp.doctor.reach import Reach
from epp.doctor.target import Wanted, resolve
from epp.kube.client import Api, ApiError, Unreachable


@dataclass(frozen=True, slots=True)
class Options:
    """How to look.

    Attributes:
        wanted: what to look at.
        inside: whether this is a pod of the cluster.
        timeout: seconds of each connection.
        envoys: admin addresses, host:port.
    """

    wanted: Wanted
    inside: bool = False
    timeout: float = 3.0
    envoys: Sequence[str] = ()


async def examine(api: Api, find: Findings, options: Options) -> str:
    """Looks at everything; what it looked at, for people."""
    target = f"namespace {options.wanted.namespace}"
    try:
        target = await _examine(api, find, options)
    except Unreachable as error:
        remedy = "see KUBECONFIG and --context; in a pod its service account, and network policies"
        find.broken("api", f"API server {api.access.server}", str(error), remedy)
    for admin in options.envoys:
        await envoy.check(find, admin, options.timeout)
    return target


async def _examine(api: Api, find: Findings, options: Options) -> str:
    subject = f"API server {api.access.server}"
    try:
        version = (await api.get("/version")).get("gitVersion")
    except ApiError as error:
        find.broken("api", subject, str(error), "see the token or certificate that KUBECONFIG has for you")
        return f"namespace {options.wanted.namespace}"
    find.ok("api", subject, f"Kubernetes {version}")
    cluster = Cluster(api, find)
    target = await resolve(cluster, find, options.wanted)
    if target is None:
        return f"namespace {options.wanted.namespace}"
    await gateway.check(cluster, find, target)
    members = await pods.members(cluster, find, target)
    pickers = await picker.pods(cluster, target)
    async with Reach(api, timeout=options.timeout, inside=options.inside) as reach:
        await engines.check(cluster, find, reach, target, members)
        await picker.check(cluster, find, reach, target, pickers)
    await rights.check(cluster, find, target, pickers)
    await history.check(cluster, find, target, members, pickers)
    return str(target)
