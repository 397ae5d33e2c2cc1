"""disagg-headers-handler, prefill-header-handler: the headers that name the other stages of a split request.

What it does
    Sets `x-prefiller-host-port` to the first endpoint that the prefill profile picked, and `x-encoder-hosts-ports` to
    all that the encode profile picked, where those ran. `disagg-profile-handler` does so itself; these are for files
    from before, and for other profile handlers.

Reads
    The decision.

Writes
    The two request headers; a client's own copy never passes.

Parameters
    - `prefillProfile` (prefill), `encodeProfile` (encode): the names of the profiles. One
      that isn't there has no effect, with a warning unless it is the default.

Example:
    plugins:
    - type: decode-filter
    - type: prefill-filter
    - type: queue-scorer
    - type: disagg-headers-handler
    - type: prefill-header-handler
    - type: pd-profile-handler
    schedulingProfiles:
    - name: decode
      plugins:
      - pluginRef: decode-filter
      - pluginRef: queue-scorer
    - name: prefill
      plugins:
      - pluginRef: prefill-filter
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    In nothing.
"""

from collections.abc import Mapping

import epp.plugin
from epp.plugin import Context, Decision, Request, absent_profiles


class HeadersParameters(epp.plugin.Parameters):
    """See the module's manual."""

    prefill_profile: str = "prefill"
    encode_profile: str = "encode"


class DisaggHeadersHandler:
    """Sets the headers that name where a request is prefilled and encoded."""

    mandatory = True

    Parameters = HeadersParameters
    deprecated = 'leave it out, "disagg-profile-handler" sets the headers itself'

    def __init__(self, parameters: HeadersParameters, context: Context) -> None:
        self._prefill, self._encode = parameters.prefill_profile, parameters.encode_profile
        named = {"prefillProfile": self._prefill, "encodeProfile": self._encode}
        self.remarks = absent_profiles(context, named, "prefill", "encode")

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """Where the other stages are."""
        headers, picks = {}, decision.picks
        if prefill := picks.get(self._prefill):
            headers["x-prefiller-host-port"] = prefill.endpoints[0].hostport
        if encode := picks.get(self._encode):
            headers["x-encoder-hosts-ports"] = encode.destination
        return headers


class PrefillHeaderHandler(DisaggHeadersHandler):
    """The older name of disagg-headers-handler."""
