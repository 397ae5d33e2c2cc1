"""Whether the picker may do at the API server what it has to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from epp.doctor.cluster import Cluster, at
from epp.doctor.findings import Findings
from epp.doctor.flags import Picker
from epp.doctor.target import Target
from epp.kube.client import (
    ACCESS_REVIEWS,
    LEASES,
    OBJECTIVES,
    PODS,
    POOLS,
    REWRITES,
    SELF_ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    Api,
    ApiError,
    Resource,
)
from epp.kube.election import lease_name

_READ = ("get", "list", "watch")
_WHO = Resource("authentication.k8s.io", "v1", "selfsubjectreviews")


@dataclass(frozen=True, slots=True)
class Right:
    """One thing that a picker does.

    Attributes:
        name: of the one object; "" for all.
        why: what goes without it.
        needed: whether nothing goes without it.
    """

    verb: str
    resource: Resource
    why: str
    needed: bool = True
    name: str = ""
    everywhere: bool = False


def rights(target: Target, picker: Picker | None) -> Iterator[Right]:
    """What this picker has to be allowed."""
    for verb in _READ:
        yield Right(verb, PODS, "it finds no model server")
    if target.pool is not None:
        pools = Resource(target.pool_group, str(target.pool["apiVersion"]).rpartition("/")[2], POOLS.plural)
        for verb in _READ:
            yield Right(verb, pools, "it doesn't know its pool", name=target.pool_name)
            yield Right(verb, OBJECTIVES[0], "priorities of requests are unknown to it", needed=False)
            yield Right(verb, REWRITES[0], "models are not rewritten", needed=False)
    if picker is None:
        return
    if picker.on("ha-enable-leader-election"):
        lease = lease_name(target.namespace, target.pool_name) if target.pool_name else ""
        for verb in ("get", "create", "update"):
            name = "" if verb == "create" else lease  # no rule can name what isn't there yet
            yield Right(verb, LEASES, "it never leads, and so is never ready", name=name)
        for verb in ("list", "watch"):
            yield Right(verb, LEASES, "it notices late when the leader is gone", needed=False, name=lease)
    if picker.on("metrics-endpoint-auth", default=True):
        for resource in (TOKEN_REVIEWS, ACCESS_REVIEWS):
            yield Right("create", resource, "nobody can read its metrics", needed=False, everywhere=True)


async def check(cluster: Cluster, find: Findings, target: Target, pickers: Sequence[Picker]) -> None:
    """Asks for each of them in the name of the picker's service account."""
    picker = pickers[0] if pickers else None
    account = str(at(picker.pod, "spec", "serviceAccountName") or "default") if picker else ""
    user = f"system:serviceaccount:{target.namespace}:{account}" if account else ""
    ask = await _asker(cluster.api, user)
    subject = f"ServiceAccount {target.namespace}/{account}" if account else "you"
    if ask.own and ask.user != user:
        remedy = "as somebody who may create SubjectAccessReviews, or in the picker's pod, it asks for the picker"
        find.unknown("picker.rights", subject, f"what follows is asked for {ask.user or 'you'} instead", remedy)
        subject = ask.user or "you"
    missing = []
    for right in rights(target, picker):
        try:
            if not await ask(right, target.namespace):
                missing.append(right)
        except ApiError as error:
            find.unknown("picker.rights", subject, f"can't be asked for: {error}", "ask as somebody who may")
            return
    for why in dict.fromkeys(right.why for right in missing):
        about = [right for right in missing if right.why == why]
        told = ", ".join(dict.fromkeys(f"{right.verb} {right.resource}" for right in about))
        state = find.broken if about[0].needed else find.warning
        remedy = "bind a Role with it: config/kubernetes/base/rbac.yaml, metrics.yaml; the chart with rbac.create"
        state("picker.rights", subject, f"may not {told}: {why}", remedy)
    if not missing:
        find.ok("picker.rights", subject, "may all that a picker does")


class _Asker:
    """Asks by a review of ourselves, or of somebody else.

    Attributes:
        user: who is asked about; "" if that isn't known.
        own: whether that is ourselves.
    """

    def __init__(self, api: Api, user: str, *, own: bool) -> None:
        self.user = user
        self.own = own
        self._api = api

    async def __call__(self, right: Right, namespace: str) -> bool:
        """Whether it is allowed. Raises ApiError."""
        resource = right.resource
        asked = {"verb": right.verb, "group": resource.group, "version": resource.version, "resource": resource.plural}
        asked |= {} if right.everywhere else {"namespace": namespace}
        asked |= {"name": right.name} if right.name else {}
        spec: dict[str, Any] = {"resourceAttributes": asked}
        if self.own:
            return await self._allowed(SELF_ACCESS_REVIEWS, "SelfSubjectAccessReview", spec)
        namespace_of = self.user.split(":")[2]
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace_of}", "system:authenticated"]
        return await self._allowed(ACCESS_REVIEWS, "SubjectAccessReview", spec | {"user": self.user, "groups": groups})

    async def _allowed(self, resource: Resource, kind: str, spec: dict[str, Any]) -> bool:
        review = {"apiVersion": resource.group_version, "kind": kind, "spec": spec}
        status = (await self._api.create(resource.path(), review)).get("status") or {}
        return bool(status.get("allowed"))


async def _asker(api: Api, user: str) -> _Asker:
    """Of ourselves if we are the picker, else of the picker if we may, else of ourselves."""
    me = await _who(api)
    if not user or me == user:
        return _Asker(api, me or user, own=True)
    other = _Asker(api, user, own=False)
    try:
        await other(Right("get", PODS, ""), "default")
    except ApiError:
        return _Asker(api, me, own=True)
    return other


async def _who(api: Api) -> str:
    review = {"apiVersion": _WHO.group_version, "kind": "SelfSubjectReview"}
    try:
        return str(at(await api.create(_WHO.path(), review), "status", "userInfo", "username") or "")
    except ApiError:
        return ""
