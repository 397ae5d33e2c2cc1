"""Decisions without effect: the shadow's of a request, and ours of one that another picker has sent on its way.

A shadow decides over what the decision in force was made on: the same endpoints, the same columns as they were then. It
runs once the answer has been handed over. What it is compared by:

    regret = (total of the other decision's first choice - total of the destination) / (sum of all |weights|)

with the totals of the other decision's primary profile: what, by its points, it would have won. It lies between -1 and
1, where nobody is stale, and is never negative for a picker that takes the highest total. It can't be said where the
destination was filtered out, or where the other decision found nobody.
"""

from epp.errors import RequestError
from epp.hooks import Hooks
from epp.observe.record import Comparison
from epp.plugin import Candidates, Pick, Plugged, Profile, Request
from epp.pool import Pool
from epp.schedule import Decision, Guard, Stage, decide, produce

ROUNDING = 1e-9
"""Totals that differ by less than this share of all points are equal: the order of adding makes such differences."""

ELSEWHERE = Profile("observed", (), (), Plugged("another picker", "", None))
"""The profile under whose name goes what another picker has decided."""


def remember(shadow: Hooks, c: Candidates) -> None:
    """Takes the pool's columns that the shadow reads while they are those of this decision."""
    for key in shadow.reads:
        c[key]


def shadow_decision(shadow: Hooks, request: Request, taken: Decision, guard: Guard) -> Decision:
    """What the shadow's profiles decide; its observers then hear what has really happened.

    Args:
        shadow: the shadow's hooks.
        request: with its prompts.
        taken: the decision in force.
        guard: around plugin calls.
    """
    c = taken.candidates.again()
    produce(shadow.router, request, c, guard)
    try:
        decision = decide(shadow.router, request, c, guard)
    except RequestError:
        decision = Decision(c)
    shadow.reads.update([key for key in c.read if key.scope == "pool"])
    for plugged, picked in shadow.picked:
        guard.call("PreRequest", plugged, picked, request, taken, c)
    return decision


def taken_elsewhere(ours: Decision, pool: Pool, slot: int) -> Decision:
    """The decision of another picker for an endpoint, as if it were one of ours for the same candidates."""
    endpoint = pool.endpoints[slot]
    assert endpoint is not None  # noqa: S101 (the slot is of an endpoint that was found by its address)
    c = ours.candidates
    return Decision(c, [Stage(ELSEWHERE, c, c, pick=Pick(ELSEWHERE.name, (slot,), (endpoint,), 0.0))], ELSEWHERE.name)


def compared(taken: Pick, other: Decision) -> Comparison:
    """Where a request went against where another decision would have sent it."""
    stage = next((s for s in reversed(other.stages) if s.profile.name == other.handler_result), None)
    if stage is None or stage.pick is None:
        return Comparison(None, agreed=False, regret=None)
    choice, slot = stage.pick.slots[0], taken.slots[0]
    return Comparison(stage.pick.endpoints[0].hostport, choice == slot, _regret(stage, choice, slot))


def _regret(stage: Stage, choice: int, slot: int) -> float | None:
    slots, totals = stage.candidates.slots, stage.totals
    places = [int(place) for each in (choice, slot) for place in (slots == each).nonzero()[0]]
    if totals is None or len(places) < 2:
        return None
    difference = float(totals[places[0]] - totals[places[1]])
    share = difference / stage.profile.bound if stage.profile.bound else 0.0  # without a scorer all are equal
    # Beyond the bounds is who ranks last for lack of fresh metrics.
    return 0.0 if abs(share) < ROUNDING else min(max(share, -1.0), 1.0)
