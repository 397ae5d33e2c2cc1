"""The parts of observing joined: where what happens to requests is noted, and when it is entered."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from epp.observe.decision_log import DecisionLog
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_AFTER = 0.05
"""Seconds that what happens may wait to be entered."""


@dataclass(slots=True)
class Observability:
    """Where what happens is noted.

    Metrics, log lines and the ring of decisions are entered in batches, in the order in which things happened:
    together, with their code and data still in the caches, they cost half of what they cost one by one. Whoever shows
    them calls `settle` first.

    Attributes:
        later: calls a function after so many seconds, as an event loop's `call_later` does; None enters at once.
        log: the decision log; None for none.
    """

    metrics: Metrics
    decisions: Decisions
    requests: RequestLog
    guard: TimingGuard
    later: Callable[[float, Callable[[], None]], object] | None = None
    log: DecisionLog | None = None
    _notes: list[tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=list)

    def note(self, function: Callable[..., object], *arguments: Any) -> None:
        """Has the function called with these arguments, soon."""
        if not self._notes and self.later is not None:
            self.later(SETTLE_AFTER, self.settle)
        self._notes.append((function, arguments))
        if self.later is None:
            self.settle()

    def settle(self) -> None:
        """Enters what has been noted; what fails is logged, and disturbs nothing else."""
        notes, self._notes = self._notes, []
        for function, arguments in notes:
            try:
                function(*arguments)
            except Exception:
                log.exception("a note of what happened could not be entered")
