"""Which endpoints may be picked, judged by failures in a row. No I/O.

The state is `_failures` and `_out`; what follows from it is written to `pool.eligible`.
"""

from collections.abc import Callable
from typing import Literal

from epp.pool import Endpoint, Pool

State = Literal["out", "in", "restarted"]
OnChange = Callable[[Endpoint, State], None]


class Health:
    """Takes endpoints out after some failures in a row, and back in when a scrape works.

    An endpoint that refuses connections is out for good until it works. One that is reachable but whose metrics can't
    be had may well serve: if everybody would be out, those stay eligible, for a fault in the metrics alone is no
    reason to answer 503.

    Args:
        pool: whose `eligible` column is written; a new endpoint is eligible.
        threshold: how many failures in a row take an endpoint out.
        on_change: hears of "out" and "in".
    """

    def __init__(self, pool: Pool, threshold: int, on_change: OnChange) -> None:
        self._pool = pool
        self._threshold = threshold
        self._on_change = on_change
        self._failures: dict[int, int] = {}
        self._out: dict[int, bool] = {}  # slot -> reachable
        self._stranded = False

    def __repr__(self) -> str:
        return f"<Health: {len(self._out)} of {len(self._pool)} out>"

    def failed(self, slot: int, *, reachable: bool) -> None:
        """A scrape or a connection of a request has failed."""
        self._failures[slot] = self._failures.get(slot, 0) + 1
        if self._failures[slot] < self._threshold:
            return
        known = slot in self._out
        self._out[slot] = reachable
        self._apply(slot)
        if not known:
            self._tell(slot, "out")

    def worked(self, slot: int) -> None:
        """A scrape has worked."""
        self._failures.pop(slot, None)
        if self._out.pop(slot, None) is not None:
            self._apply(slot)
            self._tell(slot, "in")

    def forget(self, slot: int) -> None:
        """The endpoint has left; call it after the pool has let it go."""
        self._failures.pop(slot, None)
        self._out.pop(slot, None)
        self._review()

    def joined(self) -> None:
        """Endpoints have come, and are eligible: whoever was kept for want of others is so no longer."""
        self._review()

    def _apply(self, slot: int) -> None:
        self._pool.eligible[slot] = self._may_serve(slot)
        self._review()

    def _review(self) -> None:
        stranded = len(self._out) >= len(self._pool)
        if stranded != self._stranded:
            self._stranded = stranded
            for slot in self._out:
                self._pool.eligible[slot] = self._may_serve(slot)

    def _may_serve(self, slot: int) -> bool:
        reachable = self._out.get(slot)
        return reachable is None or (reachable and self._stranded)

    def _tell(self, slot: int, state: State) -> None:
        endpoint = self._pool.endpoints[slot]
        if endpoint is not None:
            self._on_change(endpoint, state)
