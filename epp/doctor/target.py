"""What is examined: a pool, or a KServe service and its pool, or the pods of a selector."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from epp.data.kubernetes.objects import InferencePool
from epp.data.objects import PoolSpec
from epp.doctor import kserve
from epp.doctor.cluster import LLM_SERVICES, Cluster, Object, at, labels_of, name_of
from epp.doctor.findings import Findings
from epp.doctor.flags import Picker
from epp.kube.client import OLD_GROUP, OLD_POOLS, PODS, POOLS, Resource
from epp.kube.selectors import format_selector

SCHEDULER = "llminferenceservice-router-scheduler"
"""KServe's label app.kubernetes.io/component of a picker; `scheduler` alone matches nothing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        name: of an InferencePool or an LLMInferenceService, whichever there is.
        pool: of an InferencePool.
        group: its API group; "" for either.
        kserve: of an LLMInferenceService.
        selector: a label selector of the model servers' pods; "" for that of the pool.
        ports: theirs.
        picker: of the picker's Service; "" for the one that the pool names.
    """

    namespace: str
    name: str = ""
    pool: str = ""
    group: str = ""
    kserve: str = ""
    selector: str = ""
    ports: tuple[int, ...] = ()
    picker: str = ""


@dataclass(slots=True)
class Target:
    """What there is of it.

    Attributes:
        pool: the InferencePool; None if the pods are selected without one.
        selector: a label selector of the model servers' pods.
        ports: of each.
        picker: the name of the picker's Service; "" if nothing says it.
        picker_port: that gateways connect to; None if nothing says it.
        service: the LLMInferenceService; None if there is none.
    """

    namespace: str
    pool: Object | None
    selector: str
    ports: tuple[int, ...]
    picker: str
    picker_port: int | None
    service: Object | None = None

    @property
    def pool_name(self) -> str:
        """The pool's name; "" without one."""
        return str(at(self.pool, "metadata", "name") or "")

    @property
    def pool_group(self) -> str:
        """The pool's API group; "" without one."""
        return str(at(self.pool, "apiVersion") or "").rpartition("/")[0]

    def __str__(self) -> str:
        what = self.pool or self.service
        return name_of(what) if what else f"pods of {self.namespace} with {self.selector}"


async def resolve(cluster: Cluster, find: Findings, wanted: Wanted) -> Target | None:
    """Finds what is asked for, with what KServe says of it; None if it isn't there, which is reported then."""
    if wanted.selector:
        return Target(wanted.namespace, None, wanted.selector, wanted.ports, wanted.picker, None)
    service = await _service(cluster, wanted)
    if wanted.kserve and service is None:
        if not any(cluster.refused(each) for each in LLM_SERVICES):
            await _no_service(cluster, find, wanted)
            return None
        wanted = replace(wanted, pool=await _pool_named(cluster, wanted))  # what it is called is known all the same
    if service is not None:
        kserve.check(find, service)
    pool = await _pool(cluster, wanted, service)
    if pool is None:
        await _no_pool(cluster, find, wanted, service)
        return None
    try:
        said = _declared(pool)
    except msgspec.ValidationError as error:
        remedy = "see that the CustomResourceDefinition is the published one; it would have refused this"
        find.broken("pool.found", name_of(pool), f"can't be read: {error}", remedy)
        return None
    ports = f"port{'s' if len(said.ports) > 1 else ''} {', '.join(map(str, said.ports))}"
    selector = format_selector(said.labels)
    find.ok("pool.found", name_of(pool), f"{pool['apiVersion']}, pods with {selector or 'no labels'}, {ports}")
    picker, port = _picker(pool)
    return Target(wanted.namespace, pool, selector, said.ports, wanted.picker or picker, port, service)


async def _service(cluster: Cluster, wanted: Wanted) -> Object | None:
    name = wanted.kserve or wanted.name
    for resource in LLM_SERVICES if name else ():
        found = await cluster.get(resource, wanted.namespace, name)
        if found is not None:
            return found
    return None


async def _pool(cluster: Cluster, wanted: Wanted, service: Object | None) -> Object | None:
    resources = [each for each in (POOLS, OLD_POOLS) if wanted.group in ("", each.group)]
    if service is not None:
        return await _pool_of(cluster, wanted, service, resources)
    name = wanted.pool or wanted.name
    if name:
        return await _first(cluster, resources, wanted.namespace, name)
    for resource in resources:  # the only one that there is
        found = await cluster.list(resource, wanted.namespace)
        if found and len(found) == 1:
            return await _first(cluster, [resource], wanted.namespace, str(at(found[0], "metadata", "name")))
    if any(cluster.refused(resource) for resource in resources):  # as to a picker's pod, which may read its own pool
        pickers = [Picker(pod) for pod in await cluster.list(PODS, wanted.namespace) or ()]
        names = {picker.flag("pool-name") for picker in pickers} - {None, ""}
        if len(names) == 1:
            return await _first(cluster, resources, wanted.namespace, str(names.pop()))
    return None


async def _pool_of(cluster: Cluster, wanted: Wanted, service: Object, resources: Sequence[Resource]) -> Object | None:
    """A KServe service's pool: the one that it names, or the one with its labels. Long names are cut and hashed."""
    named = at(service, "spec", "router", "scheduler", "pool", "ref", "name")
    if named:
        return await _first(cluster, resources, wanted.namespace, str(named))
    name = str(at(service, "metadata", "name"))
    labels = f"app.kubernetes.io/name={name},app.kubernetes.io/part-of=llminferenceservice"
    for resource in resources:
        found = await cluster.list(resource, wanted.namespace, labelSelector=labels)
        if found:
            return await _first(cluster, [resource], wanted.namespace, str(at(found[0], "metadata", "name")))
    return await _first(cluster, resources, wanted.namespace, f"{name}-inference-pool")


async def _pool_named(cluster: Cluster, wanted: Wanted) -> str:
    """What the pool of a service is called that may not be read."""
    nameless: Object = {"metadata": {"name": wanted.kserve}}
    resources = [each for each in (POOLS, OLD_POOLS) if wanted.group in ("", each.group)]
    found = await _pool_of(cluster, wanted, nameless, resources)
    return str(at(found, "metadata", "name") or f"{wanted.kserve}-inference-pool")


async def _first(cluster: Cluster, resources: Sequence[Resource], namespace: str, name: str) -> Object | None:
    for resource in resources:
        found = await cluster.get(resource, namespace, name)
        if found is not None:
            return found
    return None


async def _no_service(cluster: Cluster, find: Findings, wanted: Wanted) -> None:
    there = [each for resource in LLM_SERVICES for each in await cluster.list(resource, wanted.namespace) or ()]
    names = sorted({str(at(each, "metadata", "name")) for each in there})
    subject = f"LLMInferenceService {wanted.namespace}/{wanted.kserve}"
    find.broken("kserve.found", subject, "is not there", _choose(wanted.kserve, names, "services"))


async def _no_pool(cluster: Cluster, find: Findings, wanted: Wanted, service: Object | None) -> None:
    if not any([await cluster.api.serves(resource) for resource in (POOLS, OLD_POOLS)]):
        remedy = "install the CRDs of the Gateway API Inference Extension, or use --endpoint-selector"
        find.broken("pool.found", "InferencePool", "the API server doesn't know this kind", remedy)
        return
    if service is not None and at(service, "spec", "router", "scheduler") is None:
        remedy = "set spec.router.scheduler: {} for a picker"
        find.broken("kserve.scheduler", name_of(service), "has no scheduler, and so no pool", remedy)
        return
    name = wanted.pool or wanted.name
    subject = f"InferencePool {wanted.namespace}/{name}" if name else f"InferencePool in {wanted.namespace}"
    if any(cluster.refused(each) for each in (POOLS, OLD_POOLS) if wanted.group in ("", each.group)):
        remedy = "ask as somebody who may" if name else "name it: --pool-name NAME"
        find.unknown("pool.found", subject, "whether there is one may not be read", remedy)
        return
    there = [each for resource in (POOLS, OLD_POOLS) for each in await cluster.list(resource, wanted.namespace) or ()]
    names = sorted({str(at(each, "metadata", "name")) for each in there})
    message = "is not there" if name else "there is none" if not names else f"there are several: {', '.join(names)}"
    if wanted.group == POOLS.group and any(each.get("apiVersion", "").startswith(OLD_GROUP) for each in there):
        message += f" in {wanted.group}"
    find.broken("pool.found", subject, message, _choose(name, names, "pools"))


def _choose(name: str, names: Sequence[str], what: str) -> str:
    if not names:
        return f"there are no {what} in this namespace: create one, or look in another with --namespace"
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"{what} there: {', '.join(names)}; or another --namespace"


def _declared(pool: Object) -> PoolSpec:
    return msgspec.convert(pool, InferencePool).declared


def _picker(pool: Object) -> tuple[str, int | None]:
    ref = at(pool, "spec", "endpointPickerRef") or at(pool, "spec", "extensionRef") or {}
    port = at(ref, "port", "number") or at(ref, "portNumber")
    return str(ref.get("name") or ""), int(port) if port else None


def is_picker(pod: Object) -> bool:
    """Whether KServe labels a pod as a picker."""
    return labels_of(pod).get("app.kubernetes.io/component") == SCHEDULER
