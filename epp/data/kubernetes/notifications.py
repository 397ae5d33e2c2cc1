"""Watches the kinds of object that a configuration names, and tells its extractors of each that comes, changes or goes.

Each kind is looked up at the API server by its name, listed and then watched. One that it doesn't have, or that we may
not look at, is asked for again now and then, and what is wrong is told.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from epp.kube.client import Api, ApiError, Resource, Unreachable
from epp.kube.watch import SLICE, Change, Meta, Name, Object, Pace, Reflector
from epp.sources import Notice, ObjectKind, ObjectReader, ObjectWatch

OnFault = Callable[[ObjectWatch, ObjectReader, str], None]
"""Hears of a reader that raises, and why."""

_ABSENT = (403, 404)
_NOTICES: Mapping[Change, Notice] = {"ADDED": "added", "MODIFIED": "changed", "DELETED": "deleted"}


class _Whole(Object, frozen=True):
    """An object with everything that is in it."""

    content: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Notifications:
    """Follows what it is told to.

    Args:
        api: the API server.
        namespace: whose objects are looked at, of kinds that have one.
        on_error: hears of what can't be watched, once until something else is wrong.
        on_fault: see `OnFault`.
        look_again: seconds until a kind that can't be had is asked for again.
        pace, now, source: see `Reflector`.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        *,
        on_error: Callable[[str], None] = lambda _: None,
        on_fault: OnFault = lambda *_: None,
        look_again: float = 60.0,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self._api, self._namespace = api, namespace
        self._on_error, self._on_fault = on_error, on_fault
        self._look_again, self._pace, self._now = look_again, pace, now
        self._random = source or random.Random()
        self._followers: list[_Follower] = []
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Notifications: {', '.join(str(each.watch.kind) for each in self._followers) or 'none'}>"

    def follow(self, watches: Sequence[ObjectWatch]) -> None:
        """Watches these from now on, and no others: their readers are told of everything that is there.

        A kind that was watched before isn't forgotten: what has gone meanwhile is told as deleted.
        """
        before, self._followers = self._followers, []
        known = {each.watch.kind: each.known for each in before}
        for each in before:
            each.task.cancel()
            self._ending.add(each.task)
            each.task.add_done_callback(self._ending.discard)
        for watch in watches:
            told = _Told(watch, known.get(watch.kind, {}), self._on_fault)
            self._followers.append(_Follower(watch, told, asyncio.create_task(self._run(watch, told))))

    async def stop(self) -> None:
        """Ends every watch."""
        self.follow(())
        await asyncio.gather(*self._ending, return_exceptions=True)

    def shown(self) -> list[dict[str, Any]]:
        """What is watched, for people."""
        return [
            {"source": each.watch.name, "kind": str(each.watch.kind), "synced": each.told.synced}
            | {"objects": len(each.known), "readers": [reader.name for reader in each.watch.readers]}
            for each in self._followers
        ]

    async def _run(self, watch: ObjectWatch, told: "_Told") -> None:
        last = ""
        while True:
            try:
                await self._watch(watch, told)
            except (ApiError, Unreachable) as error:
                message = f"{watch.name}: {watch.kind} can't be watched: {error}"
            except Exception as error:  # noqa: BLE001 (the root of a task; it is told)
                message = f"{watch.name}: {type(error).__name__}: {error}"
            if message != last:
                last = message
                self._on_error(message)
            await asyncio.sleep(self._look_again * self._random.uniform(0.8, 1.2))

    async def _watch(self, watch: ObjectWatch, told: "_Told") -> None:
        """Until it is refused. Raises as `Api.request` does."""
        resource, namespaced = await self._looked_up(watch.kind)
        await Reflector(
            self._api,
            resource,
            self._namespace if namespaced else "",
            told.decoded,
            told,
            ends=_ABSENT,
            grace=self._look_again,
            on_error=lambda message: self._on_error(f"{watch.name}: {message}"),
            pace=self._pace,
            now=self._now,
            source=self._random,
        ).run()

    async def _looked_up(self, kind: ObjectKind) -> tuple[Resource, bool]:
        """How the API server calls the kind in its paths, and whether its objects are in namespaces."""
        prefix = f"/apis/{kind.group}" if kind.group else "/api"
        found = await self._api.get(f"{prefix}/{kind.version}")
        for each in found.get("resources") or ():
            if each.get("kind") == kind.kind and "/" not in each["name"]:
                return Resource(kind.group, kind.version, each["name"]), bool(each.get("namespaced"))
        raise ApiError(404, "NotFound", f"{kind.version} of {kind.group or 'the core'} has no kind {kind.kind}")


class _Told:
    """Takes in what one watch says, and tells its readers.

    Attributes:
        known: the objects by namespace and name.
        synced: whether a list has been taken in.
    """

    def __init__(self, watch: ObjectWatch, known: Mapping[tuple[str, str], _Whole], on_fault: OnFault) -> None:
        self.known = dict(known)
        self.synced = False
        self._watch = watch
        self._on_fault = on_fault

    def decoded(self, raw: Any) -> _Whole:
        """One object, which a list sends without what kind it is."""
        content: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
        of = self._watch.kind
        content.setdefault("apiVersion", f"{of.group}/{of.version}" if of.group else of.version)
        content.setdefault("kind", of.kind)
        return _Whole(msgspec.convert(content.get("metadata"), Meta), content)

    async def replace(self, items: Sequence[_Whole], unread: Collection[Name]) -> None:
        """There are exactly these objects, and some that can't be read and stay as they were."""
        found = {key: old for key, old in self.known.items() if key in unread}
        found |= {_key(item): item for item in items}
        changes: list[tuple[Notice, _Whole]] = [("deleted", old) for key, old in self.known.items() if key not in found]
        for key, item in found.items():
            old = self.known.get(key)
            if old is None or not self.synced:
                changes.append(("added", item))
            elif old.metadata.resource_version != item.metadata.resource_version:
                changes.append(("changed", item))
        self.known, self.synced = found, True
        for index, (notice, item) in enumerate(changes, 1):
            self._tell(notice, item)
            if index % SLICE == 0:
                await asyncio.sleep(0)

    def change(self, change: Change, item: _Whole) -> None:
        """One object is new, or has changed, or is gone."""
        if change == "DELETED":
            self.known.pop(_key(item), None)
        else:
            self.known[_key(item)] = item
        self._tell(_NOTICES[change], item)

    def _tell(self, notice: Notice, item: _Whole) -> None:
        for reader in self._watch.readers:
            try:
                reader.notified(notice, item.content)
            except Exception as error:  # noqa: BLE001 (somebody else's plugin may raise anything; it is told)
                self._on_fault(self._watch, reader, f"{type(error).__name__}: {error}")


class _Follower:
    """One watch under way."""

    def __init__(self, watch: ObjectWatch, told: _Told, task: asyncio.Task[None]) -> None:
        self.watch, self.told, self.task = watch, told, task

    @property
    def known(self) -> Mapping[tuple[str, str], _Whole]:
        """The objects that it knows of."""
        return self.told.known


def _key(item: Object) -> tuple[str, str]:
    return item.metadata.namespace, item.metadata.name
