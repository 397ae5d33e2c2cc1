"""The pods of model servers and pickers: whether there are any, whether they are ready, and if not, why."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from epp.data.kubernetes.pods import Pod, active_ports, active_ports_annotation, port_of
from epp.doctor.cluster import Cluster, Object, at, condition, labels_of, name_of, why
from epp.doctor.findings import Findings
from epp.doctor.target import Target, is_picker
from epp.kube.client import PODS
from epp.kube.selectors import parse_selector, split_selector

ROLE = "llm-d.ai/role"
_RESTARTS = 3
_MOST_OTHERS = 5
_WAITING = {
    "ImagePullBackOff": "the image's name, its registry, or the pull secret is wrong",
    "ErrImagePull": "the image's name, its registry, or the pull secret is wrong",
    "CrashLoopBackOff": "see why it ends: kubectl logs --previous",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names isn't there",
    "CreateContainerError": "see the pod's events: kubectl describe pod",
}
_ENDED = {
    "OOMKilled": "it needs more memory: a higher limit; for an engine fewer sequences (--max-num-seqs), a shorter"
    " --max-model-len, quantization, or more tensor parallelism",
}


async def members(cluster: Cluster, find: Findings, target: Target) -> Sequence[Object]:
    """The model servers' pods that are ready, with reports of those that aren't."""
    everyone = await cluster.list(PODS, target.namespace)
    if everyone is None:
        return ()
    if not target.selector:
        remedy = "name a label in the pool's spec.selector that its model servers' pods have"
        find.broken("pods.matched", str(target), "its selector is empty, which selects no pod", remedy)
        return ()
    selects = parse_selector(target.selector)
    found = [pod for pod in everyone if selects(labels_of(pod))]
    if not found:
        find.broken("pods.matched", str(target), "no pod has its labels", _near(everyone, target.selector))
        return ()
    _check_strangers(find, target, found)
    ready = [pod for pod in found if is_ready(pod)]
    state = find.ok if len(ready) == len(found) else None
    if state:
        state("pods.ready", str(target), f"{len(found)} pods, all ready")
    elif ready:
        find.warning("pods.ready", str(target), f"{len(ready)} of {len(found)} pods are ready", "see the others, below")
    else:
        find.broken("pods.ready", str(target), f"none of its {len(found)} pods is ready", "see why, below")
    for pod in found:
        explain(find, pod)
        _check_ports(find, pod, target.ports)
    _check_roles(find, target, ready)
    return ready


def is_ready(pod: Object) -> bool:
    """Whether requests may be sent to it."""
    return msgspec.convert(pod, Pod).ready


def explain(find: Findings, pod: Object) -> None:
    """Reports why a pod isn't ready, or is so by chance."""
    subject = name_of({"kind": "Pod", **pod})
    for container in _containers(pod):
        _check_container(find, subject, container)
    if is_ready(pod):
        return
    if at(pod, "metadata", "deletionTimestamp"):
        find.ok("pod.ready", subject, "is on its way out, and gets no requests")
        return
    phase, scheduled = at(pod, "status", "phase"), condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        remedy = "free or add nodes with what it asks for (GPUs, memory), or correct its selectors and tolerations"
        find.broken("pod.scheduled", subject, f"waits for a node: {scheduled.get('message') or why(scheduled)}", remedy)
    elif phase is None:
        remedy = (
            "wait a moment; if it stays so, see kubectl describe pod, and that a scheduler and the node's kubelet run"
        )
        find.warning("pod.ready", subject, "has no status yet: nobody has taken it up", remedy)
    elif phase in ("Failed", "Succeeded"):
        message = f"has ended and doesn't come back ({phase}: {why(at(pod, 'status'))})"
        find.warning("pod.ready", subject, message, "see kubectl describe pod, then delete it; its owner makes another")
    elif not any(True for each in _containers(pod) if at(each, "state", "waiting", "reason") in _WAITING):
        running = [str(each.get("name")) for each in _containers(pod) if not each.get("ready")]
        what = f"containers that aren't ready: {', '.join(running)}" if running else "no container runs"
        remedy = "an engine loads its model first; if it stays so, see kubectl logs and its readiness probe"
        find.warning("pod.ready", subject, f"is {phase} and not ready; {what}", remedy)


def _containers(pod: Object) -> Iterator[Mapping[str, Any]]:
    for key in ("initContainerStatuses", "containerStatuses"):
        for each in at(pod, "status", key) or ():
            done = at(each, "state", "terminated", "exitCode") == 0  # as of an init container
            if not done:
                yield each


def _check_container(find: Findings, subject: str, container: Mapping[str, Any]) -> None:
    name = container.get("name")
    waiting = str(at(container, "state", "waiting", "reason") or "")
    if waiting in _WAITING:
        message = f"container {name} waits: {waiting}: {at(container, 'state', 'waiting', 'message') or ''}".rstrip(
            ": "
        )
        remedy = _WAITING[waiting]
        if name == "storage-initializer":
            remedy = (
                "the model can't be fetched: see its log, spec.model.uri, and the credentials of its service account"
            )
        find.broken("pod.container", subject, message, remedy)
    ended = at(container, "lastState", "terminated", "reason") or at(container, "state", "terminated", "reason")
    restarts = int(container.get("restartCount") or 0)
    if ended in _ENDED:
        find.warning(
            "pod.restarts", subject, f"container {name} was ended: {ended}, {restarts} restarts", _ENDED[ended]
        )
    elif restarts > _RESTARTS:
        remedy = "see why it ends: kubectl logs --previous"
        find.warning("pod.restarts", subject, f"container {name} has been started again {restarts} times", remedy)


def _near(everyone: Sequence[Object], selector: str) -> str:
    """Which of the requirements is to blame."""
    if not everyone:
        return "there is no pod at all in this namespace"
    counts = {part: sum(map(parse_selector(part), map(labels_of, everyone))) for part in split_selector(selector)}
    told = ", ".join(f"{part}: {count} of {len(everyone)} pods" for part, count in counts.items())
    return f"correct the selector or the pods' labels; who has which: {told}"


def _check_strangers(find: Findings, target: Target, found: Sequence[Object]) -> None:
    """A selector that is too wide takes in pickers, which then get requests."""
    strangers = [name_of({"kind": "Pod", **pod}) for pod in found if is_picker(pod)]
    if strangers:
        remedy = (
            "add kserve.io/component=workload to the selector: app.kubernetes.io/name alone has the picker's pods, too"
        )
        message = f"its selector has pods that are no model servers: {', '.join(strangers)}"
        find.broken("pods.strangers", str(target), message, remedy)


def _check_ports(find: Findings, pod: Object, ports: Sequence[int]) -> None:
    subject = name_of({"kind": "Pod", **pod})
    _check_active_ports(find, subject, msgspec.convert(pod, Pod), ports)
    named = {
        each.get("containerPort") for one in at(pod, "spec", "containers") or () for each in one.get("ports") or ()
    }
    init = at(pod, "spec", "initContainers") or ()
    named |= {each.get("containerPort") for one in init for each in one.get("ports") or ()}
    missing = [port for port in ports if port not in named]
    if named and missing:
        message = f"declares no container port {', '.join(map(str, missing))}, which the pool names"
        remedy = f"it need not; but see that something listens there (it declares {', '.join(map(str, sorted(named)))})"
        find.warning("pod.ports", subject, message, remedy)


def _check_active_ports(find: Findings, subject: str, pod: Pod, ports: Sequence[int]) -> None:
    """The annotation should leave some of the pool's ports, and name no others."""
    active, (name, text) = active_ports(pod), active_ports_annotation(pod)
    if active is None:
        return
    shown, pools = f"annotation {name} is {textwrap.shorten(text, 60)!r}", ", ".join(map(str, ports))
    if not text.strip():
        remedy = f"right while its engines are down; else list their ports ({pools}), or take the annotation away"
        find.warning("pod.ports", subject, f"its annotation {name} is empty: the pod gets no requests", remedy)
    elif not active & set(ports):
        remedy = f"write those of its ports whose engines run, such as {pools}, or take the annotation away"
        find.broken("pod.ports", subject, f"its {shown}, none of the pool's ports: it gets no requests", remedy)
    elif others := [part.strip() for part in text.split(",") if port_of(part) not in ports]:
        message = f"its {shown}, of which these are no ports of the pool: {', '.join(others[:_MOST_OTHERS])}"
        find.warning("pod.ports", subject, message, f"that counts for nothing: write ports of the pool only ({pools})")


def _check_roles(find: Findings, target: Target, ready: Sequence[Object]) -> None:
    roles = [labels_of(pod).get(ROLE, "") for pod in ready]
    if roles and all(role in {"prefill", "encode"} for role in roles):
        message = f"all ready pods have the role {' or '.join(sorted(set(roles)))}: nobody decodes"
        find.broken("pods.roles", str(target), message, f"see the pods with {ROLE}=decode: they answer the requests")
    elif "prefill" in roles:
        counts = ", ".join(f"{roles.count(role)} {role or 'without a role'}" for role in sorted(set(roles)))
        find.ok("pods.roles", str(target), f"ready pods by role: {counts}")
