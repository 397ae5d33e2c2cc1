"""Who is in the pool without Kubernetes: a fixed list, a file that is read again when it changes, and host names.

A file that can't be used changes nothing: the last good state stays, whole, and the error is told once. A name that no
longer resolves keeps its last addresses. An endpoint whose address stays keeps its slot, and with it what is in flight
and what is known of its cache.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from epp.data.declared import Contents, Declared, check_unique, parse_file
from epp.errors import ConfigError
from epp.files import Signature, at_rest, signature
from epp.pool import Endpoint, Pool

Resolve = Callable[[str], Awaitable[Sequence[str]]]
OnPool = Callable[[Sequence[str], Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class DiscoveryOptions:
    """How often is looked. Times in seconds.

    Attributes:
        poll: between two looks at whether the file has changed.
        settle: how long a changed file must be left alone before it is read: it may be half written.
        resolve: between two look-ups of the host names.
        patience: how long the start, or a change of the file, waits for look-ups; slower ones come in later.
        max_bytes: of the file.
        watch: whether the file is looked at again after the start.
        clusters: whether an entry is the gateway of another cluster, whose labels `metricsAddress` and `metricsPort`
            say where that cluster's own picker has its metrics.
    """

    poll: float = 1.0
    settle: float = 0.1
    resolve: float = 5.0
    patience: float = 2.0
    max_bytes: int = 16 << 20
    watch: bool = True
    clusters: bool = False


async def resolve_host(host: str) -> Sequence[str]:
    """The addresses of a host name; if it has IPv4 and IPv6 ones, which lead to the same servers, the IPv4 ones.

    Raises:
        OSError: it doesn't resolve.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return one_family([(family, str(address[0])) for family, _, _, _, address in found])


def one_family(found: Iterable[tuple[int, str]]) -> Sequence[str]:
    """The IPv4 addresses if there are any, else the IPv6 ones, of pairs of a socket family and an address."""
    by_family: dict[int, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for family, address in found:
        if family in by_family:
            by_family[family].append(address)
    return by_family[socket.AF_INET] or by_family[socket.AF_INET6]


class Discovery:
    """Keeps the pool's membership up to what is declared.

    Args:
        pool: gets the endpoints; those that something else has added are left alone.
        static: from `parse_static`.
        file: in the format of `epp.data.declared`; None for no file.
        options: see `DiscoveryOptions`.
        resolve: looks up a host name.
        on_error: hears of a file that can't be used and of names that don't resolve, once per change.
        on_pool: hears of the ids of endpoints added and removed; one with a new address is both.
        pool_name: whose objects in the file are ours; "" for those of any pool.
    """

    def __init__(
        self,
        pool: Pool,
        static: Sequence[Declared] = (),
        file: Path | None = None,
        options: DiscoveryOptions | None = None,
        *,
        resolve: Resolve = resolve_host,
        on_error: Callable[[str], None] = lambda _: None,
        on_pool: OnPool = lambda *_: None,
        pool_name: str = "",
    ) -> None:
        self._pool = pool
        self._static = tuple(static)
        self._file = file
        self._options = options or DiscoveryOptions()
        self._resolve = resolve
        self._on_error = on_error
        self._on_pool = on_pool
        self._pool_name = pool_name
        self._declared = self._static
        self._signature: Signature | None = None
        self._told: dict[str, str] = {}  # what of -> the last error told of it
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._mine: dict[str, Endpoint] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Discovery: {len(self._declared)} entries, {len(self._mine)} endpoints>"

    async def start(self) -> None:
        """Reads the file, looks the names up, fills the pool, and goes on watching.

        Raises:
            ConfigError: there is nothing usable in the file, or it contradicts the static list.
        """
        if self._file is not None:
            self._signature = await asyncio.to_thread(signature, self._file)
            self._take(await asyncio.to_thread(self._read, self._file))
        await self._update()
        self._pool.synced = True
        loops = [self._watch_names()]
        if self._file is not None and self._options.watch:
            loops.append(self._watch_file(self._file))
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ends the watching; the pool stays as it is."""
        tasks = [*self._tasks, *self._lookups.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the file

    async def _watch_file(self, file: Path) -> None:
        while True:
            await asyncio.sleep(self._options.poll)
            await self._guarded(str(file), self._look_at(file))

    async def _look_at(self, file: Path) -> None:
        if await asyncio.to_thread(signature, file) == self._signature:
            return
        self._signature = await at_rest(partial(asyncio.to_thread, signature, file), self._options.settle)
        self._take(await asyncio.to_thread(self._read, file))
        self._told.pop(str(file), None)
        await self._update()

    def _take(self, contents: Contents) -> None:
        self._declared = contents.declared
        self._pool.objects = contents.objects
        for warning in contents.warnings:
            self._tell(warning, warning)

    def _read(self, file: Path) -> Contents:
        try:
            with file.open("rb") as stream:
                data = stream.read(self._options.max_bytes + 1)
        except OSError as error:
            raise ConfigError(f"{file}: can't be read: {error.strerror or error}") from error
        if len(data) > self._options.max_bytes:
            raise ConfigError(f"{file}: longer than {self._options.max_bytes} bytes")
        contents = parse_file(data, str(file), self._pool_name)
        declared = self._static + contents.declared
        check_unique(declared)
        return replace(contents, declared=declared)

    # --- host names

    async def _watch_names(self) -> None:
        while True:
            await asyncio.sleep(self._options.resolve)
            if self._hosts():
                await self._guarded("host names", self._update())

    def _hosts(self) -> set[str]:
        return {entry.host for entry in self._declared if not entry.is_address}

    async def _look_up_all(self) -> None:
        """Waits for the look-ups a while; one that hangs is not started a second time."""
        hosts = self._hosts()
        for gone in self._addresses.keys() - hosts:
            del self._addresses[gone]
        for host in hosts - self._lookups.keys():
            self._lookups[host] = asyncio.create_task(self._look_up(host))
        if self._lookups:
            await asyncio.wait(self._lookups.values(), timeout=self._options.patience)
        for host in hosts & self._lookups.keys():
            self._tell(host, f"host {host}: no answer yet from the resolver; {self._consequence(host)}")

    async def _look_up(self, host: str) -> None:
        try:
            addresses = tuple(sorted(set(await self._resolve(host))))
            if not addresses:
                raise OSError("it has no address")
            self._addresses[host] = addresses
            self._told.pop(host, None)
        except (OSError, UnicodeError) as error:  # UnicodeError: not a possible host name
            reason = getattr(error, "strerror", None) or str(error)
            self._tell(host, f"host {host} doesn't resolve: {reason}; {self._consequence(host)}")
        finally:
            self._lookups.pop(host, None)

    def _consequence(self, host: str) -> str:
        kept = self._addresses.get(host)
        done = f"its last addresses stay ({', '.join(kept)})" if kept else "its endpoints are missing"
        return f"{done}, and it is tried again every {self._options.resolve:g} s"

    # --- the pool

    async def _update(self) -> None:
        await self._look_up_all()
        self._apply(self._endpoints())

    def _endpoints(self) -> dict[str, Endpoint]:
        wanted: dict[str, Endpoint] = {}
        places: set[str] = set()
        for entry in self._declared:
            addresses = (entry.host,) if entry.is_address else self._addresses.get(entry.host, ())
            for endpoint in map(self._endpoint, _expand(entry, addresses)):
                if endpoint.hostport not in places:  # two names may lead to one server: the first has it
                    places.add(endpoint.hostport)
                    wanted[endpoint.id] = endpoint
        return wanted

    def _endpoint(self, endpoint: Endpoint) -> Endpoint:
        return _with_metrics(endpoint) if self._options.clusters else endpoint

    def _apply(self, wanted: dict[str, Endpoint]) -> None:
        gone = [endpoint_id for endpoint_id in self._mine if endpoint_id not in wanted]
        new = [endpoint_id for endpoint_id in wanted if endpoint_id not in self._mine]
        moved = [known for known, old in self._mine.items() if known in wanted and _place(wanted[known]) != _place(old)]
        new_at = {_place(wanted[endpoint_id]): wanted[endpoint_id] for endpoint_id in new}
        for endpoint_id in gone:
            renamed = new_at.get(_place(self._mine[endpoint_id]))
            if renamed is None:
                self._pool.remove(endpoint_id)
            else:
                self._pool.rename(endpoint_id, renamed)
        for endpoint in wanted.values():
            self._pool.add(endpoint)
        self._mine = wanted
        if gone or new or moved:
            self._on_pool(new + moved, gone + moved)

    # --- what goes wrong

    async def _guarded(self, what: str, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
        except ConfigError as error:
            self._tell(what, f"{error}; the last good state stays ({len(self._mine)} endpoints)")
        except Exception as error:  # noqa: BLE001 (the root of a task; on_error counts it)
            self._tell(what, f"{what}: {type(error).__name__}: {error}")

    def _tell(self, what: str, message: str) -> None:
        if self._told.get(what) != message:
            self._told[what] = message
            self._on_error(message)


def _expand(entry: Declared, addresses: Sequence[str]) -> Iterable[Endpoint]:
    """The endpoints of one entry, named after it; after their addresses too if a host name has several."""
    host = f"[{entry.host}]" if ":" in entry.host else entry.host
    for rank, port in enumerate(entry.ports):
        for address in addresses:
            name = entry.name or f"{host}:{port}"
            if len(addresses) > 1:
                name = f"{name}@{address}"
            if entry.ranked:
                name = f"{name}-rank-{rank}"
            yield Endpoint(name, address, port, entry.namespace, entry.labels, entry.metrics_port)


def _with_metrics(endpoint: Endpoint) -> Endpoint:
    """The gateway of a cluster, with its metrics where its labels say; a port that is none counts as left out."""
    address, port = endpoint.labels.get("metricsAddress", ""), endpoint.labels.get("metricsPort", "")
    if not address:
        return endpoint
    return replace(
        endpoint, metrics_address=address, metrics_port=int(port) if port.isdecimal() else endpoint.metrics_port
    )


def _place(endpoint: Endpoint) -> tuple[str, tuple[str, int | None]]:
    return endpoint.hostport, endpoint.metrics_place
