"""The pool: the endpoints as columns, one value a slot; and the candidates, the copies that plugins get to see.

The mutable state of the process about endpoints is here and nowhere else: which endpoints there are, what they last
reported and when, and what we sent them. Slots are stable; a slot is reused under a higher generation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import ReferenceType, ref

import numpy as np
from numpy.typing import NDArray

from epp.keys import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, Key
from epp.objects import Objects

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Codes = NDArray[np.int32]
Mask = NDArray[np.bool_]

ABSENT, UNKNOWN = -1, -2
"""The code of a label that an endpoint lacks, and of a value that no endpoint has."""


def all_true(mask: Mask) -> bool:
    """Whether the mask is true everywhere; a tenth of the time of `mask.all()` for a small pool."""
    return int(np.count_nonzero(mask)) == len(mask)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One port of one model server.

    Attributes:
        name: unique within the namespace, such as a pod's name with `-rank-0` appended.
        address: an IP address, IPv6 without brackets.
        port: where it serves requests.
        labels: such as `llm-d.ai/role`.
        metrics_port: where it serves its metrics; None for `port`.
        metrics_address: the host where it serves its metrics, a name or an address; "" for `address`.
        node, node_address: the name and the IP address of the Kubernetes node that it runs on; "" where there is none.
        id: `namespace/name`, as in a session token.
        host: the address as it stands in a URL: IPv6 in brackets.
        metrics_host: the same of its metrics.
        hostport: the destination as Envoy takes it.
    """

    name: str
    address: str
    port: int
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    metrics_port: int | None = None
    metrics_address: str = ""
    node: str = ""
    node_address: str = ""
    id: str = field(init=False, compare=False)
    host: str = field(init=False, compare=False)
    metrics_host: str = field(init=False, compare=False)
    hostport: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        host, metrics_address = _in_url(self.address), self.metrics_address
        object.__setattr__(self, "id", f"{self.namespace}/{self.name}")
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "metrics_host", _in_url(metrics_address) if metrics_address else host)
        object.__setattr__(self, "hostport", f"{host}:{self.port}")

    @property
    def node_host(self) -> str:
        """The node's address as it stands in a URL; the endpoint's own where no node is known."""
        return _in_url(self.node_address) if self.node_address else self.host

    @property
    def metrics_place(self) -> tuple[str, int | None]:
        """Where its metrics are, as far as it has a place of its own for them."""
        return self.metrics_address, self.metrics_port


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class PoolObserver(Protocol):
    """Told when what is known of a slot becomes void."""

    def forget(self, slot: int) -> None:
        """The endpoint in this slot has left, or has restarted with an empty cache."""


@dataclass(slots=True, eq=False)
class Leg:
    """A part of a lease: what was charged to one endpoint, until the first byte or until the end."""

    slot: int
    generation: int
    requests: float
    tokens: float


class Pool:
    """All endpoints as a struct of arrays.

    `slots` maps an endpoint's id to its slot, `endpoints` a slot to its endpoint (None if free). Columns are float64
    arrays over all slots, made on first use. `fresh_until` is the time up to which what an endpoint's last scrape said
    counts as current, `updated` the time of that scrape. `objects` are the objectives and model rewrites in force,
    replaced as a whole. `polled` are the keys of columns that come from elsewhere than the scrapes.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.slots: dict[str, int] = {}
        self.endpoints: list[Endpoint | None] = [None] * capacity
        self.generations = [0] * capacity
        self.version = 0
        self.synced = False
        self.objects = Objects()
        self.polled: frozenset[Key] = frozenset()
        self.fresh_until = np.full(capacity, -np.inf)
        self.updated = np.full(capacity, np.nan)
        self.eligible = np.zeros(capacity, dtype=bool)
        self._free = list(range(capacity - 1, -1, -1))
        self._columns: dict[Key, Floats] = {}
        self._polled: dict[str, set[Key]] = {}
        self._sets: dict[str, dict[str, Mask]] = {}
        self._members: dict[tuple[str, int], frozenset[str]] = {}
        self._differing: dict[str, bool] = {}
        self._labels: dict[str, tuple[Codes, dict[str, int]]] = {}
        self._derived: dict[Callable[[Pool], Any], Any] = {}
        self._by_hostport: dict[str, int] = {}
        self._order: Ints | None = None
        self._observers: list[ReferenceType[PoolObserver]] = []
        self._listeners: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self.slots)

    def __repr__(self) -> str:
        inflight = self.column(INFLIGHT_REQUESTS).sum()
        return f"<Pool: {len(self)} endpoints, {int(self.eligible.sum())} eligible, {inflight:g} in flight>"

    # --- membership

    def add(self, endpoint: Endpoint) -> int:
        """Takes an endpoint in, or replaces the one of the same id; its slot.

        An endpoint that changes in nothing but its labels keeps its slot, its columns and what is in flight.
        """
        slot = self.slots.get(endpoint.id)
        if slot is not None:
            known = self.endpoints[slot]
            assert known is not None  # noqa: S101 (slots and endpoints change together)
            if known == endpoint and known.labels == endpoint.labels:
                return slot
            if known.hostport == endpoint.hostport and known.metrics_place == endpoint.metrics_place:
                self._occupy(slot, endpoint)
                return slot
            self.remove(endpoint.id)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.slots[endpoint.id] = slot
        self.eligible[slot] = True
        self._by_hostport[endpoint.hostport] = slot
        self._occupy(slot, endpoint)
        return slot

    def remove(self, endpoint_id: str) -> None:
        """Lets an endpoint go; its columns are reset and its slot can be reused. An unknown id is a no-op."""
        slot = self.slots.pop(endpoint_id, None)
        if slot is None:
            return
        endpoint = self.endpoints[slot]
        self.generations[slot] += 1
        self.eligible[slot] = False
        if endpoint is not None and self._by_hostport.get(endpoint.hostport) == slot:
            del self._by_hostport[endpoint.hostport]
        self._clear(slot, reset_own=True)
        self._free.append(slot)
        self._occupy(slot, None)
        self._void(slot)

    def rename(self, endpoint_id: str, endpoint: Endpoint) -> int:
        """Gives an endpoint another name, and labels, at the same address: it keeps its slot; the slot.

        Raises:
            KeyError: there is no endpoint of that id.
        """
        slot = self.slots.pop(endpoint_id)
        self.slots[endpoint.id] = slot
        self._occupy(slot, endpoint)
        return slot

    def restarted(self, slot: int) -> None:
        """The endpoint has started anew: its cache is empty, what it reported is void; what is in flight will end."""
        self._clear(slot, reset_own=False)
        self._void(slot)

    def watch(self, observer: PoolObserver) -> None:
        """Tells the observer of every slot that becomes void from now on, for as long as somebody else holds it.

        An observer goes with the configuration that it belongs to; watching twice is the same as once.
        """
        if all(known() is not observer for known in self._observers):
            self._observers.append(ref(observer))

    def _void(self, slot: int) -> None:
        for known in tuple(self._observers):
            observer = known()
            if observer is None:
                self._observers.remove(known)
            else:
                observer.forget(slot)

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls the listener, which must not change the pool, after every change of the membership from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        """The reverse of `listen`; unknown listeners are a no-op."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def slot_at(self, hostport: str) -> int | None:
        """The slot of the endpoint at `ip:port`."""
        return self._by_hostport.get(hostport)

    def eligible_slots(self) -> Ints:
        """The slots of the endpoints that may be picked, in the order in which they came; must not be changed."""
        slots = self.all_slots()
        eligible = self.eligible[slots]
        return slots if all_true(eligible) else slots[eligible]

    def within(self, subset: Sequence[str]) -> list[int]:
        """The slots of the endpoints that a subset hint names: by `ip:port`, or by `ip` for all ports of it."""
        slots = [self.slot_at(member) for member in subset]
        found = [slot for slot in slots if slot is not None]
        hosts = {member for member, slot in zip(subset, slots, strict=True) if slot is None}
        if hosts:
            named = [(slot, self.endpoints[slot]) for slot in self.slots.values()]
            found += [slot for slot, e in named if e is not None and (e.address in hosts or e.host in hosts)]
        return found

    def all_slots(self) -> Ints:
        """The slots in use, in the order in which endpoints came; a cached array that must not be changed."""
        if self._order is None:
            self._order = np.fromiter(self.slots.values(), dtype=np.intp, count=len(self.slots))
            self._order.flags.writeable = False
        return self._order

    def _occupy(self, slot: int, endpoint: Endpoint | None) -> None:
        # A new list each time: decisions keep the old one for their explanation.
        self.endpoints = [*self.endpoints[:slot], endpoint, *self.endpoints[slot + 1 :]]
        self.version += 1
        self._order = None
        self._derived.clear()
        self._differing.clear()
        self._labels.clear()
        for listener in self._listeners:
            listener()

    def _clear(self, slot: int, *, reset_own: bool) -> None:
        self.fresh_until[slot] = -np.inf
        self.updated[slot] = np.nan
        for key, column in self._columns.items():
            if reset_own or key.source is not None:
                column[slot] = key.missing
        for name in self._sets:
            self.write_set(slot, name, ())

    def _grow(self) -> None:
        size = len(self.endpoints)
        self.endpoints.extend([None] * size)
        self.generations.extend([0] * size)
        self._free.extend(range(2 * size - 1, size - 1, -1))
        self.fresh_until = np.concatenate([self.fresh_until, np.full(size, -np.inf)])
        self.updated = np.concatenate([self.updated, np.full(size, np.nan)])
        self.eligible = np.concatenate([self.eligible, np.zeros(size, dtype=bool)])
        for key, column in self._columns.items():
            self._columns[key] = np.concatenate([column, np.full(size, key.missing)])
        for members in self._sets.values():
            for member, mask in members.items():
                members[member] = np.concatenate([mask, np.zeros(size, dtype=bool)])

    # --- columns

    def column(self, key: Key) -> Floats:
        """The live column of a pool key, over all slots. For the mechanism; plugins get copies."""
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = np.full(len(self.endpoints), key.missing)
        return column

    def write(self, slot: int, values: Mapping[Key, float], *, now: float, fresh_until: float) -> None:
        """Enters what a scrape at `now` said; a key that it left out is missing from now on.

        Args:
            slot: the endpoint's.
            values: by pool key; keys of the source "info" keep their old value when left out.
            now: on the injected monotonic clock, seconds.
            fresh_until: when the endpoint's next scheduled scrape is overdue.
        """
        for key in values:
            self.column(key)
        for key, column in self._columns.items():
            if key.source == "metrics" and key not in self.polled:
                column[slot] = values.get(key, key.missing)
            elif key.source == "info" and key in values:
                column[slot] = values[key]
        self.updated[slot] = now
        self.fresh_until[slot] = fresh_until

    def write_polled(self, slot: int, values: Mapping[Key, float], source: str) -> None:
        """Enters what a page beside the metrics said, whole: what this source has given before is else missing.

        How current that is has nothing to do with `fresh_until`: who polls takes it back when a poll fails.
        """
        known = self._polled.setdefault(source, set())
        if not known.issuperset(values):
            known.update(values)
            self.polled = self.polled.union(values)
        for key in known:
            self.column(key)[slot] = values.get(key, key.missing)

    def stale(self, slot: int) -> None:
        """What the endpoint's last scrape said counts no longer as current."""
        self.fresh_until[slot] = -np.inf

    def write_set(self, slot: int, name: str, members: Iterable[str]) -> None:
        """Enters which members of a set, such as LoRA adapters, the endpoint has."""
        new, old = frozenset(members), self._members.get((name, slot), frozenset())
        if new == old:
            return
        self._members[name, slot] = new
        self._differing.pop(name, None)
        by_member = self._sets.setdefault(name, {})
        for member in old - new:
            by_member[member][slot] = False
            if not by_member[member].any():
                del by_member[member]
        for member in new - old:
            if member not in by_member:
                by_member[member] = np.zeros(len(self.endpoints), dtype=bool)
            by_member[member][slot] = True

    def set_mask(self, name: str, member: str) -> Mask | None:
        """Who has that member, over all slots; None if nobody."""
        return self._sets.get(name, {}).get(member)

    def members(self, slot: int, name: str) -> frozenset[str]:
        """The members of a set that the endpoint has."""
        return self._members.get((name, slot), frozenset())

    def differ(self, name: str) -> bool:
        """Whether endpoints have different members of a set; those with none of them don't count."""
        known = self._differing.get(name)
        if known is None:
            sets = {self.members(slot, name) for slot in self.slots.values()} - {frozenset()}
            known = self._differing[name] = len(sets) > 1
        return known

    def label_codes(self, label: str) -> tuple[Codes, dict[str, int]]:
        """The label's values as codes over all slots (`ABSENT` where it is absent), and the code of each value."""
        known = self._labels.get(label)
        if known is None:
            values: dict[str, int] = {}
            codes = np.full(len(self.endpoints), ABSENT, dtype=np.int32)
            for slot in self.slots.values():
                endpoint = self.endpoints[slot]
                if endpoint is not None and label in endpoint.labels:
                    codes[slot] = values.setdefault(endpoint.labels[label], len(values))
            known = self._labels[label] = (codes, values)
        return known

    def derived(self, function: "Callable[[Pool], NDArray[Any]]") -> NDArray[Any]:
        """The function's result for this pool, over all slots, cached until the membership changes."""
        result = self._derived.get(function)
        if result is None:
            result = self._derived[function] = function(self)
        return result

    # --- what we sent

    def charge(self, slot: int, requests: float, tokens: float) -> Leg:
        """Counts a request as in flight at an endpoint; `release` the leg exactly once."""
        self.column(INFLIGHT_REQUESTS)[slot] += requests
        self.column(INFLIGHT_TOKENS)[slot] += tokens
        return Leg(slot, self.generations[slot], requests, tokens)

    def release(self, leg: Leg, *, tokens_only: bool = False) -> None:
        """Gives back what is left of a leg; a second call, or a slot that was reused meanwhile, is a no-op."""
        requests, tokens = 0.0 if tokens_only else leg.requests, leg.tokens
        leg.requests -= requests
        leg.tokens = 0.0
        if self.generations[leg.slot] == leg.generation:
            self.column(INFLIGHT_REQUESTS)[leg.slot] -= requests
            self.column(INFLIGHT_TOKENS)[leg.slot] -= tokens


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """What one profile chose: endpoints in order of preference, the first is the target and the rest are fallbacks."""

    profile: str
    slots: tuple[int, ...]
    endpoints: tuple[Endpoint, ...]
    score: float

    @property
    def destination(self) -> str:
        """The value of `x-gateway-destination-endpoint`."""
        return ",".join([endpoint.hostport for endpoint in self.endpoints])


class Candidates:
    """The endpoints still in play, as compact columns of shape (n,). Arrays are copies and read-only.

    `c[KEY]` is a column: NaN where the endpoint never reported it, or missed its own last scheduled scrape. A request
    key that no producer wrote raises KeyError. `c.fresh` tells whose last scheduled scrape has succeeded,
    `c.scraped_at` when each one's last successful scrape was, and `c.ages` how long ago (NaN for never). `c.peer` is
    what another profile chose, or None. `c.now` is the injected clock's. All times are in seconds.
    """

    __slots__ = (
        "_columns",
        "_endpoints",
        "_pool",
        "_positions",
        "_root",
        "all_fresh",
        "fresh",
        "now",
        "peer",
        "scraped_at",
        "slots",
    )

    def __init__(self, pool: Pool, slots: Ints, now: float) -> None:
        self.slots = slots
        self.now = now
        self.fresh: Mask = pool.fresh_until[slots] >= now
        self.all_fresh = all_true(self.fresh)
        self.scraped_at: Floats = pool.updated[slots]
        self.peer: Pick | None = None
        self._pool = pool
        self._endpoints = pool.endpoints
        self._root: Candidates | None = None  # itself, which would be a cycle for the garbage collector
        self._positions: Ints | None = None
        self._columns: dict[Key, Floats] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def __repr__(self) -> str:
        return f"<Candidates: {len(self)} endpoints>"

    def __getitem__(self, key: Key) -> Floats:
        """The column of a key, shape (n,)."""
        column = self._columns.get(key)
        if column is None:
            column = self._gather(key) if self._root is None else self._root[key][self._positions]
            column.setflags(write=False)  # a fifth of the time that `flags.writeable = False` takes
            self._columns[key] = column
        return column

    def _gather(self, key: Key) -> Floats:
        if key.scope == "request":
            raise KeyError(f"{key!r} is written by no producer that ran for this request")
        column: Floats = self._pool.column(key)[self.slots]
        if not self.all_fresh and self.scraped(key):
            column[~self.fresh] = np.nan
        return column

    def scraped(self, key: Key) -> bool:
        """Whether the column is current only where the endpoint's last scheduled scrape has succeeded."""
        return key.source == "metrics" and key not in self._pool.polled

    @property
    def ages(self) -> Floats:
        """Seconds since each endpoint's last successful scrape, shape (n,); NaN for never."""
        return self.now - self.scraped_at

    @property
    def read(self) -> Mapping[Key, Floats]:
        """What has been read or produced so far, over the endpoints that this decision began with."""
        return self._columns if self._root is None else self._root._columns

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The endpoints themselves: for names and addresses; a loop over them is slow in a large pool."""
        found = [self._endpoints[slot] for slot in self.slots]
        return [endpoint for endpoint in found if endpoint is not None]

    @property
    def roster(self) -> Sequence[Endpoint | None]:
        """The pool's endpoints by slot, as they were; another object after every change of the membership."""
        return self._endpoints

    def label(self, name: str) -> Codes:
        """The label's values as codes, shape (n,); -1 where it is absent. Compare with `code`."""
        codes: Codes = self._pool.label_codes(name)[0][self.slots]
        return codes

    def code(self, label: str, value: str) -> int:
        """The code of a label's value; -2 if no endpoint has it."""
        return self._pool.label_codes(label)[1].get(value, UNKNOWN)

    def has(self, name: str, member: str) -> Mask:
        """Who has the member in a set, such as an adapter in `ACTIVE_MODELS`; shape (n,)."""
        mask = self._pool.set_mask(name, member)
        return np.zeros(len(self), dtype=bool) if mask is None else mask[self.slots]

    def differ(self, name: str) -> bool:
        """Whether endpoints of the pool have different members of a set; those with none of them don't count."""
        return self._pool.differ(name)

    def anywhere(self, name: str, member: str) -> bool:
        """Whether any endpoint of the pool has the member in a set, also one that is no candidate."""
        mask = self._pool.set_mask(name, member)
        return mask is not None and bool(mask.any())

    def members(self, name: str) -> set[str]:
        """The members of a set that any of them has; a loop, for messages."""
        return set().union(*[self._pool.members(int(slot), name) for slot in self.slots])

    def derived(self, function: Callable[[Pool], NDArray[Any]]) -> NDArray[Any]:
        """`function(pool)`, an array over the pool's slots, taken for these endpoints; cached until membership changes.

        The cache is keyed by the function object: pass one that lives as long as the plugin.
        """
        return self._pool.derived(function)[self.slots]

    def index(self, slot: int) -> int:
        """Where a slot is among them; 0 if it isn't."""
        if slot < len(self.slots) and self.slots.item(slot) == slot:  # nobody before it is left out
            return slot
        return int((self.slots == slot).argmax())

    def named(self, endpoint: str) -> Mask:
        """Which of them has that id (`namespace/name`); shape (n,)."""
        slot = self._pool.slots.get(endpoint, -1)
        mask: Mask = self.slots == slot
        return mask

    # --- for the mechanism

    def put(self, key: Key, values: Floats) -> None:
        """Enters a produced column, shape (n,)."""
        column = np.array(values, dtype=np.float64)
        column.setflags(write=False)
        self._columns[key] = column

    def keeping(self, which: Mask | Ints) -> "Candidates":
        """Those for whom a mask is true, or those at these positions, for a decision that begins with them.

        What has been produced for others is not theirs.
        """
        return Candidates(self._pool, self.slots[which], self.now)

    def again(self) -> "Candidates":
        """The same for another decision: the endpoints and the pool's columns as they were, and nothing produced."""
        other = Candidates.__new__(Candidates)
        other.slots, other.now, other.peer = self.slots, self.now, None
        other.fresh, other.all_fresh, other.scraped_at = self.fresh, self.all_fresh, self.scraped_at
        other._pool, other._endpoints, other._root, other._positions = self._pool, self._endpoints, None, None
        other._columns = {key: column for key, column in self._columns.items() if key.scope == "pool"}
        return other

    def narrow(self, mask: Mask, peer: Pick | None = None) -> "Candidates":
        """Those for whom the mask is true, as candidates of their own."""
        positions = np.flatnonzero(mask)
        child = Candidates.__new__(Candidates)
        child.slots, child.now, child.peer = self.slots[positions], self.now, peer or self.peer
        child.fresh, child.scraped_at = self.fresh[positions], self.scraped_at[positions]
        child.all_fresh = self.all_fresh or all_true(child.fresh)
        child._pool, child._endpoints, child._columns = self._pool, self._endpoints, {}
        child._root = self if self._root is None else self._root
        child._positions = positions if self._positions is None else self._positions[positions]
        return child

    def pick(self, profile: str, order: Sequence[int], score: float) -> Pick:
        """The pick of these indices, best first."""
        slots = tuple(int(self.slots[index]) for index in order)
        endpoints = tuple(e for e in (self._endpoints[slot] for slot in slots) if e is not None)
        return Pick(profile, slots, endpoints, score)
