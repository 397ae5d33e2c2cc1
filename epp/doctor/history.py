"""What has happened lately: warnings among the events, errors in the pickers' logs, memory near its limit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from epp.doctor.cluster import EVENTS, POD_METRICS, Cluster, Object, at, name_of, why
from epp.doctor.findings import Findings
from epp.doctor.flags import Picker
from epp.doctor.target import Target
from epp.kube.client import PODS, ApiError
from epp.quantities import parse_bytes

_MOST = 5
_LINES = "200"
_FULL = 0.9


async def check(
    cluster: Cluster, find: Findings, target: Target, pods: Sequence[Object], pickers: Sequence[Picker]
) -> None:
    """Looks at pods of model servers and pickers."""
    everyone = [*pods, *(picker.pod for picker in pickers)]
    names = {str(at(pod, "metadata", "name")) for pod in everyone} | {target.pool_name, target.picker}
    await _check_events(cluster, find, target, names - {""})
    for picker in pickers:
        await _check_log(cluster, find, target, picker)
    await _check_memory(cluster, find, target, everyone)


async def _check_events(cluster: Cluster, find: Findings, target: Target, names: set[str]) -> None:
    events = await cluster.list(EVENTS, target.namespace, fieldSelector="type=Warning")
    counts: Counter[tuple[str, str]] = Counter()
    for event in events or ():
        about = at(event, "involvedObject", "name")
        if about in names and event.get("type") == "Warning":
            key = (f"{at(event, 'involvedObject', 'kind')} {target.namespace}/{about}", why(event))
            counts[key] += int(event.get("count") or at(event, "series", "count") or 1)
    for (subject, told), count in counts.most_common(_MOST):
        find.warning("events", subject, f"{told} ({count} times)" if count > 1 else told, "see kubectl describe")
    if events is not None and not counts:
        find.ok("events", str(target), "no warnings among the events")


async def _check_log(cluster: Cluster, find: Findings, target: Target, picker: Picker) -> None:
    path = f"{PODS.path(target.namespace, str(at(picker.pod, 'metadata', 'name')))}/log"
    text = await cluster.text(path, container=str(picker.container.get("name")), tailLines=_LINES)
    if text is None:
        find.unknown(
            "picker.log", picker.subject, "its log can't be read", "kubectl auth can-i get pods --subresource=log"
        )
        return
    errors = [line for line in map(_line, text.splitlines()) if line.get("level") in ("error", "fatal", "panic")]
    if errors:
        said = errors[-1].get("msg") or errors[-1].get("message")
        message = f"{len(errors)} errors among its last {_LINES} lines, the last: {said}"
        find.warning("picker.log", picker.subject, message, "see its log: kubectl logs")
    else:
        find.ok("picker.log", picker.subject, f"no errors among its last {_LINES} lines")


def _line(text: bytes) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(text)
    except msgspec.MsgspecError:
        return {}
    return found if isinstance(found, dict) else {}


async def _check_memory(cluster: Cluster, find: Findings, target: Target, pods: Sequence[Object]) -> None:
    try:
        used = await cluster.api.list(POD_METRICS.path(target.namespace))
    except ApiError:
        remedy = "install metrics-server to have it"
        find.unknown("pod.memory", str(target), "the cluster doesn't tell how much memory pods use", remedy)
        return
    usage = {
        (at(pod, "metadata", "name"), each.get("name")): at(each, "usage", "memory")
        for pod in used
        for each in pod.get("containers") or ()
    }
    full = [line for pod in pods for line in _full(pod, usage)]
    for subject, message in full:
        find.warning("pod.memory", subject, message, "it is ended at its limit: raise it, or find out what grows")
    if not full:
        find.ok("pod.memory", str(target), "no container is near its limit of memory")


def _full(pod: Object, usage: Mapping[tuple[Any, Any], Any]) -> list[tuple[str, str]]:
    found = []
    for container in at(pod, "spec", "containers") or ():
        name, limit = container.get("name"), at(container, "resources", "limits", "memory")
        used = usage.get((at(pod, "metadata", "name"), name))
        if limit and used and parse_bytes(str(used)) > _FULL * parse_bytes(str(limit)):
            found.append((name_of({"kind": "Pod", **pod}), f"container {name} uses {used} of {limit}"))
    return found
