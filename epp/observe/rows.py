"""Records of requests to messages of the decision log."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epp import __version__
from epp.keys import Key
from epp.observe import wire
from epp.observe.record import Comparison, Record
from epp.plugin import Candidates, Endpoint, Floats

LONGEST_ID = 64
MOST_NAMES = 50_000
"""Clients choose models' names and fairness ids: beyond so many all names begin anew."""

_Positions = NDArray[np.intp]


class Rows:
    """Turns records into messages; keeps the names that have been written.

    Args:
        block_tokens: tokens in a block of the chains.
        space: of the secret that they were hashed under.
        most_candidates: how many candidates of a decision are written down; picks are in any case.
    """

    def __init__(self, block_tokens: int, space: int, most_candidates: int) -> None:
        self._block_tokens, self._space, self._most = block_tokens, space, most_candidates
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
        return wire.encode(wire.Opening(wire.FORMAT, __version__, now, self._block_tokens, self._space))

    def encode(self, record: Record) -> list[bytes]:
        """The messages of one request: new names if there are any, and its row."""
        started = [] if len(self._names) < MOST_NAMES else [self.opening(record.wall)]
        row = wire.encode(self._row(record))
        if not self._new:
            return [*started, row]
        names, self._new = wire.encode(wire.Names(self._new)), []
        return [*started, names, row]

    def _row(self, record: Record) -> wire.Row:
        decision, outcome = record.ours or record.decision, record.outcome
        seen, error = record.seen, record.error
        usage = outcome.usage
        chosen = _chosen(record, self._most)
        c: Candidates | None = None if decision is None else decision.candidates
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
            candidates=0 if c is None else len(c),
            servers=b"" if c is None else self._known(c)[c.slots[chosen]].tobytes(),
            fresh=b"" if c is None or c.all_fresh else c.fresh[chosen].tobytes(),
            ages=b"" if c is None else _singles(c.ages[chosen]),
            signals=[] if c is None else [(self._key(key), _singles(column[chosen])) for key, column in c.read.items()],
            stages=self._stages(decision, chosen),
            primary=None if decision is None else self._maybe(decision.handler_result),
            sent_to=self._maybe(sent_to),
            shadow=self._stages(record.shadow, chosen),
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
        )

    def _stages(self, decision: Any, chosen: _Positions) -> list[wire.Stage]:
        if decision is None:
            return []
        slots = decision.candidates.slots
        places = np.full(int(slots.max(initial=-1)) + 1, -1, np.intp)  # by slot, among those that are written down
        places[slots[chosen]] = np.arange(len(chosen))
        return [self._stage(stage, places, len(chosen)) for stage in decision.stages]

    def _stage(self, stage: Any, places: _Positions, n: int) -> wire.Stage:
        at = places[stage.candidates.slots]
        kept = at >= 0
        scorers = stage.profile.scorers
        scores, totals = np.full((len(scorers), n), np.nan, "<f4"), np.full(n, np.nan, "<f4")
        if stage.counted is not None:
            scores[:, at[kept]] = stage.counted[:, kept]
            totals[at[kept]] = stage.totals[kept]
        return wire.Stage(
            self._name(stage.profile.name),
            [self._name(plugged.name) for plugged, _ in scorers],
            [weight for _, weight in scorers],
            scores.tobytes(),
            totals.tobytes(),
            [] if stage.pick is None else [int(places[slot]) for slot in stage.pick.slots],
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


def _singles(values: Floats) -> bytes:
    return values.astype("<f4").tobytes()


def _chosen(record: Record, most: int) -> _Positions:
    """The positions of the candidates to write down: the best by the primary profile's totals, and every pick."""
    decision = record.ours or record.decision
    if decision is None:
        return np.empty(0, np.intp)
    c = decision.candidates
    if len(c) <= most:
        return np.arange(len(c))
    wanted = np.zeros(len(c), bool)
    stage = next((s for s in reversed(decision.stages) if s.profile.name == decision.handler_result), None)
    if stage is not None and stage.totals is not None:
        best = np.argpartition(-stage.totals, min(most, len(stage.totals)) - 1)[:most]
        wanted[np.isin(c.slots, stage.candidates.slots[best])] = True
    for each in (decision, record.shadow):
        picked = [slot for run in each.stages if run.pick is not None for slot in run.pick.slots] if each else []
        wanted[np.isin(c.slots, picked)] = True
    if record.observed is not None:
        wanted[[endpoint.hostport == record.observed for endpoint in c.endpoints]] = True
    return np.flatnonzero(wanted)
