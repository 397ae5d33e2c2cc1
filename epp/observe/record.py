"""What is noted of one request while it passes, for the metrics, the log and the explanation."""

from typing import Any

import msgspec

from epp.errors import RequestError
from epp.prefix import Chain
from epp.request import Outcome


class Comparison(msgspec.Struct, frozen=True):
    """Where a request went against where another decision would have sent it; docs/decision-log.md has the formulas.

    Attributes:
        other: `ip:port` of the other decision's first choice; None if it found nobody.
        agreed: whether both mean the same endpoint.
        regret: what the request's own destination is short of, by the other decision's totals, as a share of all points
            that there are: between 0 and 1 for a picker that takes the highest total; None where it can't be said.
    """

    other: str | None
    agreed: bool
    regret: float | None

    @property
    def result(self) -> str:
        """Under which it is counted: "agreed", "tie" (another endpoint of equal total), "differed" or "nobody"."""
        if self.other is None:
            return "nobody"
        if self.agreed:
            return "agreed"
        return "tie" if self.regret == 0 else "differed"


class Seen(msgspec.Struct, frozen=True, eq=False, gc=False):
    """What a decision log keeps of the request itself.

    Attributes:
        prompt_bytes: the length of all prompts together.
        max_tokens: the most tokens to generate; None if the client doesn't say.
        streaming: whether the client asks for a streamed answer.
        chains: of each prompt the hashes of its blocks.
    """

    prompt_bytes: int
    max_tokens: int | None
    streaming: bool
    chains: tuple[Chain, ...]


class Record(msgspec.Struct, eq=False):
    """One request; it never refers to the request's text.

    Attributes:
        id: `x-request-id`; several records may share it.
        wall: when it arrived, seconds since the epoch.
        started: when it arrived, on the monotonic clock.
        model: the model that the client names; "" if none or not yet known.
        target_model: the model that is asked for it.
        rewrite: the InferenceModelRewrite that has chosen it; "" for none.
        size: bytes of the request's body; None if the body mode doesn't show it.
        decision: None until there is one.
        decided_in: seconds that the decision took.
        processed_in: seconds from the arrival to the replies.
        matched: the prompt tokens that the pick is believed to hold; None if nobody keeps an index.
        matchable: the prompt tokens that could match.
        indexer: name and type of the plugin that says so.
        error: what the client was told if we refused it.
        seen: what a decision log keeps of the request; None without one.
        observed: `ip:port` of where another picker has sent it, beside which we only look on; None if we route it.
        ours: of an observed request, what we would have decided; `decision` is the other picker's then.
        shadow: what the shadow's profiles decided.
        against_shadow: the destination against the shadow's.
        against_ours: of an observed request, the other picker's destination against ours.
    """

    id: str
    wall: float
    started: float
    model: str = ""
    target_model: str = ""
    rewrite: str = ""
    fairness_id: str = "default-flow"
    priority: int = 0
    size: int | None = None
    decision: Any = None
    decided_in: float | None = None
    processed_in: float | None = None
    matched: float | None = None
    matchable: float | None = None
    indexer: tuple[str, str] | None = None
    error: RequestError | None = None
    seen: Seen | None = None
    observed: str | None = None
    ours: Any = None
    shadow: Any = None
    against_shadow: Comparison | None = None
    against_ours: Comparison | None = None
    outcome: Outcome = msgspec.field(default_factory=Outcome)
