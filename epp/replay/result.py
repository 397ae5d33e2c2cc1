"""What a replay has shown: what became of each request, and the figures of a report's row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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

    @property
    def ttft(self) -> Floats:
        """Seconds from arrival to first token, of those that were served."""
        return (self.first_token - self.arrived)[self.served]

    @property
    def e2e(self) -> Floats:
        """Seconds from arrival to last token, of those that were served."""
        return (self.ended - self.arrived)[self.served]

    @property
    def served(self) -> NDArray[np.bool_]:
        """Which ones an engine has answered, shape (n,)."""
        return self.endpoint >= 0


@dataclass(frozen=True, slots=True, eq=False)
class Gaps:
    """Times between two tokens of a request: `seconds` each so many times as `tokens` says, shape (m,)."""

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
    def hit_ratio(self) -> float:
        """The share of prompt tokens that were found in the engines' prefix caches when a request was admitted."""
        served = self.requests.served
        total = int(self.requests.prompt_tokens[served].sum())
        return int(self.requests.cached_tokens[served].sum()) / total if total else nan

    @property
    def assigned(self) -> Ints:
        """How many requests each endpoint got, shape (engines,)."""
        return np.bincount(self.requests.endpoint[self.requests.served], minlength=self.engines)

    @property
    def load(self) -> Floats:
        """The mean number of requests at each endpoint, waiting or running, over the replay; shape (engines,)."""
        served = self.requests.served
        span = self.span
        where = self.requests.endpoint[served]
        return np.bincount(where, weights=self.requests.e2e, minlength=self.engines) / (span or 1.0)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last token."""
        served = self.requests.served
        return float(self.requests.ended[served].max() - self.requests.arrived.min()) if served.any() else 0.0

    @property
    def max_over_mean_load(self) -> float:
        """The highest of the endpoints' loads over their mean: 1 where all have the same."""
        load = self.load
        mean = float(load.mean())
        return float(load.max()) / mean if mean else nan

    def quantile(self, times: Floats, share: float) -> float:
        """A quantile of times in milliseconds; NaN without any."""
        return float(np.quantile(times, share)) * 1e3 if len(times) else nan

    @property
    def ttft_p90(self) -> float:
        """The TTFT that nine of ten requests keep, seconds."""
        return self.quantile(self.requests.ttft, 0.9) / 1e3


def row(result: Result, load: float) -> dict[str, str | int | float | None]:
    """The report's row: times in milliseconds, null for what there is none of.

    Args:
        result: the replay.
        load: its rate as a share of the capacity.
    """
    requests = result.requests
    figures = {
        "ttft_p50_ms": result.quantile(requests.ttft, 0.5),
        "ttft_p90_ms": result.quantile(requests.ttft, 0.9),
        "ttft_p99_ms": result.quantile(requests.ttft, 0.99),
        "e2e_p90_ms": result.quantile(requests.e2e, 0.9),
        "itl_p90_ms": result.gaps.quantile(0.9) * 1e3,
        "hit_ratio": result.hit_ratio,
        "max_over_mean_load": result.max_over_mean_load,
    }
    place: dict[str, str | int | float | None] = {
        "workload": result.workload,
        "engines": result.engines,
        "load": load,
        "policy": result.policy,
    }
    return place | {name: None if np.isnan(value) else round(value, 4) for name, value in figures.items()}
