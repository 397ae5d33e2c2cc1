"""session-id-producer: takes a session's id from a header or a cookie, for other plugins.

What it does
    The value of the header, or of the cookie, becomes the request's attribute `SessionID`. Plugins that keep sessions
    read it: a `session-affinity-scorer` does with the source `{attribute: SessionID, producer: session-id-producer}`.

Reads
    The request's headers.

Writes
    The request's attribute `SessionID`.

Parameters
    Exactly one of:

    - `headerName`: in any case.
    - `cookieName`: of the `cookie` header.

Example:
    plugins:
    - type: session-id-producer
      parameters:
        cookieName: chat-session
    - type: session-affinity-scorer
      parameters:
        strategy: session_id
        sessionIdConfig:
          sources:
          - attribute: SessionID
            producer: session-id-producer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: session-affinity-scorer

Where it departs from llm-d, and why
    It runs with the request's headers, before everything else: a failing producer can't keep a session from its
    endpoint.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import StringConstraints, model_validator

import epp.plugin
from epp.plugin import Context, HeaderName

CookieName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]


class SessionIdParameters(epp.plugin.Parameters):
    """See the module's manual."""

    header_name: HeaderName | None = None
    cookie_name: CookieName | None = None

    @model_validator(mode="after")
    def _one(self) -> "SessionIdParameters":
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of headerName and cookieName is needed")
        return self


class SessionIdProducer:
    """Takes a session's id from a header or a cookie, for other plugins."""

    Parameters = SessionIdParameters

    def __init__(self, parameters: SessionIdParameters, context: Context) -> None:
        self._header = parameters.header_name or "cookie"
        self._cookie = parameters.cookie_name
        self._key = f"SessionID/{context.name}"

    def attributes(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The session's id, if the request has one."""
        value = headers.get(self._header, "")
        if self._cookie is not None:
            value = _cookie(value, self._cookie)
        return {self._key: value} if value else {}


def _cookie(header: str, name: str) -> str:
    """The value of the first cookie of that name, without the quotes that it may stand in; "" if there is none."""
    for pair in header.split(";"):
        key, equals, value = pair.partition("=")
        if equals and key.strip() == name:
            value = value.strip()
            return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    return ""
