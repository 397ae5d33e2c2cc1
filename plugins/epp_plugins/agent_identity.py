"""agent-identity: takes whom a request is accounted to from the session header of a coding agent.

What it does
    Agents name their session in a header of their own. The first of these that has a value counts: those of
    `additionalSessionHeaders`, then `x-claude-code-session-id`, `x-session-affinity`, `session-id`, `session_id`. It
    stands in for the fairness id where the client sends no `x-llm-d-inference-fairness-id`, so that one agent's burst
    is one flow; and other plugins can read it as the attribute `agent-identity`.

Reads
    The request's headers.

Writes
    The request's attribute `agent-identity`, and with it its fairness id.

Parameters
    - `additionalSessionHeaders` ([]): further headers, which are looked at first; names in any case.

Example:
    plugins:
    - type: agent-identity
      parameters:
        additionalSessionHeaders:
        - x-my-agent-session
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    In nothing.
"""

from collections.abc import Mapping
from typing import Final

import epp.plugin
from epp.plugin import Context, HeaderName

HEADERS: Final = ("x-claude-code-session-id", "x-session-affinity", "session-id", "session_id")


class AgentIdentity:
    """Takes whom a request is accounted to from the session header of a coding agent."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        additional_session_headers: tuple[HeaderName, ...] = ()

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._headers = (*parameters.additional_session_headers, *HEADERS)
        self._key = f"agent-identity/{context.name}"

    def attributes(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The first session header with a value."""
        for name in self._headers:
            if value := headers.get(name, "").strip():
                return {self._key: value}
        return {}
