"""The log: one line of JSON an event, one a request; what is not shown is null, and prompts never enter it."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from epp.errors import BadRequest, Internal, ResourceExhausted
from epp.observe.logs import DELAY, JsonFormatter, RequestLog, level_of
from epp.observe.record import Record
from epp.plugin import Outcome, Usage
from tests.unit.observe.parts import decided, endpoints, record


class Later:
    """Calls what it was told to when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.calls.append((seconds, function))

    def run(self) -> None:
        calls, self.calls = self.calls, []
        for _, function in calls:
            function()


def line_of(noted: Record) -> dict[str, Any]:
    stream = io.BytesIO()
    log = RequestLog(stream, Later())
    log.write(noted)
    log.flush()
    (line,) = stream.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


FIELDS = """timestamp level message request_id model target_model endpoint score profile status duration_ms ttft_ms
tokens prompt_tokens cached_tokens ending error dropped_reason""".split()  # noqa: SIM905 (reads better)


def test_a_whole_request() -> None:
    """Every field, in the order of the line."""
    outcome = Outcome(200, "10.0.0.3:8000", "done", 0.1234567, 2.5, 300, True, Usage(10, 20, 5))
    line = line_of(record(outcome=outcome))
    assert list(line) == FIELDS
    assert line == {
        "timestamp": "2017-07-14T02:40:00.000Z",
        "level": "info",
        "message": "request",
        "request_id": "r-1",
        "model": "m",
        "target_model": "m",
        "endpoint": "10.0.0.3:8000",
        "score": 3,
        "profile": "default",
        "status": 200,
        "duration_ms": 2500,
        "ttft_ms": 123.457,
        "tokens": 20,
        "prompt_tokens": 10,
        "cached_tokens": 5,
        "ending": "done",
        "error": None,
        "dropped_reason": None,
    }


NOT_SHOWN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "the request's headers alone": (
        {"model": "", "size": None, "outcome": Outcome(duration=0.0)},
        {"model", "target_model", "status", "ttft_ms", "tokens", "prompt_tokens", "cached_tokens", "ending"},
    ),
    "the response's headers, too": (
        {"outcome": Outcome(200, cause="done", duration=0.0)},
        {"ttft_ms", "tokens", "prompt_tokens", "cached_tokens"},
    ),
    "a body without a usage": (
        {"outcome": Outcome(200, cause="done", duration=0.0, first_byte=0.0, response_bytes=0)},
        {"tokens", "prompt_tokens", "cached_tokens"},
    ),
    "a usage without details": (
        {"outcome": Outcome(200, cause="done", duration=0.0, first_byte=0.0, usage=Usage(0, 0))},
        {"cached_tokens"},
    ),
    "a request that never got whole": (
        {"decision": None, "model": "", "outcome": Outcome(cause="client-gone", duration=0.0)},
        {
            *("model", "target_model", "endpoint", "score", "profile", "status"),
            *("ttft_ms", "tokens", "prompt_tokens", "cached_tokens"),
        },
    ),
}


@pytest.mark.parametrize(("fields", "null"), NOT_SHOWN.values(), ids=NOT_SHOWN)
def test_what_is_not_shown_is_null(fields: dict[str, Any], null: set[str]) -> None:
    """Null is "unknown"; 0 is a value like any other."""
    line = line_of(record(**fields))
    assert {name for name, value in line.items() if value is None} == null | {"error", "dropped_reason"}
    assert list(line) == FIELDS


REFUSED = {
    "bad request": (BadRequest("not JSON"), 400, "info", None),
    "too busy": (ResourceExhausted("busy", reason="rejected-saturated"), 429, "info", "rejected-saturated"),
    "a fault of ours": (Internal("sorry"), 500, "error", None),
}


@pytest.mark.parametrize(("error", "status", "level", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request(error: Any, status: int, level: str, reason: str | None) -> None:
    """Our own answer's status, why, and the level that it deserves."""
    nobody = decided(endpoints(labels={"llm-d.ai/role": "prefill"}))
    line = line_of(record(decision=nobody, error=error, outcome=Outcome(cause="refused", duration=0.0)))
    assert (line["status"], line["level"], line["dropped_reason"]) == (status, level, reason)
    assert (line["error"], line["ending"], line["endpoint"]) == (error.message, "refused", None)


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (404, "info"), (500, "error"), (None, "info")])
def test_the_level_of_a_response(status: int | None, level: str) -> None:
    assert line_of(record(outcome=Outcome(status)))["level"] == level


def test_lines_are_written_together() -> None:
    """After a while, or when they are flushed; each once and in order."""
    stream, later = io.BytesIO(), Later()
    log = RequestLog(stream, later)
    for number in range(3):
        log.write(record(f"r-{number}"))
    assert stream.getvalue() == b""
    assert [seconds for seconds, _ in later.calls] == [DELAY]
    later.run()
    log.write(record("r-3"))
    log.flush()
    later.run()
    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["r-0", "r-1", "r-2", "r-3"]


def test_no_stream_no_lines() -> None:
    """Below the verbosity that has them they cost nothing."""
    later = Later()
    log = RequestLog(None, later)
    log.write(record())
    log.flush()
    assert later.calls == []


def test_odd_text_stays_one_line() -> None:
    """A client chooses its ids and models."""
    odd = 'quote " newline \n tab \t nul \0 caf\u00e9 \u2028'
    line = line_of(record(odd, model=odd))
    assert (line["request_id"], line["model"]) == (odd, odd)


# --- other records


def test_a_record_of_any_logger() -> None:
    """Timestamp, level, message, logger, and the exception if there is one."""
    try:
        raise KeyError("k")
    except KeyError:
        made = logging.LogRecord("epp.x", logging.WARNING, "f.py", 1, "%s of %d\n", ("one", 2), sys.exc_info())
    made.created = 1.5e9 + 0.0625
    line = json.loads(JsonFormatter().format(made))
    assert "KeyError: 'k'" in line.pop("exception")
    assert line == {
        "timestamp": "2017-07-14T02:40:00.062Z",
        "level": "warning",
        "message": "one of 2\n",
        "logger": "epp.x",
    }


@pytest.mark.parametrize(
    ("verbosity", "level"), [(0, "ERROR"), (1, "WARNING"), (2, "INFO"), (3, "INFO"), (4, "DEBUG"), (9, "DEBUG")]
)
def test_verbosity(verbosity: int, level: str) -> None:
    assert logging.getLevelName(level_of(verbosity)) == level


def test_everything_goes_to_standard_error_as_json() -> None:
    """Warnings of libraries too; standard output is left alone."""
    script = (
        "import logging, warnings; from epp.observe.logs import configure; configure(1);"
        "logging.getLogger('a').warning('w'); logging.getLogger('a').info('i'); warnings.warn('old')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (len(lines), done.stdout) == (2, "")
    assert lines[0]["message"] == "w"
    assert "old" in lines[1]["message"]
