"""The pods that a selector has, as members of the pool. No I/O; a few pods are entered at a time."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from epp.data.kubernetes.pods import Pod, endpoints_of
from epp.kube.watch import Change, Name
from epp.pool import Endpoint, Pool

SLICE = 16
"""Pods that are entered into the pool at once, when many come together."""

OnPool = Callable[[Sequence[str], Sequence[str]], None]


@dataclass(slots=True)
class _Member:
    """A pod: what was last heard of it, and its endpoints in the pool."""

    pod: Pod
    endpoints: dict[str, Endpoint] = field(default_factory=dict)


class Members:
    """A sink of pods. Whatever order pods and ports come in, the pool ends up the same.

    `listed` is whether all pods of the selector in force have been heard of.

    Args:
        pool: gets the endpoints.
        on_pool: hears of the ids of those added and removed; one with a new address is both.
        on_listed: called whenever all pods have been heard of.
    """

    def __init__(self, pool: Pool, on_pool: OnPool, on_listed: Callable[[], None]) -> None:
        self.listed = False
        self._pool = pool
        self._on_pool = on_pool
        self._on_listed = on_listed
        self._ports: tuple[int, ...] = ()
        self._members: dict[str, _Member] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"<Members: {len(self)} pods, {self.ready} ready>"

    @property
    def ready(self) -> int:
        """How many pods have endpoints."""
        return sum(1 for member in self._members.values() if member.endpoints)

    def use(self, ports: tuple[int, ...]) -> None:
        """The pool's ports are these."""
        if ports != self._ports:
            self._ports = ports
            self._enter(self._members.values())

    async def replace(self, items: Sequence[Pod], unread: Collection[Name]) -> None:
        """There are exactly these pods, and some that can't be read and stay as they were."""
        for start in range(0, len(items), SLICE):
            self._take(items[start : start + SLICE])
            await asyncio.sleep(0)
        there = {(pod.metadata.namespace, pod.metadata.name) for pod in items} | set(unread)
        self._leave([name for name, each in self._members.items() if (each.pod.metadata.namespace, name) not in there])
        self.listed = True
        self._on_listed()

    def change(self, change: Change, item: Pod) -> None:
        """One pod is new, has changed, or is gone."""
        if change == "DELETED":
            self._leave([item.metadata.name])
        else:
            self._take([item])

    def clear(self) -> None:
        """There is no selector any more."""
        self.listed = False
        self._leave(list(self._members))

    def _take(self, pods: Sequence[Pod]) -> None:
        known = {pod.metadata.name: self._members.get(pod.metadata.name) for pod in pods}
        # Another pod of the same name has nothing of what the first one had cached.
        self._leave(
            [p.metadata.name for p in pods if (m := known[p.metadata.name]) and m.pod.metadata.uid != p.metadata.uid]
        )
        for pod in pods:
            self._members.setdefault(pod.metadata.name, _Member(pod)).pod = pod
        self._enter([self._members[pod.metadata.name] for pod in pods])

    def _enter(self, members: Iterable[_Member]) -> None:
        """Brings the pool in line with these pods."""
        added: list[str] = []
        removed: list[str] = []
        for member in members:
            old, new = member.endpoints, {each.id: each for each in endpoints_of(member.pod, self._ports)}
            if new == old:
                continue
            gone = [i for i in old if i not in new]
            moved = [i for i in new if i in old and old[i].hostport != new[i].hostport]
            for endpoint_id in gone:
                self._pool.remove(endpoint_id)
            for endpoint in new.values():
                self._pool.add(endpoint)
            member.endpoints = new
            added += [i for i in new if i not in old] + moved
            removed += gone + moved
        if added or removed:
            self._on_pool(added, removed)

    def _leave(self, names: Sequence[str]) -> None:
        gone = [self._members.pop(name) for name in names if name in self._members]
        removed = [endpoint_id for member in gone for endpoint_id in member.endpoints]
        for endpoint_id in removed:
            self._pool.remove(endpoint_id)
        if removed:
            self._on_pool([], removed)
