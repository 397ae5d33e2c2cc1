"""What a pass came to, and two passes side by side, for people and as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from epp.demo.load import Answer


@dataclass(frozen=True, slots=True)
class Summary:
    """One pass.

    Attributes:
        ttft_p50_ms: of the answers that didn't fail, in milliseconds; NaN without any. So is `ttft_p99_ms`.
        hit_ratio: prompt tokens that the engines found in their caches, of all they looked up; NaN without any.
        per_endpoint: requests that each engine served, by address.
        errors: why requests failed, each reason once.
    """

    requests: int
    failures: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    hit_ratio: float
    per_endpoint: Mapping[str, int]
    errors: tuple[str, ...] = ()

    def data(self) -> dict[str, Any]:
        """For JSON, with null for NaN."""
        return {
            "requests": self.requests,
            "failures": self.failures,
            "ttft_p50_ms": _number(self.ttft_p50_ms, 1),
            "ttft_p99_ms": _number(self.ttft_p99_ms, 1),
            "hit_ratio": _number(self.hit_ratio, 4),
            "per_endpoint": dict(self.per_endpoint),
        }


def summarize(calls: int, answers: Sequence[Answer], hits: float, queries: float, served: Mapping[str, int]) -> Summary:
    """The summary of a pass; a call without an answer counts as failed."""
    good = [answer.ttft * 1000 for answer in answers if answer.error is None]
    return Summary(
        requests=calls,
        failures=calls - len(good),
        ttft_p50_ms=percentile(good, 50),
        ttft_p99_ms=percentile(good, 99),
        hit_ratio=hits / queries if queries else math.nan,
        per_endpoint=served,
        errors=tuple(dict.fromkeys(answer.error for answer in answers if answer.error is not None)),
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 values don't exceed (nearest rank); NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def as_text(picker: Summary, random: Summary) -> str:
    """Both passes as a small table."""
    rows = [
        ("", "picker", "random"),
        ("requests", f"{picker.requests}", f"{random.requests}"),
        ("failures", f"{picker.failures}", f"{random.failures}"),
        ("TTFT p50", _ms(picker.ttft_p50_ms), _ms(random.ttft_p50_ms)),
        ("TTFT p99", _ms(picker.ttft_p99_ms), _ms(random.ttft_p99_ms)),
        ("prefix hit ratio", _percent(picker.hit_ratio), _percent(random.hit_ratio)),
        ("requests an endpoint", _spread(picker), _spread(random)),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
    notes = [
        "TTFT: from sending a request to the first byte of the body; an answer in one piece has it at its end.",
        "Hit ratio: prompt tokens found in the engines' caches, of those looked up, from the engines' own counters.",
    ]
    reasons = [f"failed: {reason}" for summary in (picker, random) for reason in summary.errors[:5]]
    return "\n".join([*lines, "", *notes, *reasons])


def _number(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0f} ms"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def _spread(summary: Summary) -> str:
    return " / ".join(map(str, summary.per_endpoint.values()))
