"""Scheduling: a profile is filters, then weighted scores, then a pick. Synchronous and pure but for the plugins."""

from epp.schedule.decision import Decision, Stage
from epp.schedule.fetch import enter_fetched, fetch
from epp.schedule.gate import admit, screen
from epp.schedule.guard import Guard, Unguarded
from epp.schedule.scheduler import decide, produce
from epp.schedule.tokens import tokenized

__all__ = [
    "Decision",
    "Guard",
    "Stage",
    "Unguarded",
    "admit",
    "decide",
    "enter_fetched",
    "fetch",
    "produce",
    "screen",
    "tokenized",
]
