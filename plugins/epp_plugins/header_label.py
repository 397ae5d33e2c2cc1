"""header-label-affinity-scorer: prefers endpoints whose label says what a request's header says.

What it does
    An endpoint gets 1 if the value of its label `labelKey` is that of the request's header `headerName`, else 0. Nobody
    gets points if the request lacks the header, or has it empty.

Reads
    The request's headers, and the endpoints' labels.

Writes
    Nothing.

Parameters
    - `headerName`: required; in any case.
    - `labelKey`: required.

Example:
    plugins:
    - type: header-label-affinity-scorer
      parameters:
        headerName: x-region
        labelKey: topology.kubernetes.io/region
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: header-label-affinity-scorer

Where it departs from llm-d, and why
    In nothing.
"""

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import Candidates, Floats, HeaderName, Request


class HeaderLabelAffinityScorer:
    """Prefers endpoints whose label says what the request's header says: 1 for them, 0 for all others."""

    stability = "alpha"

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        header_name: HeaderName
        label_key: str = Field(min_length=1)

    def __init__(self, parameters: Parameters) -> None:
        self._header = parameters.header_name
        self._label = parameters.label_key

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 where the label has the header's value, else 0, shape (n,)."""
        value = request.headers.get(self._header)
        if not value:
            return np.zeros(len(c))
        scores: Floats = (c.label(self._label) == c.code(self._label, value)).astype(np.float64)
        return scores
