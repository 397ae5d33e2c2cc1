"""Envoy's own errors in the form of OpenAI's, as the picker's are (`epp.errors`)."""

from typing import Any, NamedTuple

from epp.envoy.filters import typed

_OWN = "response.code_details != '' && !('content-type' in response.headers)"
"""Holds for an error of Envoy's: the picker's answers come with a content type, or with no details (llm-d's)."""


class _Kind(NamedTuple):
    first: int
    """The lowest status."""
    last: int
    """The highest status."""
    type: str
    """`error.type`."""
    code: str
    """`error.code`."""
    message: str = "%LOCAL_REPLY_BODY%"
    """`error.message`, a format of Envoy's; Envoy's own text is empty for some errors."""
    details: str = ""
    """What Envoy's response code details begin with."""


_PICKER = "ext_proc_error"
_REFUSED = "Envoy refused the request: %RESPONSE_CODE_DETAILS%"
_KINDS = (
    _Kind(503, 503, "service_unavailable_error", "ServiceUnavailable", "the endpoint picker can't be reached", _PICKER),
    _Kind(504, 504, "server_error", "DeadlineExceeded", "the endpoint picker took too long", _PICKER),
    _Kind(500, 599, "server_error", "Internal", "the endpoint picker's answer can't be used", _PICKER),
    _Kind(413, 413, "invalid_request_error", "PayloadTooLarge", "the request's body is longer than Envoy buffers"),
    _Kind(429, 429, "rate_limit_error", "ResourceExhausted"),
    _Kind(404, 404, "not_found_error", "NotFound"),
    _Kind(400, 499, "invalid_request_error", "BadRequest", _REFUSED),
    _Kind(503, 503, "service_unavailable_error", "ServiceUnavailable"),
    _Kind(504, 504, "server_error", "DeadlineExceeded"),
    _Kind(500, 599, "server_error", "Internal"),
)


def local_replies() -> dict[str, Any]:
    """`local_reply_config`: the first of the mappers that fits is used; the picker's own answers pass as they are."""
    return {"mappers": [_mapper(kind) for kind in _KINDS]}


def _mapper(kind: _Kind) -> dict[str, Any]:
    return {"filter": _filter(kind), "body_format_override": {"json_format": _error(kind)}}


def _error(kind: _Kind) -> dict[str, Any]:
    error = {
        "message": kind.message,
        "type": kind.type,
        "param": None,
        "code": kind.code,
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    return {"error": error}


def _filter(kind: _Kind) -> dict[str, Any]:
    conditions = [_OWN, f"response.code >= {kind.first}", f"response.code <= {kind.last}"]
    if kind.details:
        conditions.append(f"response.code_details.startsWith('{kind.details}')")
    name = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    config = typed(name, expression=" && ".join(conditions))
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": config}}
