"""Envoy's own errors in the form of OpenAI's, as the picker's are (`epp.errors`)."""

from typing import Any

from epp.envoy.filters import typed

_KINDS = (
    # first and last status, error.type, error.code
    (413, 413, "invalid_request_error", "PayloadTooLarge"),
    (429, 429, "rate_limit_error", "ResourceExhausted"),
    (400, 499, "invalid_request_error", "BadRequest"),
    (503, 503, "service_unavailable_error", "ServiceUnavailable"),
    (500, 599, "server_error", "Internal"),
)


def local_replies() -> dict[str, Any]:
    """`local_reply_config`: the first mapper that fits is used; the picker's own answers pass as they are."""
    return {"mappers": [_mapper(*kind) for kind in _KINDS]}


def _mapper(first: int, last: int, kind: str, code: str) -> dict[str, Any]:
    bounds = [("GE", first), ("LE", last)]
    statuses = [
        {"status_code_filter": {"comparison": {"op": op, "value": {"default_value": at, "runtime_key": "epp.none"}}}}
        for op, at in bounds
    ]
    return {
        "filter": {"and_filter": {"filters": [*statuses, _not_from_the_picker()]}},
        "body_format_override": {"json_format": _body(kind, code)},
    }


def _body(kind: str, code: str) -> dict[str, Any]:
    return {
        "error": {
            "message": "%LOCAL_REPLY_BODY%",
            "type": kind,
            "param": None,
            "code": code,
            "request_id": "%REQ(X-REQUEST-ID)%",
        }
    }


def _not_from_the_picker() -> dict[str, Any]:
    expression = "response.code_details != '' && !('content-type' in response.headers)"
    name = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": typed(name, expression=expression),
        }
    }
