"""What a replay has shown: what became of each request, and the figures of a report's row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import nan

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = dict[str, str | int | float | None]

PLACE = ("workload", "engines", "load", "policy")
FIGURES = ("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms", "e2e_p90_ms", "itl_p90_ms", "hit_ratio", "max_over_mean_load")
"""The keys of a row: which case it is, and what came out."""


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """One entry a request, in the order of the workload; times in seconds from the start.

    Attributes:
        arrived: when it came.
        endpoint: the engine that it went to; -1 if it was refused.
        admitted: when the engine took it out of its queue; NaN for refused ones, as are the next two.
        first_token: when it had its first token.
        ended: when it had its last token.
        prompt_tokens: of the prompt.
        cached_tokens: of those, the ones found in the engine's prefix cache.
        answer_tokens: of the answer.
    """

    arrived: Floats
    endpoint: Ints
    admitted: Floats
    first_token: Floats
    ended: Floats
    prompt_tokens: Ints
    cached_tokens: Ints
    answer_tokens: Ints

    @classmethod
    def blank(cls, count: int) -> "Requests":
        """For so many requests, of which nothing is known."""
        times = [np.full(count, nan) for _ in range(4)]
        numbers = [np.zeros(count, dtype=np.int64) for _ in range(3)]
        return cls(times[0], np.full(count, -1, dtype=np.int64), *times[1:], *numbers)

    def __len__(self) -> int:
        return len(self.arrived)

    def since(self, share: float) -> "Requests":
        """Those that came after the first so many of all, a share of them."""
        first = np.argsort(self.arrived, kind="stable")[int(share * len(self)) :]
        return Requests(*(getattr(self, field.name)[first] for field in fields(self)))

    @property
    def ttft(self) -> Floats:
        """Seconds from arrival to first token, of those that were served."""
        return (self.first_token - self.arrived)[self.served]

    @property
    def e2e(self) -> Floats:
        """Seconds from arrival to last token, of those that were served."""
        return (self.ended - self.arrived)[self.served]

    @property
    def hit_ratio(self) -> float:
        """The share of prompt tokens that were found in the engines' prefix caches when a request was admitted."""
        total = int(self.prompt_tokens[self.served].sum())
        return int(self.cached_tokens[self.served].sum()) / total if total else nan

    @property
    def served(self) -> NDArray[np.bool_]:
        """Which ones an engine has answered, shape (n,)."""
        return self.endpoint >= 0


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Times between two tokens of a request: `seconds` each so many times as `tokens` says, shape (m,).

    Without those in which a request had to give its blocks back; steps that only decode count with their mean.
    """

    seconds: Floats
    tokens: Ints

    def quantile(self, share: float) -> float:
        """The least gap that this share of all gaps doesn't exceed; NaN without any."""
        if not len(self.seconds):
            return nan
        order = np.argsort(self.seconds, kind="stable")
        below = np.cumsum(self.tokens[order])
        return float(self.seconds[order][np.searchsorted(below, share * below[-1])])


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One replay.

    Attributes:
        policy: the configuration's name.
        workload: the workload's name.
        engines: how many endpoints there were.
        rate: requests a second that came.
        seed: of the replay.
        preemptions: how often a request had to give its blocks back.
        faults: what plugins have done wrong, by plugin and fault.
        warnings: what the loader had to say about the configuration.
    """

    policy: str
    workload: str
    engines: int
    rate: float
    seed: int
    requests: Requests
    gaps: Gaps
    preemptions: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def refused(self) -> int:
        """How many requests the picker has refused."""
        return int(np.count_nonzero(~self.requests.served))

    @property
    def assigned(self) -> Ints:
        """How many requests each endpoint got, shape (engines,)."""
        return np.bincount(self.requests.endpoint[self.requests.served], minlength=self.engines)

    @property
    def load(self) -> Floats:
        """The mean number of requests at each endpoint, waiting or running, over the replay; shape (engines,)."""
        where = self.requests.endpoint[self.requests.served]
        return np.bincount(where, weights=self.requests.e2e, minlength=self.engines) / (self.span or 1.0)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last token."""
        ended = self.requests.ended[self.requests.served]
        return float(ended.max() - self.requests.arrived.min()) if len(ended) else 0.0

    @property
    def max_over_mean_load(self) -> float:
        """The highest of the endpoints' loads over their mean: 1 where all have the same."""
        mean = float(self.load.mean())
        return float(self.load.max()) / mean if mean else nan


WARM_UP = 0.1
"""The share of the requests, the first ones, that a row leaves out: engines and caches are empty when they come."""


def row(result: Result, load: float, warm_up: float = WARM_UP) -> Row:
    """The report's row: times in milliseconds, null for what there is none of.

    Times and hit ratio are those of the requests after the warm-up; gaps between tokens and loads of endpoints those of
    the whole replay.

    Args:
        result: the replay.
        load: its rate as a share of the capacity.
        warm_up: see `WARM_UP`.
    """
    requests = result.requests.since(warm_up)
    figures = {
        "ttft_p50_ms": quantile(requests.ttft, 0.5) * 1e3,
        "ttft_p90_ms": quantile(requests.ttft, 0.9) * 1e3,
        "ttft_p99_ms": quantile(requests.ttft, 0.99) * 1e3,
        "e2e_p90_ms": quantile(requests.e2e, 0.9) * 1e3,
        "itl_p90_ms": result.gaps.quantile(0.9) * 1e3,
        "hit_ratio": requests.hit_ratio,
        "max_over_mean_load": result.max_over_mean_load,
    }
    place: Row = {
        "workload": result.workload,
        "engines": result.engines,
        "load": load,
        "policy": result.policy,
    }
    return place | {name: None if np.isnan(value) else round(value, 4) for name, value in figures.items()}


def quantile(values: Floats, share: float) -> float:
    """A quantile; NaN of nothing."""
    return float(np.quantile(values, share)) if len(values) else nan


def mean_row(rows: Sequence[Row]) -> Row:
    """Rows of one case under several seeds as one: the mean of each figure, null if one of them is."""
    found = dict(rows[0])
    for name in FIGURES:
        values = [each[name] for each in rows]
        numbers = [value for value in values if isinstance(value, int | float)]
        found[name] = round(sum(numbers) / len(values), 4) if len(numbers) == len(values) else None
    return found
