"""JSON logs: one line an event, one line a request. Prompts never enter them."""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO

import msgspec

from epp.observe.record import Record

_encode = msgspec.json.Encoder().encode


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


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
    """Writes one line a request, at its end. What the body mode doesn't show is null, never 0."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def write(self, record: Record) -> None:
        """Writes the line of a request that has ended; nothing if there is no stream."""
        if self._stream is None:
            return
        self._stream.write(_encode(_line(record)) + b"\n")
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
        "endpoint": outcome.served_by or (pick.endpoints[0].hostport if pick is not None else None),
        "score": round(pick.score, 6) if pick is not None else None,
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
