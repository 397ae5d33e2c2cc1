"""What the API server says, where it can be asked: a refusal is a finding, not an end."""

from collections.abc import Mapping, Sequence
from typing import Any

from epp.doctor.findings import Findings
from epp.kube.client import Api, ApiError, Resource, Unreachable

Object = Mapping[str, Any]

ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes")
EVENTS = Resource("", "v1", "events")
DESTINATION_RULES = Resource("networking.istio.io", "v1", "destinationrules")
POD_METRICS = Resource("metrics.k8s.io", "v1beta1", "pods")
LLM_SERVICES = tuple(
    Resource("serving.kserve.io", version, "llminferenceservices") for version in ("v1alpha2", "v1alpha1")
)


class Cluster:
    """Reads objects; what it may not read it reports once.

    Args:
        api: the API server.
        find: takes the reports.
    """

    def __init__(self, api: Api, find: Findings) -> None:
        self.api = api
        self._find = find
        self._refused: set[str] = set()
        self._listed: dict[tuple[Resource, str, tuple[tuple[str, str], ...]], Sequence[Object] | None] = {}

    def __repr__(self) -> str:
        return f"<Cluster: {self.api!r}>"

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """One object; None if it isn't there or may not be read.

        Raises:
            Unreachable: the API server can't be asked.
        """
        try:
            found: Object = await self.api.get(resource.path(namespace, name))
        except ApiError as error:
            self._report(resource, "get", error)
            return None
        return found

    async def list(self, resource: Resource, namespace: str, **params: str) -> Sequence[Object] | None:
        """All objects; None if their kind isn't there or they may not be read.

        Raises:
            Unreachable: the API server can't be asked.
        """
        key = resource, namespace, tuple(sorted(params.items()))
        if key not in self._listed:
            try:
                self._listed[key] = await self.api.list(resource.path(namespace), **params)
            except ApiError as error:
                self._report(resource, "list", error)
                self._listed[key] = None
        return self._listed[key]

    def refused(self, resource: Resource) -> bool:
        """Whether reading this kind has been refused: then nothing is known of what is there."""
        return str(resource) in self._refused

    async def text(self, path: str, **params: str) -> bytes | None:
        """A page of the API server's, such as a pod's log; None if it can't be had."""
        try:
            return await self.api.request("GET", path, params=params)
        except (ApiError, Unreachable):
            return None

    def _report(self, resource: Resource, verb: str, error: ApiError) -> None:
        if error.status == 404 or str(resource) in self._refused:
            return
        self._refused.add(str(resource))
        remedy = f"run it as somebody who may: kubectl auth can-i {verb} {resource}"
        self._find.unknown("api.rights", str(resource), f"can't be read: {error}", remedy)


def name_of(each: Object) -> str:
    """`Kind namespace/name`, the kind if the object says it."""
    meta = each.get("metadata") or {}
    path = "/".join(part for part in (meta.get("namespace"), meta.get("name")) if part)
    return " ".join(part for part in (each.get("kind"), path) if part)


def labels_of(each: Object) -> Mapping[str, str]:
    """Its labels."""
    found: Mapping[str, str] = (each.get("metadata") or {}).get("labels") or {}
    return found


def at(each: Any, *path: str | int) -> Any:
    """What is at a path in an object; None if there is nothing."""
    for step in path:
        if isinstance(step, int):
            each = each[step] if isinstance(each, list) and len(each) > step else None
        else:
            each = each.get(step) if isinstance(each, Mapping) else None
    return each


def condition(each: Object, kind: str) -> Mapping[str, str]:
    """A condition of an object's status; {} if it has none of that type."""
    return conditions(at(each, "status", "conditions")).get(kind, {})


def conditions(found: Any) -> dict[str, Mapping[str, str]]:
    """Conditions by type."""
    return {str(each.get("type")): each for each in found or () if isinstance(each, Mapping)}


def why(each: Any) -> str:
    """`reason: message` of a condition, an event or a status, as far as it gives them."""
    return ": ".join(str(each[key]) for key in ("reason", "message") if each and each.get(key)) or "no reason is given"


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether labels have all that a selector asks for."""
    return selector.items() <= labels.items()
