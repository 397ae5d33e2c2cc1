"""Keeps the pool up to what Kubernetes says: an InferencePool's pods, or those of a label selector.

One task follows each kind of object. When the API server is lost the pool stays as it is, marked stale: nothing about
a pod's load comes from here, so scores don't change.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from epp.data.kubernetes.members import Members, OnPool
from epp.data.kubernetes.objects import (
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    mixed_weights,
    objects_of,
)
from epp.data.kubernetes.pods import Pod
from epp.data.objects import PoolSpec
from epp.errors import ConfigError
from epp.kube.client import MODELS, OBJECTIVES, OLD_POOLS, PODS, POOLS, REWRITES, Api, ApiError, Resource
from epp.kube.selectors import format_selector, parse_selector
from epp.kube.watch import Backoff, Change, Name, Object, Pace, Reflector, Sink
from epp.pool import Pool

_ABSENT = (403, 404)
_OBJECTS_PATIENCE = 5.0  # seconds that readiness waits for objectives, rewrites and models

T = TypeVar("T", bound=Object)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which pods are the model servers: those of a pool, or those of a selector.

    Attributes:
        namespace: of the pool, its pods, and the objects beside it.
        pool: the InferencePool's name; "" with a selector.
        group: its API group; "" for v1's, and where that has no such pool v1alpha2's.
        selector: a label selector; "" with a pool.
        ports: of the selected pods.
    """

    namespace: str = "default"
    pool: str = ""
    group: str = ""
    selector: str = ""
    ports: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.pool and self.group not in ("", POOLS.group, OLD_POOLS.group):
            raise ConfigError(f"--pool-group: {self.group!r} has no InferencePools: {POOLS.group} or {OLD_POOLS.group}")
        if self.selector:
            try:
                parse_selector(self.selector)
            except ConfigError as error:
                raise ConfigError(f"--endpoint-selector: {error}") from error
            if not self.ports:
                raise ConfigError("--endpoint-selector needs --endpoint-target-ports, such as 8000")

    @property
    def pools(self) -> tuple[Resource, ...]:
        """Where the InferencePool may be, the one that counts first."""
        return tuple(each for each in (POOLS, OLD_POOLS) if self.group in ("", each.group)) if self.pool else ()


class _Collected(Generic[T]):
    """A sink that keeps all objects of a kind by name, for kinds of which there are few."""

    def __init__(self, changed: Callable[[], None], listed: Callable[[], None] = lambda: None) -> None:
        self.objects: dict[str, T] = {}
        self._changed = changed
        self._listed = listed

    async def replace(self, items: Sequence[T], unread: Collection[Name]) -> None:
        kept = {name: each for name, each in self.objects.items() if (each.metadata.namespace, name) in unread}
        self.objects = kept | {item.metadata.name: item for item in items}
        self._changed()
        self._listed()

    def change(self, change: Change, item: T) -> None:
        if change == "DELETED":
            self.objects.pop(item.metadata.name, None)
        else:
            self.objects[item.metadata.name] = item
        self._changed()


@dataclass(slots=True, eq=False)
class _Candidate:
    """An InferencePool under one of its API groups.

    Attributes:
        backoff: the pauses between two looks while it can't be asked for.
        known: whether it has been looked for.
        spec: what it declares; None if it isn't there.
    """

    resource: Resource
    backoff: Backoff
    known: bool = False
    spec: PoolSpec | None = None


class KubernetesDiscovery:
    """Keeps the pool's membership and its objects up to what the API server says.

    `stale` is whether something that counts hasn't been heard of lately, `unread` how many objects can't be decoded.

    Args:
        pool: gets the endpoints, and is synced once the InferencePool, its pods and the objects have been heard of.
        api: the API server.
        wanted: which pods.
        on_error: hears of what goes wrong.
        on_pool: hears of the ids of endpoints added and removed.
        on_state: called whenever the pool is synced, or no longer, and whenever `stale` or `unread`
            changes.
        patience: seconds that a start waits for the API server before it goes on without.
        look_again: seconds until a kind that isn't there is asked for again. Pools are at the pace of an outage, and
            at most after a tenth of it: an API server that has just begun may not know them yet.
        pace, now, source: see `Reflector`.
    """

    def __init__(
        self,
        pool: Pool,
        api: Api,
        wanted: Wanted,
        *,
        on_error: Callable[[str], None] = lambda _: None,
        on_pool: OnPool = lambda *_: None,
        on_state: Callable[[], None] = lambda: None,
        patience: float = 2.0,
        look_again: float = 60.0,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self.stale = False
        self.unread = 0
        self._patience, self._look_again = patience, look_again
        self._pool = pool
        self._api = api
        self._wanted = wanted
        self._on_error, self._on_state = on_error, on_state
        self._pace, self._now, self._random = pace, now, source or random.Random()
        looks = replace(pace or Pace(), late_cap=look_again / 10)
        self._candidates = [_Candidate(each, Backoff(looks, now, self._random)) for each in wanted.pools]
        self._members = Members(pool, on_pool, self._review_synced)
        self._spec: PoolSpec | None = None
        self._selector = ""  # the one whose pods are followed
        kinds = (OBJECTIVES, REWRITES, (MODELS,)) if wanted.pool else ()
        self._pending = {resources[0].plural for resources in kinds}  # kinds of objects that are still to be heard of
        heard = [partial(self._heard, each[0].plural) for each in (OBJECTIVES, REWRITES, (MODELS,))]
        self._objectives: _Collected[InferenceObjective] = _Collected(self._objects_changed, heard[0])
        self._rewrites: _Collected[InferenceModelRewrite] = _Collected(self._objects_changed, heard[1])
        self._models: _Collected[InferenceModel] = _Collected(self._objects_changed, heard[2])
        self._reflectors: dict[str, Reflector[Any]] = {}
        self._errors: dict[str, str] = {}  # the last one of each kind, while it lasts
        self._said: set[str] = set()  # what is told once
        self._tasks: list[asyncio.Task[None]] = []
        self._pods_task: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()

    def __repr__(self) -> str:
        what = self._wanted.pool or self._wanted.selector
        return f"<KubernetesDiscovery: {what!r}, {self._members!r}, {'stale' if self.stale else 'current'}>"

    @property
    def protocol(self) -> str:
        """The pool's appProtocol; "" where it isn't said."""
        return self._spec.app_protocol if self._spec else ""

    async def start(self) -> None:
        """Begins to follow; waits a little for the first word, and goes on without it."""
        if self._wanted.selector:
            self._use(PoolSpec({}, self._wanted.ports))
        for candidate in self._candidates:
            self._spawn(f"{candidate.resource}", partial(self._follow_candidate, candidate))
        if self._wanted.pool:
            self._spawn(
                "inferenceobjectives", partial(self._follow_first, OBJECTIVES, InferenceObjective, self._objectives)
            )
            self._spawn(
                "inferencemodelrewrites", partial(self._follow_first, REWRITES, InferenceModelRewrite, self._rewrites)
            )
            self._spawn("inferencemodels", partial(self._follow_first, (MODELS,), InferenceModel, self._models))
            self._tasks.append(asyncio.create_task(self._lose_patience()))
        try:
            async with asyncio.timeout(self._patience):
                await self._synced.wait()
        except TimeoutError:
            self._on_error(f"the endpoints aren't known yet: {'; '.join(self._errors.values()) or 'no answer so far'}")

    async def stop(self) -> None:
        """Ends the following; the pool stays as it is."""
        tasks = [*self._tasks, *([self._pods_task] if self._pods_task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def shown(self) -> dict[str, Any]:
        """Its state, for people."""
        chosen, spec = self._chosen(), self._spec
        return {
            "namespace": self._wanted.namespace,
            "pool": self._wanted.pool or None,
            "pool_group": chosen.resource.group_version if chosen else None,
            "selector": self._selector or None,
            "target_ports": list(spec.ports) if spec else [],
            "app_protocol": self.protocol or None,
            "synced": self._pool.synced,
            "stale": self.stale,
            "pods": len(self._members),
            "ready_pods": self._members.ready,
            "watches": {name: self._state(each) for name, each in sorted(self._reflectors.items())},
            "errors": dict(self._errors),
        }

    def _state(self, reflector: Reflector[Any]) -> dict[str, Any]:
        since = reflector.stale_since
        stale = None if since is None else round(self._now() - since, 3)
        unread = {name: why for (_, name), why in reflector.unread.items()}
        state = {"synced": reflector.synced, "resource_version": reflector.version, "stale_seconds": stale}
        return state | {"unread": unread}

    # --- the tasks

    def _spawn(self, what: str, follow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._tasks.append(asyncio.create_task(self._guarded(what, follow)))

    async def _guarded(self, what: str, follow: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await follow()
            except Exception as error:  # noqa: BLE001 (the root of a task; on_error counts it)
                self._failed(what, f"{what}: {type(error).__name__}: {error}")
                await asyncio.sleep(1.0)

    async def _lose_patience(self) -> None:
        await asyncio.sleep(_OBJECTS_PATIENCE)
        self._pending.clear()
        self._review_synced()

    async def _follow_candidate(self, candidate: _Candidate) -> None:
        """Follows the InferencePool in one of its API groups; one that can't be asked for isn't there.

        One that was there and is refused later on keeps its last word, which is stale until it is heard of again.
        """

        def changed() -> None:
            self._candidate_changed(candidate, sink.objects.get(self._wanted.pool))

        sink: _Collected[InferencePool] = _Collected(changed)
        fields = f"metadata.name={self._wanted.pool}"
        try:
            await self._reflector(
                candidate.resource, InferencePool, sink, fields=fields, ends=_ABSENT, grace=math.inf
            ).run()
        except ApiError as error:
            self._ended(candidate.resource)
            self._candidate_changed(candidate, None)
            if error.status != 404 or candidate is self._candidates[0]:
                self._failed(str(candidate.resource), str(error))
        await asyncio.sleep(candidate.backoff.pause())

    async def _follow_first(self, resources: Sequence[Resource], kind: type[T], sink: Sink[T]) -> None:
        """Follows the first of several versions of a kind that the API server has, and lets us see.

        One that was there has to be refused for a while before another one's objects are the right ones. While it isn't
        the first, those before it are asked for again now and then.
        """
        reasons: list[str] = []
        look_again = self._look_again * self._random.uniform(0.8, 1.2)
        for resource in resources:
            try:
                async with asyncio.timeout(look_again if reasons else None):
                    await self._reflector(resource, kind, sink, ends=_ABSENT, grace=look_again).run()
            except TimeoutError:
                self._ended(resource)
                return
            except ApiError as error:
                self._ended(resource)
                reasons.append(str(error))
        self._heard(resources[0].plural)
        if resources != (MODELS,):  # which are of old, and rarely there
            self._say_once(f"no {resources[0].plural}: {'; '.join(reasons)}")
        await asyncio.sleep(look_again)

    async def _follow_pods(self, selector: str) -> None:
        await self._reflector(PODS, Pod, self._members, labels=selector).run()

    def _reflector(
        self,
        resource: Resource,
        kind: type[T],
        sink: Sink[T],
        *,
        labels: str = "",
        fields: str = "",
        ends: tuple[int, ...] = (),
        grace: float = 0.0,
    ) -> Reflector[T]:
        name = str(resource)
        self._reflectors[name] = made = Reflector(
            self._api,
            resource,
            self._wanted.namespace,
            kind,
            sink,
            labels=labels,
            fields=fields,
            ends=ends,
            grace=grace,
            on_error=partial(self._failed, name),
            on_state=self._review_state,
            pace=self._pace,
            now=self._now,
            source=self._random,
        )
        return made

    def _ended(self, resource: Resource) -> None:
        self._reflectors.pop(str(resource), None)
        self._review_state()

    # --- what they hear

    def _candidate_changed(self, candidate: _Candidate, found: InferencePool | None) -> None:
        candidate.known, candidate.spec = True, found.declared if found else None
        chosen = self._chosen()
        if chosen is not None and chosen.spec is not None:
            self._use(chosen.spec)
            self._objects_changed()
        elif all(each.known for each in self._candidates):
            self._use_nothing()
        self._review_state()  # as another one may count now

    def _chosen(self) -> _Candidate | None:
        """The candidate that counts: the first with a pool, once those before it are known not to have one."""
        for candidate in self._candidates:
            if candidate.spec is not None or not candidate.known:
                return candidate if candidate.known else None
        return None

    def _use(self, spec: PoolSpec) -> None:
        """Takes the pool's word in: follows other pods if it selects others, and expands all anew for other ports."""
        self._errors.pop("pool", None)
        self._spec = spec
        self._members.use(spec.ports)
        selector = self._wanted.selector or format_selector(spec.labels)
        if selector != self._selector:
            self._follow(selector)
        if not selector:
            self._failed("pool", f"InferencePool {self._wanted.pool}: its spec.selector is empty, and selects no pod")
        self._review_synced()

    def _use_nothing(self) -> None:
        """There is no such pool, or no longer: nobody is in it."""
        where = " or ".join(str(candidate.resource) for candidate in self._candidates)
        self._failed("pool", f"there is no {where} {self._wanted.pool!r} in namespace {self._wanted.namespace!r}")
        self._spec = None
        self._follow("")
        self._members.clear()
        self._review_synced()

    def _follow(self, selector: str) -> None:
        self._selector, self._members.listed = selector, False
        if self._pods_task is not None:
            self._pods_task.cancel()
            self._ended(PODS)
        follow = partial(self._follow_pods, selector)
        self._pods_task = asyncio.create_task(self._guarded("pods", follow)) if selector else None

    def _objects_changed(self) -> None:
        chosen, rewrites = self._chosen(), self._rewrites.objects.values()
        group = chosen.resource.group if chosen else POOLS.group
        objectives, models = self._objectives.objects.values(), self._models.objects.values()
        self._pool.objects = objects_of(objectives, rewrites, models, self._wanted.pool, group)
        for warning in mixed_weights(rewrites):
            self._say_once(warning)

    def _heard(self, kind: str) -> None:
        self._pending.discard(kind)
        self._review_synced()

    # --- the state as a whole

    def _review_synced(self) -> None:
        """The pool is synced once all has been heard of, and stays so until there is no such pool any more."""
        heard = self._pool.synced or (self._members.listed and not self._pending)
        synced = heard and self._spec is not None
        if synced != self._pool.synced:
            self._pool.synced = synced
            self._synced.set()
            self._on_state()

    def _review_state(self) -> None:
        for name, each in self._reflectors.items():
            if each.stale_since is None:
                self._errors.pop(name, None)
        idle = {str(each.resource) for each in self._candidates if each.known and each is not self._chosen()}
        unread = sum(len(each.unread) for each in self._reflectors.values())
        stale = any(each.stale_since is not None for name, each in self._reflectors.items() if name not in idle)
        if (stale, unread) != (self.stale, self.unread):
            self.stale, self.unread = stale, unread
            self._on_state()

    def _failed(self, what: str, message: str) -> None:
        if self._errors.get(what) != message:
            self._errors[what] = message
            self._on_error(message)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._on_error(message)
