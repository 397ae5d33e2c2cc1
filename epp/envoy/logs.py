"""Envoy's access log: one JSON object a request on stdout."""

from typing import Any

from epp.envoy.filters import typed
from epp.envoy.options import AccessLog

_FIELDS = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "picked": "%REQ(X-GATEWAY-DESTINATION-ENDPOINT)%",
    "served": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
}


def access_log(which: AccessLog) -> list[dict[str, Any]]:
    """The value of `access_log`: nothing, what went wrong, or everything."""
    if which == "none":
        return []
    name = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"
    log = {
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(name, log_format={"json_format": dict(_FIELDS)}),
    }
    return [log | {"filter": _errors()}] if which == "errors" else [log]


def _errors() -> dict[str, Any]:
    """A status of 400 and above, or an ending that Envoy gave a response flag."""
    status = {"comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "epp.access_log_status"}}}
    return {"or_filter": {"filters": [{"status_code_filter": status}, {"response_flag_filter": {}}]}}
