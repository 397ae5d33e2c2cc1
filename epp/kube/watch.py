"""Lists a kind of object and then watches it, for good: whatever becomes of the API server, its last word stands.

A watch that ends is taken up where it ended; one whose place the API server no longer knows (410) begins with a new
list. Between two tries is a pause that doubles, with jitter, up to a second in the first half minute of an outage and
up to a quarter of a minute later on. Lists are taken in by pages and events by slices, so that requests never wait for
more than a few milliseconds of either.
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

from epp.kube.client import Api, ApiError, ListMeta, Resource, Silent, Unreachable

SLICE = 16
"""Events that are taken in at once: well below a millisecond."""

_WATCH_SECONDS = (240.0, 360.0)  # how long a watch is asked to last; not the same for all replicas
_MARGIN = 15.0
_SILENCE = 70.0  # seconds; API servers send a bookmark about once a minute to whoever allows them
_PROVEN = 5.0  # seconds after which a watch that said nothing counts as one that works
_TAKEN = 1.0  # seconds that a watch has to last, or to say something, for the outage before it to be over
_GONE = 410
_BUSY = (429, 503)
_SHOWN = 3  # objects that can't be read, in one message


class Meta(msgspec.Struct, rename="camel", frozen=True):
    """The metadata of an object, as far as anybody here wants it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Object(msgspec.Struct, rename="camel", frozen=True):
    """The root of what can be watched: subclasses add the fields that they want."""

    metadata: Meta = Meta()


T = TypeVar("T", bound=Object)
T_contra = TypeVar("T_contra", bound=Object, contravariant=True)
Change = Literal["ADDED", "MODIFIED", "DELETED"]
Name = tuple[str, str]
"""Namespace, "" for what has none, and name."""


class Sink(Protocol[T_contra]):
    """Takes in what a watch says."""

    async def replace(self, items: Sequence[T_contra], unread: Collection[Name]) -> None:
        """There are exactly these objects, and some that can't be read: of those the last word stands."""

    def change(self, change: Change, item: T_contra) -> None:
        """One object is new, or has changed, or is gone; told of one that was known already, or wasn't, too."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The pauses of an outage, in seconds: each is twice the last one, and half of it is chance.

    Attributes:
        first: the first pause.
        cap: the longest one during the first `patience` seconds.
        late_cap: the longest one after that.
    """

    first: float = 0.05
    cap: float = 1.0
    patience: float = 30.0
    late_cap: float = 15.0


class Backoff:
    """The pauses of one outage after the other."""

    def __init__(self, pace: Pace, now: Callable[[], float], source: random.Random) -> None:
        self._pace, self._now, self._random = pace, now, source
        self._began: float | None = None
        self._before: float | None = None  # when the outage began that the last answer seems to have ended
        self._tries = 0

    def pause(self) -> float:
        """Seconds to wait after another failure."""
        now = self._now()
        self._began = now if self._began is None else self._began
        cap = self._pace.cap if now - self._began < self._pace.patience else self._pace.late_cap
        whole = min(cap, self._pace.first * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return whole * self._random.uniform(0.5, 1.0)

    def answered(self) -> None:
        """The API server answers: what comes next is another outage. How often it was tried stays until `reset`."""
        self._before, self._began = self._began, None

    def withdrew(self) -> None:
        """It took its answer back at once: the outage goes on that this seemed to end."""
        self._began = self._before

    def reset(self) -> None:
        """What was answered has proven to work."""
        self._began = self._before = None
        self._tries = 0


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: ListMeta


class _NamedMeta(msgspec.Struct):
    name: str
    namespace: str = ""


class _Named(msgspec.Struct):
    metadata: _NamedMeta


class _Error(msgspec.Struct):
    code: int = 500
    reason: str = ""
    message: str = ""


_EVENT = msgspec.json.Decoder(_Event)
_BOOKMARK = msgspec.json.Decoder(_Bookmark)
_NAMED = msgspec.json.Decoder(_Named)
_ERROR = msgspec.json.Decoder(_Error)


class Reflector(Generic[T]):
    """Keeps a sink up to what the API server has of one kind in one namespace.

    `synced` is whether a list has been taken in, `version` the resourceVersion up to which all is known. `stale_since`
    is when the API server's word was last lost, on the clock `now`, or None while it is current. `unread` are the
    objects that can't be decoded, and why; the sink has them as they were, if it ever had them: what can't be read
    proves neither that a pod is gone nor that it isn't ready any more.

    Args:
        api: the API server.
        resource: the kind.
        namespace: the one that is looked at; "" for all.
        kind: what objects are decoded as, or what decodes them; one that can't be, for which a function raises
            msgspec.MsgspecError, is told to `on_error` and is in `unread`.
        sink: takes it in.
        labels: a label selector.
        fields: a field selector.
        ends: HTTP statuses that end it; any other is tried again.
        grace: seconds for which those are tried again, too, once it is synced: one refusal proves little.
        on_error: hears of a failure, once until another one comes.
        on_state: hears of every change of `stale_since` and `unread`.
        silence: seconds after which a watch that says nothing is taken up again on another connection. This one may
            have been dead for as long, and only what stands in between may have kept it.
        pace, now, source: the pauses, their clock, and their chance.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        namespace: str,
        kind: type[T] | Callable[[Any], T],
        sink: Sink[T],
        *,
        labels: str = "",
        fields: str = "",
        ends: Collection[int] = (404,),
        grace: float = 0.0,
        on_error: Callable[[str], None] = lambda _: None,
        on_state: Callable[[], None] = lambda: None,
        silence: float = _SILENCE,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self.resource = resource
        self.synced = False
        self.stale_since: float | None = None
        self.unread: Mapping[Name, str] = {}
        self._api = api
        self._path = resource.path(namespace)
        self._decode = msgspec.json.Decoder(kind).decode if isinstance(kind, type) else kind
        self._sink = sink
        self._selectors = {"labelSelector": labels} if labels else {}
        self._selectors |= {"fieldSelector": fields} if fields else {}
        self._ends, self._grace = ends, grace
        self._refused_since: float | None = None
        self._on_error, self._on_state = on_error, on_state
        self._silence = silence
        self._now = now
        self._random = source or random.Random()
        self._backoff = Backoff(pace or Pace(), now, self._random)
        self.version = ""
        self._told = ""

    def __repr__(self) -> str:
        state = "not synced" if not self.synced else "current" if self.stale_since is None else "stale"
        return f"<Reflector of {self.resource}: {state}>"

    async def run(self) -> None:
        """Goes on until it is cancelled.

        Raises:
            ApiError: with one of the statuses in `ends`.
        """
        while True:
            try:
                if not self.version:
                    await self._list()
                if await self._watch():
                    continue
            except ApiError as error:
                if self._ended_by(error.status):
                    raise
                if error.status not in _BUSY:
                    self.version = ""  # 410, and what an API server says that was set back in time
                if error.status != _GONE:
                    self._failed(str(error))
                await asyncio.sleep(max(self._backoff.pause(), error.retry_after))
                continue
            except Silent:
                continue
            except Unreachable as error:
                self._failed(str(error))
            await asyncio.sleep(self._backoff.pause())

    def _ended_by(self, status: int) -> bool:
        if status not in self._ends:
            self._refused_since = None
            return False
        now = self._now()
        self._refused_since = now if self._refused_since is None else self._refused_since
        return not self.synced or now - self._refused_since >= self._grace

    async def _list(self) -> None:
        items: list[T] = []
        unread: dict[Name, str] = {}
        version = ""
        async for page in self._api.pages(self._path, **self._selectors):
            version = page.metadata.resource_version
            items += [item for raw in page.items if (item := self._decoded(raw, unread)) is not None]
            await asyncio.sleep(0)
        await self._sink.replace(items, unread)
        self._set_unread(unread)
        self.synced, self.version = True, version
        self._refused_since = None

    async def _watch(self) -> bool:
        """Follows one watch to its end; whether it has shown that it works.

        Raises:
            ApiError: 410 if the place is no longer known, or what else the API server says.
            Unreachable: it broke off.
        """
        seconds = self._random.uniform(*_WATCH_SECONDS)
        params = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": self.version}
        params |= {"timeoutSeconds": str(int(seconds)), **self._selectors}
        count = 0
        async with self._api.lines(self._path, params, seconds + _MARGIN, self._silence) as lines:
            self._current()
            began = self._now()
            try:
                async for line in lines:
                    self._take(line)
                    count += 1
                    self._backoff.reset()
                    if count % SLICE == 0:
                        await asyncio.sleep(0)
            finally:
                lasted = self._now() - began
                if count or lasted > _PROVEN:
                    self._proven()
                elif lasted < _TAKEN:
                    self._backoff.withdrew()
        return count > 0 or lasted > _PROVEN

    def _take(self, line: bytes) -> None:
        try:
            event = _EVENT.decode(line)
            if event.type == "ERROR":
                error = _ERROR.decode(event.object)
                raise ApiError(error.code, error.reason, f"watching {self.resource}: {error.message}")
            if event.type == "BOOKMARK":
                self.version = _BOOKMARK.decode(event.object).metadata.resource_version
                return
        except msgspec.MsgspecError as error:
            raise Unreachable(f"what answers for the API server sends no event: {error}") from error
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            self._change(event.type, event.object)  # type: ignore[arg-type]  # mypy doesn't narrow by `in`

    def _change(self, change: Change, raw: msgspec.Raw) -> None:
        unread: dict[Name, str] = {}
        item = self._decoded(raw, unread)
        if item is None:
            if change == "DELETED":
                raise ApiError(_GONE, "", f"{self.resource}: one that can't be read is gone")  # a list says which
            self._set_unread({**self.unread, **unread})
            return
        self._sink.change(change, item)
        self.version = item.metadata.resource_version
        if self.unread:
            known = item.metadata.namespace, item.metadata.name
            self._set_unread({name: why for name, why in self.unread.items() if name != known})

    def _decoded(self, raw: msgspec.Raw, unread: dict[Name, str]) -> T | None:
        try:
            return self._decode(raw)
        except msgspec.MsgspecError as error:
            unread[_name(raw)] = str(error)
            return None

    def _set_unread(self, unread: Mapping[Name, str]) -> None:
        new = [f"{'/'.join(filter(None, name))}: {unread[name]}" for name in unread if name not in self.unread]
        changed, self.unread = unread.keys() != self.unread.keys(), unread
        if new:
            more = f", and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
            told = "; ".join(new[:_SHOWN])
            self._on_error(f"{self.resource} that can't be read, and stay as they were: {told}{more}")
        if changed:
            self._on_state()

    def _failed(self, message: str) -> None:
        if self.stale_since is None:
            self.stale_since = self._now()
            self._on_state()
        self._tell(message)

    def _current(self) -> None:
        self._refused_since = None
        self._backoff.answered()
        if self.stale_since is not None:
            self.stale_since = None
            self._on_state()

    def _proven(self) -> None:
        self._told = ""
        self._backoff.reset()

    def _tell(self, message: str) -> None:
        if message != self._told:
            self._told = message
            self._on_error(message)


def _name(raw: msgspec.Raw) -> Name:
    """Of an object of any shape; empty if it has none."""
    try:
        meta = _NAMED.decode(raw).metadata
    except msgspec.MsgspecError:
        return "", ""
    return meta.namespace, meta.name
