"""What is noted of one request while it passes, for the metrics, the log and the explanation."""

from typing import Any

import msgspec

from epp.errors import RequestError
from epp.request import Outcome


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
    outcome: Outcome = msgspec.field(default_factory=Outcome)
