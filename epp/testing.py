"""Fakes that ship, for the tests of plugins, ours and anybody's: real candidates in one line, a clock, a context.

def test_prefers_the_shorter_queue():
scores = QueueScorer().score(request("hi"), candidates(waiting=[0, 5, 10]))
assert scores.tolist() == [1.0, 0.5, 0.0]
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from epp import keys
from epp.keys import Key
from epp.plugin import Body, Candidates, Context, Endpoint, Floats, Pick, Pool, Request
from epp.states import States

_KEYS = {key.name: key for key in vars(keys).values() if isinstance(key, Key)}

Labels = Mapping[str, str]
Column = Sequence[float] | Floats
"""One value an endpoint."""


class FakeClock:
    """A clock that stands still until it is told: `clock()` is the time, `clock.advance(seconds)` moves it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now

    def __repr__(self) -> str:
        return f"<FakeClock: {self.now:g} s>"

    def advance(self, seconds: float) -> None:
        """Moves the time on."""
        self.now += seconds


def context(
    name: str = "test",
    seed: int = 0,
    clock: FakeClock | None = None,
    pool: Pool | None = None,
    states: States | None = None,
) -> Context:
    """What the mechanism gives to a plugin: here with its own pool, clock and states unless they are given."""
    own = States() if states is None else states
    return Context(name, clock or FakeClock(), random.Random(seed), Pool() if pool is None else pool, states=own)


def request(
    prompt: str | bytes | Sequence[str | bytes] = "",
    *,
    model: str = "model",
    headers: Mapping[str, str] | None = None,
    path: str = "/v1/completions",
    priority: int = 0,
) -> Request:
    """A request as a parser would have read it.

    Args:
        prompt: one prompt, or several.
        model: that the client names.
        headers: names in any case.
        path: of the URL.
        priority: negative is sheddable.
    """
    several = [prompt] if isinstance(prompt, str | bytes) else prompt
    prompts = tuple(part.encode() if isinstance(part, str) else part for part in several)
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    body = Body(model=model, prompts=prompts)
    return Request("test", path, lower, body, size=sum(map(len, prompts)), parser="test", priority=priority)


def pool(
    *,
    count: int | None = None,
    labels: Sequence[Labels] | Labels = (),
    names: Sequence[str] = (),
    stale: Sequence[bool] = (),
    active_models: Sequence[Iterable[str]] = (),
    waiting_models: Sequence[Iterable[str]] = (),
    models: Sequence[Iterable[str]] = (),
    columns: Mapping[Key, Column] | None = None,
    **known: Column,
) -> Pool:
    """A pool of as many endpoints as the lists are long; see `candidates` for the arguments."""
    values = {_key(name): column for name, column in known.items()} | dict(columns or {})
    served = [(keys.REPORTED, *each) if each else () for each in models]
    sets = {keys.ACTIVE_MODELS: active_models, keys.WAITING_MODELS: waiting_models, keys.SERVED_MODELS: served}
    each = () if isinstance(labels, Mapping) else labels
    number = _count(count, [*values.values(), *sets.values(), names, stale, each])
    made = Pool(capacity=max(number, 1))
    for index in range(number):
        own = labels if isinstance(labels, Mapping) else each[index] if each else {}
        name = names[index] if names else f"pod-{index}"
        slot = made.add(Endpoint(name, f"10.0.{index // 250}.{index % 250 + 1}", 8000, labels=dict(own)))
        made.fresh_until[slot] = -math.inf if stale and stale[index] else math.inf
        made.updated[slot] = 0.0
        for key, column in values.items():
            made.column(key)[slot] = column[index]
        for set_name, members in sets.items():
            made.write_set(slot, set_name, members[index] if members else ())
    return made


def candidates(
    *, now: float = 1000.0, columns: Mapping[Key, Column] | None = None, of: Pool | None = None, **arguments: Any
) -> Candidates:
    """Candidates of a real pool, all of it: `candidates(waiting=[0, 5, nan], labels=[{"zone": "a"}, {}, {}])`.

    Args:
        now: on the monotonic clock, seconds.
        columns: by key, for keys of one's own; request keys are entered as a producer's would be.
        of: a pool that exists already, in place of the arguments below.
        arguments: `waiting`, `running`, `kv_usage`, `inflight_requests` and every other key of `epp.keys` by its name,
            one value an endpoint; `labels`, one mapping for each or one for all; `names`; `stale`, whether the endpoint
            missed its last scrape; `active_models`, `waiting_models` and `models` (which it serves), an iterable for
            each; `count`, how many there are, if no list tells.

    Raises:
        TypeError: there is no column of that name.
        ValueError: the lists differ in length.
    """
    given = dict(columns or {})
    computed = {key: column for key, column in given.items() if key.scope == "request"}
    stored = {key: column for key, column in given.items() if key.scope == "pool"}
    if of is None:
        known = max((len(column) for column in given.values()), default=None)
        of = pool(columns=stored, **{"count": known, **arguments})
    made = Candidates(of, of.all_slots(), now)
    for key, column in computed.items():
        made.put(key, np.asarray(column, dtype=np.float64))
    return made


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """A decision, for observers; made by `decided`."""

    primary: Pick
    picks: Mapping[str, Pick]

    @property
    def computing(self) -> Mapping[str, Pick]:
        """All but the pick of a profile named `encode`."""
        return {name: pick for name, pick in self.picks.items() if name != "encode"}

    @property
    def encoding(self) -> Mapping[str, Pick]:
        """The pick of a profile named `encode`."""
        return {name: pick for name, pick in self.picks.items() if name == "encode"}


def decided(c: Candidates, *order: int, profile: str = "default", others: Mapping[str, int] | None = None) -> Decided:
    """The decision for these indices into the candidates, best first.

    Args:
        c: the candidates.
        order: what the primary profile chose.
        profile: the primary profile's name.
        others: by name of each other profile, the index that it chose.
    """
    primary = c.pick(profile, order, 1.0)
    picks = {name: c.pick(name, [index], 1.0) for name, index in (others or {}).items()}
    return Decided(primary, {profile: primary, **picks})


def _key(name: str) -> Key:
    if name not in _KEYS:
        raise TypeError(f"there is no column {name!r}; there are: {', '.join(sorted(_KEYS))}")
    return _KEYS[name]


def _count(count: int | None, lists: Iterable[Sequence[Any] | Floats]) -> int:
    lengths = {len(each) for each in lists if len(each)} | ({count} if count is not None else set())
    if len(lengths) > 1:
        raise ValueError(f"the lists differ in length: {sorted(lengths)}")
    return lengths.pop() if lengths else 1
