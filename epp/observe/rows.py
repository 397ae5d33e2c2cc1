"""Records of requests to messages of the decision log."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epp import __version__
from epp.keys import Key
from epp.observe import wire
from epp.observe.record import Comparison, Record
from epp.plugin import Candidates, Endpoint, Floats, Ints

LONGEST_ID = 64
MOST_NAMES = 50_000
"""Clients choose models' names and fairness ids: beyond so many all names begin anew."""

MOST_BYTES = 2**20
"""Of rows under the same names: what a damaged frame takes with it, if it has names in it, is no more than that."""


class Rows:
    """Turns records into messages; keeps the names that have been written.

    Args:
        block_tokens: tokens in a block of the chains.
        space: of the secret that they were hashed under.
        most_candidates: how many candidates of a decision are written down; picks are in any case.
        most_bytes: of rows after which names begin anew.
    """

    def __init__(self, block_tokens: int, space: int, most_candidates: int, most_bytes: int = MOST_BYTES) -> None:
        self._block_tokens, self._space, self._most = block_tokens, space, most_candidates
        self._most_bytes = most_bytes
        self._number = self._bytes = 0
        self._names: dict[str, int] = {}
        self._new: list[str] = []
        self._roster: Sequence[Endpoint | None] | None = None
        self._servers: NDArray[np.uint32] = np.empty(0, np.uint32)
        self._keys: dict[Key, int] = {}

    def opening(self, now: float) -> bytes:
        """The message that begins a file, after which no name is known.

        Args:
            now: seconds since the epoch.
        """
        self._names, self._new, self._roster, self._keys = {}, [], None, {}
        self._number, self._bytes = self._number + 1, 0
        return wire.encode(wire.Opening(wire.FORMAT, __version__, now, self._block_tokens, self._space, self._number))

    def encode(self, record: Record) -> list[bytes]:
        """The messages of one request: new names if there are any, and its row."""
        full = len(self._names) >= MOST_NAMES or self._bytes >= self._most_bytes
        started = [self.opening(record.wall)] if full else []
        row = wire.encode(self._row(record))
        self._bytes += len(row)
        if not self._new:
            return [*started, row]
        names, self._new = wire.encode(wire.Names(self._new, len(self._names) - len(self._new))), []
        return [*started, names, row]

    def _row(self, record: Record) -> wire.Row:
        decision, outcome = record.ours or record.decision, record.outcome
        seen, error = record.seen, record.error
        usage = outcome.usage
        places = None if decision is None else _places(record, decision, self._most)
        pick = None if decision is None else decision.found()
        sent_to = record.observed or (pick.endpoints[0].hostport if pick is not None and error is None else None)
        return wire.Row(
            id=record.id[:LONGEST_ID],
            kind=1 if record.observed is not None else 0 if error is None else 2,
            arrived=record.wall,
            model=self._name(record.model),
            target_model=self._name(record.target_model),
            fairness_id=self._name(record.fairness_id),
            priority=record.priority,
            size=record.size,
            prompt_bytes=0 if seen is None else seen.prompt_bytes,
            max_tokens=None if seen is None else seen.max_tokens,
            streaming=seen is not None and seen.streaming,
            chains=[] if seen is None else [chain.tobytes() for chain in seen.chains],
            decided_in=record.decided_in,
            candidates=0 if places is None else len(places.c),
            servers=b"" if places is None else self._known(places.c)[places.slots].tobytes(),
            fresh=b"" if places is None or places.c.all_fresh else places.of(places.c.fresh).tobytes(),
            ages=b"" if places is None else places.singles(places.c.ages),
            signals=[] if places is None else [(self._key(key), places.singles(x)) for key, x in places.c.read.items()],
            stages=self._stages(decision, places),
            primary=None if decision is None else self._maybe(decision.handler_result),
            sent_to=self._maybe(sent_to),
            shadow=self._stages(record.shadow, places),
            against_shadow=self._comparison(record.against_shadow),
            against_ours=self._comparison(record.against_ours),
            error=None
            if error is None
            else wire.Refusal(error.status, self._name(error.code), self._maybe(error.reason)),
            outcome=wire.Ended(
                outcome.status,
                self._maybe(outcome.served_by),
                self._maybe(outcome.cause),
                outcome.first_byte,
                outcome.duration,
                outcome.response_bytes,
                outcome.streaming,
                (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
            ),
            opening=self._number,
        )

    def _stages(self, decision: Any, places: "_Places | None") -> list[wire.Stage]:
        return [] if decision is None or places is None else [self._stage(stage, places) for stage in decision.stages]

    def _stage(self, stage: Any, places: "_Places") -> wire.Stage:
        scorers, counted, slots = stage.profile.scorers, stage.counted, stage.candidates.slots
        return wire.Stage(
            self._name(stage.profile.name),
            [self._name(plugged.name) for plugged, _ in scorers],
            [weight for _, weight in scorers],
            places.scattered(np.empty((len(scorers), 0)) if counted is None else counted, slots),
            places.scattered(np.empty(0) if stage.totals is None else stage.totals, slots),
            [] if stage.pick is None else [places.at(slot) for slot in stage.pick.slots],
        )

    def _known(self, c: Candidates) -> NDArray[np.uint32]:
        """The numbers of the endpoints' names, by slot."""
        if c.roster is not self._roster:
            texts = ["" if each is None else f"{each.id} {each.hostport}" for each in c.roster]
            self._servers = np.array([self._name(text) for text in texts], "<u4")
            self._roster = c.roster
        return self._servers

    def _key(self, key: Key) -> int:
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = self._name(f"{key.producer}/{key.name}" if key.producer else key.name)
        return known

    def _comparison(self, said: Comparison | None) -> wire.Comparison | None:
        return None if said is None else wire.Comparison(self._maybe(said.other), said.agreed, said.regret)

    def _maybe(self, text: str | None) -> int | None:
        return None if text is None else self._name(text)

    def _name(self, text: str) -> int:
        known = self._names.get(text)
        if known is None:
            known = self._names[text] = len(self._names)
            self._new.append(text)
        return known


class _Places:
    """Which candidates of a decision are written down, and where.

    Attributes:
        c: all of them.
        slots: those of the written ones, in the order in which they are.
    """

    __slots__ = ("_chosen", "c", "slots")

    def __init__(self, c: Candidates, chosen: Ints | None) -> None:
        self._chosen = chosen  # positions among all; None for all of them
        self.c = c
        self.slots = c.slots if chosen is None else c.slots[chosen]

    def of(self, column: NDArray[Any]) -> NDArray[Any]:
        """Of a column over all candidates those that are written."""
        return column if self._chosen is None else column[self._chosen]

    def singles(self, column: Floats) -> bytes:
        """The same as it is written."""
        return self.of(column).astype("<f4").tobytes()

    def scattered(self, values: Floats, slots: Ints) -> bytes:
        """Values of some of the candidates, in the last dimension, as they are written; NaN for the others.

        Args:
            values: shape (..., n).
            slots: whose they are, shape (n,).
        """
        if values.shape[-1] == len(self.c):
            return (values if self._chosen is None else values[..., self._chosen]).astype("<f4").tobytes()
        found = np.full((*values.shape[:-1], len(self.slots)), np.nan, "<f4")
        if values.shape[-1]:
            by_slot = np.full(int(max(slots.max(), self.slots.max())) + 1, -1, np.intp)
            by_slot[slots] = np.arange(len(slots))
            at = by_slot[self.slots]
            found[..., at >= 0] = values[..., at[at >= 0]]
        return found.tobytes()

    def at(self, slot: int) -> int:
        """Where a slot is written; it is."""
        return int((self.slots == slot).argmax())


def _places(record: Record, decision: Any, most: int) -> _Places:
    """The best by the primary profile's totals are written, and every pick."""
    c: Candidates = decision.candidates
    if len(c) <= most:
        return _Places(c, None)
    wanted = np.zeros(int(c.slots.max()) + 1, bool)
    stage = next((s for s in reversed(decision.stages) if s.profile.name == decision.handler_result), None)
    if stage is not None and stage.totals is not None:
        best = np.argpartition(-stage.totals, min(most, len(stage.totals)) - 1)[:most]
        wanted[stage.candidates.slots[best]] = True
    for each in (decision, record.shadow):
        wanted[[slot for run in each.stages if run.pick is not None for slot in run.pick.slots] if each else []] = True
    if record.observed is not None and record.decision is not None:
        taken = record.decision.found().slots[0]
        wanted[taken : taken + 1] = True  # nobody, if it is beyond all candidates
    return _Places(c, np.flatnonzero(wanted[c.slots]))
