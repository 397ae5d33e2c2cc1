"""One leader of several replicas, by a Lease: the holder renews it, the others wait until it is given up or runs out.

Times and name are llm-d's: a lease of 15 s, renewed every 2 s. Two things are quicker, and one is calmer. A follower
watches the Lease, and so takes over as soon as it is released. A leader writes down where its health port is, and a
follower keeps a connection to it: when that breaks and the port refuses another one, the process is gone, and the
follower takes the Lease before it runs out, or leads without it while the API server can't be asked. And a leader that
can't reach the API server goes on until it learns of another one: nobody who can't reach it either can take its place,
and two pickers that both answer do no harm.

How old a Lease is is judged by when it was last seen to change, on the own clock: clocks of nodes may differ.
"""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from epp.kube.client import LEASES, Api, ApiError, Unreachable
from epp.kube.watch import Change, Name, Object, Reflector

ADDRESS = "llm-d.ai/epp-health-address"
"""The Lease's annotation with the `ip:port` of the holder's health port."""

_API = f"{LEASES.group}/{LEASES.version}"


@dataclass(frozen=True, slots=True)
class Terms:
    """How long things take, in seconds.

    Attributes:
        duration: how long a Lease that isn't renewed is still its holder's.
        retry: between two renewals, and between two looks of a follower.
        deadline: after which an attempt that isn't answered is given up.
        probe: between two connections to a leader whose last one broke without its port refusing another.
    """

    duration: float = 15.0
    retry: float = 2.0
    deadline: float = 10.0
    probe: float = 0.5


class _LeaseSpec(msgspec.Struct, rename="camel", frozen=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    lease_transitions: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None


class Lease(Object, frozen=True):
    """A Lease as the API server has it."""

    spec: _LeaseSpec = _LeaseSpec()

    @property
    def holder(self) -> str:
        """Who holds it; "" for nobody."""
        return self.spec.holder_identity or ""

    @property
    def transitions(self) -> int:
        """How often it has changed hands."""
        return self.spec.lease_transitions or 0


class Election:
    """Holds the Lease, or tries to.

    `leading` is whether it is ours. The state of others is what was last seen of the Lease, and when it changed.

    Args:
        api: the API server.
        namespace: of the Lease.
        name: of the Lease.
        identity: of this process; no other one may have it.
        address: `ip:port` of this process's health port; "" if it isn't known.
        on_change: hears whether we lead, whenever that changes.
        on_error: hears of what goes wrong, once until something else does.
        terms: see `Terms`.
        now: the monotonic clock, seconds.
        source: of jitter.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        address: str = "",
        on_change: Callable[[bool], None] = lambda _: None,
        on_error: Callable[[str], None] = lambda _: None,
        terms: Terms | None = None,
        now: Callable[[], float] = time.monotonic,
        source: random.Random | None = None,
    ) -> None:
        self.leading = False
        self._api = api
        self._namespace, self._name = namespace, name
        self._identity, self._address = identity, address
        self._on_change, self._on_error = on_change, on_error
        self._terms = terms or Terms()
        self._now, self._random = now, source or random.Random()
        self._seen: Mapping[str, Any] = {}
        self._seen_at = 0.0
        self._dead = ""  # the holder whose process is known to be gone, as long as the Lease is its
        self._wake = asyncio.Event()
        self._told = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._peer: tuple[str, asyncio.Task[None]] | None = None

    def __repr__(self) -> str:
        return f"<Election: {self._name}, {'leading' if self.leading else 'following'}, held by {self.holder!r}>"

    @property
    def holder(self) -> str:
        """Who held the Lease when it was last seen; "" for nobody."""
        return str((self._seen.get("spec") or {}).get("holderIdentity") or "")

    @property
    def _transitions(self) -> int:
        return (self._seen.get("spec") or {}).get("leaseTransitions") or 0

    def start(self) -> None:
        """Begins to try."""
        self._tasks = [asyncio.create_task(self._campaign()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Releases the Lease, if it is ours, so that another one can take over at once; doesn't try again."""
        await self._end(*self._tasks, *([self._peer[1]] if self._peer else []))
        self._tasks, self._peer = [], None
        if self.leading:
            with contextlib.suppress(ApiError, Unreachable, TimeoutError):
                async with asyncio.timeout(self._terms.retry):
                    await self._release()
            self._set_leading(False)

    def shown(self) -> dict[str, Any]:
        """Its state, for people."""
        return {"lease": f"{self._namespace}/{self._name}", "holder": self.holder or None, "leading": self.leading}

    # --- the campaign

    async def _campaign(self) -> None:
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._terms.deadline):
                    await self._try()
                self._told = ""
            except ApiError as error:
                if error.status != 409:  # somebody else was quicker
                    self._tell(f"the Lease {self._namespace}/{self._name}: {error}")
                if error.status == 429 or error.status >= 500:
                    self._stand_in()
            except Unreachable as error:
                self._tell(f"the Lease {self._namespace}/{self._name}: {error}")
                self._stand_in()
            except TimeoutError:
                self._tell(f"the Lease {self._namespace}/{self._name}: no answer in {self._terms.deadline:g} s")
                self._stand_in()
            except Exception as error:  # noqa: BLE001 (the root of a task; on_error counts it)
                self._tell(f"the Lease {self._namespace}/{self._name}: {type(error).__name__}: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._terms.retry * self._random.uniform(0.9, 1.1)):
                    await self._wake.wait()

    async def _try(self) -> None:
        """Renews the Lease if it is ours, takes it if it is free."""
        if self.leading and await self._renewed():
            return
        try:
            self._note(await self._api.get(LEASES.path(self._namespace, self._name)))
        except ApiError as error:
            if error.status != 404:
                raise
            self._note(await self._api.create(LEASES.path(self._namespace), self._held({})))
        if self.holder != self._identity and not self._free():
            self._set_leading(False)
            self._follow_holder()
            return
        await self._write(self._held(self._seen))
        self._set_leading(True)

    def _stand_in(self) -> None:
        """Leads without the Lease where its holder's process is gone and nobody can ask for it: else nobody would.

        Others may do the same; the first that gets the Lease, once it can be asked for, remains.
        """
        if self.holder and self.holder == self._dead:
            self._set_leading(True)

    async def _renewed(self) -> bool:
        """Whether nobody has changed the Lease since it was last seen to be ours."""
        try:
            await self._write(self._held(self._seen))
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        return True

    def _free(self) -> bool:
        if not self.holder or self.holder == self._dead:
            return True
        duration = (self._seen.get("spec") or {}).get("leaseDurationSeconds") or self._terms.duration
        return self._now() - self._seen_at > duration

    def _note(self, lease: Mapping[str, Any]) -> None:
        version = (lease.get("metadata") or {}).get("resourceVersion")
        if version != (self._seen.get("metadata") or {}).get("resourceVersion"):
            self._seen_at = self._now()
        self._seen = lease
        if self.holder != self._dead:
            self._dead = ""

    async def _write(self, lease: Mapping[str, Any]) -> None:
        self._note(await self._api.replace(LEASES.path(self._namespace, self._name), lease))

    def _held(self, old: Mapping[str, Any]) -> dict[str, Any]:
        """The Lease as ours."""
        meta, spec, now = dict(old.get("metadata") or {}), old.get("spec") or {}, _timestamp()
        annotations = {**(meta.get("annotations") or {}), **({ADDRESS: self._address} if self._address else {})}
        meta |= {"name": self._name, "namespace": self._namespace, "annotations": annotations}
        ours = spec.get("holderIdentity") == self._identity
        transitions = (spec.get("leaseTransitions") or 0) + (1 if spec and not ours else 0)
        new = {"holderIdentity": self._identity, "leaseDurationSeconds": round(self._terms.duration)}
        new |= {"leaseTransitions": transitions, "renewTime": now}
        new["acquireTime"] = spec.get("acquireTime") if ours and spec.get("acquireTime") else now
        return {"apiVersion": _API, "kind": "Lease", "metadata": meta, "spec": new}

    async def _release(self) -> None:
        try:
            await self._write(self._released())
        except ApiError as error:
            if error.status != 409:
                raise
            # A renewal that was given up under way has come in between, or somebody else.
            self._note(await self._api.get(LEASES.path(self._namespace, self._name)))
            if self.holder == self._identity:
                await self._write(self._released())

    def _released(self) -> dict[str, Any]:
        """The Lease as nobody's."""
        lease = self._held(self._seen)
        lease["metadata"]["annotations"].pop(ADDRESS, None)
        lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        return lease

    def _set_leading(self, leading: bool) -> None:
        if leading:
            self._unfollow()
        if leading != self.leading:
            self.leading = leading
            self._on_change(leading)

    def _tell(self, message: str) -> None:
        if message != self._told:
            self._told = message
            self._on_error(message)

    # --- what wakes a follower early

    async def _watch(self) -> None:
        """A change of the Lease; while watching isn't allowed, looks now and then have to do."""
        fields = f"metadata.name={self._name}"
        await Reflector(self._api, LEASES, self._namespace, Lease, self, fields=fields, ends=()).run()

    async def replace(self, items: Sequence[Lease], unread: Collection[Name]) -> None:
        """The Lease as it was found."""
        for item in items:
            self.change("MODIFIED", item)

    def change(self, change: Change, item: Lease) -> None:
        """The Lease has changed: who leads looks if it still does, who doesn't if it may.

        Who leads and sees somebody else's later term doesn't wait for an attempt under way, which may hang.
        """
        if self.leading and change != "DELETED" and self._is_later(item):
            self._set_leading(False)
        if change == "DELETED" or item.holder != self.holder:
            self._wake.set()

    def _is_later(self, item: Lease) -> bool:
        """Whether it is somebody else's, and later than what was last seen: one that was made anew counts from 0."""
        if item.holder in ("", self._identity):
            return False
        meta = self._seen.get("metadata") or {}
        if item.metadata.uid != meta.get("uid"):
            return (item.metadata.creation_timestamp or "") >= (meta.get("creationTimestamp") or "")
        return item.transitions > self._transitions

    def _follow_holder(self) -> None:
        """Keeps a connection to the leader, if it has said where, to notice at once when its process is gone."""
        annotations = (self._seen.get("metadata") or {}).get("annotations") or {}
        address, holder = str(annotations.get(ADDRESS) or ""), self.holder
        if self._peer is not None and self._peer[0] == holder and not self._peer[1].done():
            return
        self._unfollow()
        if address and holder != self._dead:
            self._peer = (holder, asyncio.create_task(self._outlive(holder, address)))

    def _unfollow(self) -> None:
        if self._peer is not None:
            self._peer[1].cancel()
            self._peer = None

    async def _outlive(self, holder: str, address: str) -> None:
        """Returns once the leader's port refuses connections though it has taken one: then its process is gone."""
        host, _, port = address.rpartition(":")
        known = False
        while True:
            try:
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, ValueError) as error:
                if known and isinstance(error, ConnectionRefusedError):
                    self._dead = holder
                    self._wake.set()
                    return
                await asyncio.sleep(self._terms.probe)  # the network is down, or the node: that proves nothing
                continue
            known = True
            with contextlib.suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            writer.close()
            await asyncio.sleep(self._random.uniform(0.0, self._terms.probe / 10))

    async def _end(self, *tasks: asyncio.Task[None]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def lease_name(namespace: str, name: str) -> str:
    """What the Lease of a pool's pickers is called, as llm-d calls it; in place of a pool it may be a Deployment's."""
    return f"epp-{namespace}-{name}.llm-d.ai"


def own_address(server: str) -> str:
    """The IP address that this host has on the way to a URL's host; "" if there is none."""
    url = urlsplit(server)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(url.hostname, url.port or 443, type=socket.SOCK_DGRAM)[
            0
        ]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _timestamp() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
