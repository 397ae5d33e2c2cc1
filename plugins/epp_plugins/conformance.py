"""header-based-testing-filter, destination-endpoint-served-verifier: for conformance tests of gateways.

What it does
    The filter keeps the endpoints that the request's header `test-epp-endpoint-selection` names: a list of IP addresses
    or of ip:port with commas. Without the header it keeps nobody, and the client gets 503.

    The verifier tells the client who answered, as the data plane reports it, in the response header
    `x-conformance-test-served-endpoint`.

    Neither is for anything else: the filter lets clients choose their endpoint, the verifier tells them addresses.

Reads
    The request's header; the endpoint that the data plane says has answered.

Writes
    The response header.

Parameters
    None.

Example:
    plugins:
    - type: header-based-testing-filter
    - type: destination-endpoint-served-verifier
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: header-based-testing-filter

Where it departs from llm-d, and why
    - An address stands for all of its ports, and one with a port for that port alone; there each address is kept once,
      whatever the port. IPv6 addresses may stand in brackets.
    - If the data plane doesn't say who has answered, the header has the destination.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np

from epp.plugin import Candidates, Decision, Endpoint, Mask, Request

SELECTION: Final = "test-epp-endpoint-selection"
SERVED: Final = "x-conformance-test-served-endpoint"


class HeaderBasedTestingFilter:
    """Keeps the endpoints that a header names; for conformance tests of gateways."""

    mandatory = True

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Who is named, shape (n,)."""
        named = {part.strip() for part in request.headers.get(SELECTION, "").split(",")}
        return np.array([not named.isdisjoint((e.address, e.host, e.hostport)) for e in c.endpoints], dtype=bool)


class DestinationEndpointServedVerifier:
    """Tells the client who has answered; for conformance tests of gateways."""

    def response_headers(self, request: Request, decision: Decision, served: Endpoint) -> Mapping[str, str]:
        """The address of who has answered."""
        return {SERVED: served.hostport}
