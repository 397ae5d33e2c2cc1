"""A pod as endpoints: one for each port of the pool, as long as the pod is ready and stays.

The names, ranks and addresses are llm-d's: `<pod>-rank-<index of the port>`, at the pod's IP address. The annotation
`llm-d.ai/active-ports` narrows the ports of one pod, as for data-parallel ranks that aren't all there.
"""

import re
from collections.abc import Sequence

import msgspec

from epp.kube.watch import Object
from epp.pool import Endpoint

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""The annotation, under its name and its older one; the first that is there counts."""


class Condition(msgspec.Struct, frozen=True):
    """One of a pod's conditions."""

    type: str = ""
    status: str = ""


class PodStatus(msgspec.Struct, frozen=True):
    """What the kubelet says of a pod."""

    pod_ip: str = msgspec.field(name="podIP", default="")
    host_ip: str = msgspec.field(name="hostIP", default="")
    conditions: list[Condition] = []


class PodSpec(msgspec.Struct, frozen=True):
    """Where the pod is."""

    node_name: str = msgspec.field(name="nodeName", default="")


class Pod(Object, frozen=True):
    """A pod, as far as it is wanted here."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def ready(self) -> bool:
        """Whether it may be sent requests: it has an address, is ready, and nobody has asked it to end."""
        if self.metadata.deletion_timestamp is not None or not self.status.pod_ip:
            return False
        return any(each.type == "Ready" and each.status == "True" for each in self.status.conditions)


def endpoints_of(pod: Pod, ports: Sequence[int]) -> tuple[Endpoint, ...]:
    """The endpoints of a pod, none if it isn't ready.

    Args:
        pod: of the pool.
        ports: the pool's target ports; a port's index is its rank.
    """
    if not pod.ready:
        return ()
    meta, active = pod.metadata, active_ports(pod)
    node, node_address = pod.spec.node_name, pod.status.host_ip
    return tuple(
        Endpoint(
            f"{meta.name}-rank-{rank}",
            pod.status.pod_ip,
            port,
            meta.namespace,
            meta.labels,
            node=node,
            node_address=node_address,
        )
        for rank, port in enumerate(ports)
        if active is None or port in active
    )


def active_ports(pod: Pod) -> frozenset[int] | None:
    """The ports that the annotation leaves; None without one. What in it is no number counts for nothing."""
    name, text = active_ports_annotation(pod)
    named = frozenset(port for part in text.split(",") if (port := port_of(part)) is not None)
    return named if name else None


def port_of(text: str) -> int | None:
    """The port that a part of the annotation names; None if it is none."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,5}\s*", text, re.ASCII) else None


def active_ports_annotation(pod: Pod) -> tuple[str, str]:
    """The annotation's name and text; two empty texts without one."""
    annotations = pod.metadata.annotations
    return next(((name, annotations[name]) for name in ACTIVE_PORTS if name in annotations), ("", ""))
