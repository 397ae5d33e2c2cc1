"""The last decisions, kept as the score matrices themselves and rendered only when somebody asks."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from epp.keys import Key
from epp.observe.record import Comparison, Record
from epp.plugin import Candidates, Endpoint, Floats, Pick

KEPT = 1000
KEPT_BYTES = 32 * 1024 * 1024


class Decisions:
    """A ring of records, bounded in number and in estimated bytes; a record is found by its request's id."""

    def __init__(self, kept: int = KEPT, kept_bytes: int = KEPT_BYTES) -> None:
        self._ring: deque[tuple[Record, int]] = deque()
        self._by_id: dict[str, Record] = {}
        self._kept, self._kept_bytes, self._bytes = kept, kept_bytes, 0

    def __len__(self) -> int:
        return len(self._ring)

    def __repr__(self) -> str:
        return f"<Decisions: {len(self)} of {self._kept}, about {self._bytes} bytes>"

    def keep(self, record: Record) -> None:
        """Keeps a record, and lets the oldest go where there are too many."""
        size = _size(record)
        self._ring.append((record, size))
        self._by_id[record.id] = record
        self._bytes += size
        while len(self._ring) > self._kept or (self._bytes > self._kept_bytes and len(self._ring) > 1):
            oldest, oldest_size = self._ring.popleft()
            self._bytes -= oldest_size
            if self._by_id.get(oldest.id) is oldest:
                del self._by_id[oldest.id]

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The explanation of the latest request with that id; None if it isn't kept."""
        record = self._by_id.get(request_id)
        return None if record is None else render(record)

    def latest(self, count: int) -> list[dict[str, Any]]:
        """The explanations of the latest requests, newest first."""
        records = [record for record, _ in list(self._ring)[: -count - 1 : -1]]
        return [render(record) for record in records]


def _size(record: Record) -> int:
    decision = record.ours or record.decision
    if decision is None:
        return 1024 + len(record.id)
    rows = 0
    for each in (decision, record.shadow):
        if each is not None:
            rows += len(each.candidates.read) + sum(3 + len(stage.profile.scorers) for stage in each.stages)
    return 2048 + len(record.id) + rows * (len(decision.candidates) * 8 + 128)


def render(record: Record) -> dict[str, Any]:
    """The explanation of one request, as plain data for JSON."""
    decision, outcome = record.ours or record.decision, record.outcome
    pick = decision.found() if decision is not None else None
    return {
        "request_id": record.id,
        "timestamp": record.wall,
        "model": record.model or None,
        "target_model": record.target_model or record.model or None,
        "priority": record.priority,
        "fairness_id": record.fairness_id,
        "size_bytes": record.size,
        "decided_in_us": None if record.decided_in is None else round(record.decided_in * 1e6, 1),
        "destination": pick.destination if pick is not None else None,
        "profile": pick.profile if pick is not None else None,
        "score": pick.score if pick is not None else None,
        "error": None if record.error is None else _error(record),
        "candidates": [] if decision is None else list(_candidates(decision.candidates)),
        "profiles": [] if decision is None else [_stage(stage) for stage in decision.stages],
        "observed": None if record.observed is None else _against(record.observed, record.against_ours),
        "shadow": None if record.shadow is None else _shadow(record),
        "outcome": {
            "status": outcome.status,
            "served_by": outcome.served_by,
            "ending": outcome.cause,
            "ttft_ms": None if outcome.first_byte is None else outcome.first_byte * 1000,
            "duration_ms": None if outcome.duration is None else outcome.duration * 1000,
            "response_bytes": outcome.response_bytes,
            "prompt_tokens": outcome.usage.prompt_tokens,
            "completion_tokens": outcome.usage.completion_tokens,
            "cached_tokens": outcome.usage.cached_tokens,
        },
    }


def _against(destination: str, comparison: Comparison | None) -> dict[str, Any]:
    """Where another picker has sent the request, and what we would have won."""
    agreed, regret = (None, None) if comparison is None else (comparison.agreed, comparison.regret)
    return {"destination": destination, "agreed": agreed, "regret": regret}


def _shadow(record: Record) -> dict[str, Any]:
    comparison, stages = record.against_shadow, record.shadow.stages
    assert comparison is not None  # noqa: S101 (who has decided has been compared)
    against = {"destination": comparison.other, "agreed": comparison.agreed, "regret": comparison.regret}
    return {**against, "profiles": [_stage(stage) for stage in stages]}


def _error(record: Record) -> dict[str, Any]:
    error = record.error
    assert error is not None  # noqa: S101 (the caller has looked)
    return {"status": error.status, "code": error.code, "reason": error.reason, "message": error.message}


def _candidates(c: Candidates) -> Iterator[dict[str, Any]]:
    for index, endpoint in enumerate(c.endpoints):
        age = _number(c.ages[index])
        yield {
            "endpoint": endpoint.id,
            "address": endpoint.hostport,
            "fresh": bool(c.fresh[index]),
            "signals": {_label(key): _signal(key, column, index, age) for key, column in c.read.items()},
        }


def _label(key: Key) -> str:
    return f"{key.producer}/{key.name}" if key.producer else key.name


def _signal(key: Key, column: Floats, index: int, age: float | None) -> dict[str, Any]:
    # Our own counters and produced columns are as old as the decision.
    return {"value": _number(column[index]), "unit": key.unit, "age_s": age if key.source is not None else 0.0}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _names(endpoints: list[Endpoint]) -> list[str]:
    return [endpoint.id for endpoint in endpoints]


def _stage(stage: Any) -> dict[str, Any]:
    names = _names(list(stage.candidates.endpoints))
    return {
        "profile": stage.profile.name,
        "filters": list(_filters(stage)),
        "scorers": [] if stage.raw is None else [_scorer(stage, row, names) for row in range(len(stage.raw))],
        "totals": {} if stage.totals is None else dict(zip(names, map(float, stage.totals), strict=True)),
        "picker": stage.profile.picker.name,
        "failed": sorted(stage.failed),
        "pick": None if stage.pick is None else _pick(stage.pick),
    }


def _filters(stage: Any) -> Iterator[dict[str, Any]]:
    before = _names(list(stage.started.endpoints))
    for plugged, candidates in stage.kept:
        after = _names(list(candidates.endpoints))
        left = set(after)
        yield {
            "plugin": plugged.name,
            "type": plugged.type,
            "dropped": [name for name in before if name not in left],
        }
        before = after


def _scorer(stage: Any, row: int, names: list[str]) -> dict[str, Any]:
    plugged, weight = stage.profile.scorers[row]
    counted = stage.counted[row]
    return {
        "plugin": plugged.name,
        "type": plugged.type,
        "weight": weight,
        "in_flight_stood_in": row in stage.stood_in,
        "scores": {
            name: {"raw": _number(stage.raw[row][index]), "weighted": float(counted[index]) * weight}
            for index, name in enumerate(names)
        },
    }


def _pick(pick: Pick) -> dict[str, Any]:
    return {"endpoints": _names(list(pick.endpoints)), "destination": pick.destination, "score": pick.score}
