"""One tree of errors; each knows its HTTP status, its code and the reason of a dropped request.

Codes and statuses are those of llm-d's picker (see docs/protocol.md); `payload` renders the OpenAI-style body.
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar, Literal

import msgspec

DroppedReason = Literal[
    "rejected-saturated",
    "rejected-no-endpoints",
    "rejected-ttl-expired",
    "rejected-context-cancelled",
    "rejected-shutting-down",
    "evicted",
]


class EppError(Exception):
    """The root of every error of this project."""


class ConfigError(EppError):
    """A configuration, a file or an argument that can't be used; the message names the place and the remedy."""


class WrongParameters(ConfigError, ValueError):
    """Parameters of a plugin that can't be used.

    Attributes:
        faults: each thing that is wrong: its place, as keys and indices below the parameters (in a validator: below the
            model that it belongs to), and what is wrong there.
    """

    def __init__(self, *faults: tuple[tuple[str | int, ...], str]) -> None:
        super().__init__("; ".join(": ".join((*map(str, place), message)) for place, message in faults))
        self.faults = faults


class UnknownPlugin(ConfigError, LookupError, ValueError):
    """A plugin asks for another one that isn't there.

    Attributes:
        name: that it asked for.
    """

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class RequestError(EppError):
    """Ends one request with an HTTP status; nothing else is disturbed.

    Attributes:
        status: the HTTP status of the answer.
        code: the name that the metrics count it under.
        kind: OpenAI's `error.type`.
        reason: the value of `x-llm-d-request-dropped-reason`, or None where none applies.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "Internal"
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, reason: DroppedReason | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason

    def payload(self, request_id: str) -> bytes:
        """The JSON body of the answer, in the form that OpenAI's clients expect."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": None,
            "code": self.reason or self.code,
            "request_id": request_id,
        }
        return msgspec.json.encode({"error": error})


class BadRequest(RequestError):
    """The request can't be read: not JSON, no model, a field of the wrong type."""

    status, code, kind = 400, "BadRequest", "invalid_request_error"


class NotFound(RequestError):
    """The request names something that is not there."""

    status, code, kind = 404, "NotFound", "not_found_error"


def unknown_model(model: str, known: Iterable[str]) -> str:
    """What a client is told that asks for a model which is not served: the nearest one, or all that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(model, names, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(names)}"
    return f"The model `{model[:200]}` does not exist; {hint}"


class PreconditionFailed(RequestError):
    """`Prefer: if-available`, and nobody has the prompt's prefix."""

    status, code, kind = 412, "PreconditionFailed", "invalid_request_error"


class PayloadTooLarge(RequestError):
    """The body is longer than --max-request-body-bytes."""

    status, code, kind = 413, "PayloadTooLarge", "invalid_request_error"


class ResourceExhausted(RequestError):
    """There are endpoints, and all of them have too much to do."""

    status, code, kind = 429, "ResourceExhausted", "rate_limit_error"


class Internal(RequestError):
    """A fault of ours."""


class ServiceUnavailable(RequestError):
    """There is no endpoint that may serve the request."""

    status, code, kind = 503, "ServiceUnavailable", "service_unavailable_error"
