"""JSON logs: one line an event, one line a request. Prompts never enter them."""

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO

import msgspec

from epp.observe.record import Record

DELAY = 0.05

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def _timestamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


class JsonFormatter(logging.Formatter):
    """One line of JSON a record: timestamp, level, message, logger, and the exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "timestamp": _timestamp(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line).decode()


def level_of(verbosity: int) -> int:
    """The level of llm-d's `-v`: errors at 0, warnings at 1, info from 2, debug from 4."""
    return (logging.ERROR, logging.WARNING, logging.INFO, logging.INFO)[verbosity] if verbosity < 4 else logging.DEBUG


def configure(verbosity: int) -> None:
    """Sends every logger's records to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level_of(verbosity), handlers=[handler], force=True)
    logging.captureWarnings(True)


class RequestLog:
    """Writes one line a request, at its end. What the body mode doesn't show is null, never 0.

    Lines are gathered for `DELAY` seconds: a system call for each would cost as much as all the rest of it.

    Args:
        stream: where to write; None for nowhere.
        later: calls a function after so many seconds, as an event loop's `call_later` does.
    """

    def __init__(self, stream: BinaryIO | None, later: Callable[[float, Callable[[], None]], object]) -> None:
        self._stream = stream
        self._later = later
        self._lines: list[bytes] = []

    def write(self, record: Record) -> None:
        """Writes the line of a request that has ended; nothing if there is no stream."""
        if self._stream is None:
            return
        if not self._lines:
            self._later(DELAY, self.flush)
        self._lines.append(_encode(_line(record)))

    def flush(self) -> None:
        """Writes what has been gathered."""
        lines, self._lines = self._lines, []
        if self._stream is not None and lines:
            self._stream.write(b"\n".join(lines) + b"\n")
            self._stream.flush()


def _line(record: Record) -> dict[str, Any]:
    outcome, error, usage = record.outcome, record.error, record.outcome.usage
    pick = record.decision.found() if record.decision is not None else None
    status = error.status if error is not None else outcome.status
    return {
        "timestamp": _timestamp(record.wall),
        "level": "info" if status is None or status < 500 else "error",
        "message": "request",
        "request_id": record.id,
        "model": record.model or None,
        "target_model": record.target_model or record.model or None,
        "endpoint": outcome.served_by or (pick.endpoints[0].hostport if pick is not None else None),
        "score": round(pick.score, 6) if pick is not None and record.observed is None else None,
        "profile": pick.profile if pick is not None else None,
        "status": status,
        "duration_ms": _milliseconds(outcome.duration),
        "ttft_ms": _milliseconds(outcome.first_byte),
        "tokens": usage.completion_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "ending": outcome.cause,
        "error": error.message if error is not None else None,
        "dropped_reason": error.reason if error is not None else None,
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
