"""What the demo shows and reports: figures, tables, lines, and the picker's decisions as rows."""

import io
import json
import math

import pytest
from rich.console import Console

from epp.demo.load import Answer
from epp.demo.report import as_text, percentile, summarize
from epp.demo.run import Comparison
from epp.demo.table import Lines, LiveTable, Progress, display
from epp.demo.watch import Choice, Row, Snapshot, choice, samples

GOOD = Answer(streamed=True, ttft=0.050, duration=0.2)
BAD = Answer(streamed=True, ttft=9.0, duration=9.0, error="status 503: no")


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        pytest.param([3.0, 1.0, 2.0], 50, 2.0, id="the middle"),
        pytest.param([4.0, 1.0, 2.0, 3.0], 50, 2.0, id="the lower middle"),
        pytest.param(list(range(1, 101)), 99, 99, id="99 of 100"),
        pytest.param([1.0, 2.0], 99, 2.0, id="few values"),
        pytest.param([7.0], 1, 7.0, id="one value"),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_percentile_of_nothing() -> None:
    assert math.isnan(percentile([], 50))


def test_failed_and_missing_answers_count_as_failures_and_not_in_the_times() -> None:
    summary = summarize(4, [GOOD, GOOD, BAD], hits=30, queries=40, served={"a:1": 2})
    assert (summary.requests, summary.failures) == (4, 2)
    assert (summary.ttft_p50_ms, summary.ttft_p99_ms) == (50.0, 50.0)
    assert summary.hit_ratio == 0.75
    assert summary.errors == ("status 503: no",)


def test_json_has_both_passes_and_null_for_what_is_unknown() -> None:
    picker = summarize(1, [GOOD], hits=1, queries=3, served={"a:1": 1})
    random = summarize(1, [BAD], hits=0, queries=0, served={"a:1": 0})
    comparison = Comparison(picker, random)
    assert json.loads(json.dumps(comparison.data())) == {
        "requests": 1,
        "failures": 0,
        "ttft_p50_ms": 50.0,
        "ttft_p99_ms": 50.0,
        "hit_ratio": 0.3333,
        "per_endpoint": {"a:1": 1},
        "random": {
            "requests": 1,
            "failures": 1,
            "ttft_p50_ms": None,
            "ttft_p99_ms": None,
            "hit_ratio": None,
            "per_endpoint": {"a:1": 0},
        },
    }
    assert not comparison.ok
    assert Comparison(picker, picker).ok


def test_text_has_both_passes_side_by_side() -> None:
    picker = summarize(1, [GOOD], hits=1, queries=2, served={"a:1": 1, "b:1": 0})
    random = summarize(1, [BAD], hits=0, queries=0, served={"a:1": 0, "b:1": 0})
    lines = as_text(picker, random).splitlines()
    rows = {" ".join(line.split()) for line in lines}
    assert {"TTFT p50 50 ms -", "prefix hit ratio 50% -", "failures 0 1", "requests an endpoint 1 / 0 0 / 0"} <= rows
    assert "failed: status 503: no" in lines


SNAPSHOT = Snapshot(
    (
        Row("127.0.0.1:81", 1, 4, 0.25, 5, 30, 40, 12),
        Row("127.0.0.1:82", math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan),
    ),
    (Choice("0123456789", "127.0.0.1:81", {"127.0.0.1:81": 6.5, "127.0.0.1:82": 4.0}, {"queue-scorer": 2.0}, ""),),
)


def shown(times: list[float], *, terminal: bool) -> str:
    """What is printed for a snapshot at each of these times."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160, _environ={})
    with display(console) as screen:
        assert isinstance(screen, LiveTable if terminal else Lines)
        for elapsed in times:
            screen.show(Progress("picker", elapsed, 20, 15, 1), SNAPSHOT)
    return text.getvalue()


def test_a_terminal_gets_tables() -> None:
    text = shown([2.0], terminal=True)
    for words in ("20 sent, 15 answered, 1 failed", "127.0.0.1:81", "25%", "75%", ":81 6.50  :82 4.00", "2.00 queue"):
        assert words in text


def test_elsewhere_a_line_a_second_and_the_decisions_at_the_end() -> None:
    *lines, decision = shown([0.0, 0.5, 1.0, 1.4, 2.1], terminal=False).splitlines()
    assert len(lines) == 3
    assert decision == "decision 01234567 to 127.0.0.1:81  :81 6.50  :82 4.00  = 2.00 queue"
    assert ":81 waiting 1 running 4 KV 25% in flight 5 hits 75% requests 12" in lines[0]
    assert ":82 waiting - running - KV - in flight - hits - requests -" in lines[0]


def test_samples_of_a_page() -> None:
    page = '# TYPE a gauge\na{x="1",y="two words"} 3.5\nab 1\na 2\n'
    assert samples(page) == {"a": [('x="1",y="two words"', 3.5), ("", 2.0)], "ab": [("", 1.0)]}


def test_a_decision_as_a_row() -> None:
    record = {
        "request_id": "r",
        "destination": "127.0.0.1:81",
        "profile": "default",
        "error": None,
        "candidates": [{"endpoint": "one", "address": "127.0.0.1:81"}, {"endpoint": "two", "address": "127.0.0.1:82"}],
        "profiles": [
            {"profile": "other", "totals": {"one": 9.0}, "scorers": []},
            {
                "profile": "default",
                "totals": {"one": 2.5, "two": 1.0},
                "scorers": [{"plugin": "queue-scorer", "scores": {"one": {"weighted": 2.5}, "two": {"weighted": 1.0}}}],
            },
        ],
    }
    totals = {"127.0.0.1:81": 2.5, "127.0.0.1:82": 1.0}
    assert choice(record) == Choice("r", "127.0.0.1:81", totals, {"queue-scorer": 2.5}, "")


def test_a_refusal_as_a_row() -> None:
    record = {
        "request_id": "r",
        "destination": None,
        "profile": None,
        "error": {"message": "no endpoints"},
        "candidates": [],
        "profiles": [],
    }
    assert choice(record) == Choice("r", "", {}, {}, "no endpoints")


def test_a_summary_without_answers() -> None:
    assert summarize(0, [], 0, 0, {}).data()["ttft_p50_ms"] is None
