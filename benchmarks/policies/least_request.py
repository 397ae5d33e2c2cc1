"""least_request.py: takes the endpoint with the fewest of our requests in flight. A baseline.

What it does
    Draws `choices` different endpoints at random and takes the one with the fewest requests in flight; 0 looks at all
    of them. Ties are broken at random. With two it is "the power of two choices" (Mitzenmacher, 2001), Ray Serve's
    default and Envoy's LEAST_REQUEST; with all it is the least outstanding requests of most load balancers.

Reads
    `inflight_requests`: our own count.

Writes
    Nothing.

Parameters
    - `choices` (0): how many endpoints are looked at; 0 for all.

Example:
    plugins:
    - type: ./least_request.py
      parameters:
        choices: 2
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: least-request-picker
"""

from collections.abc import Sequence

from pydantic import Field

import epp.plugin
from epp.plugin import INFLIGHT_REQUESTS, Candidates, Context, Floats, Request


class LeastRequestPicker:
    """Takes the one with the fewest requests in flight, of all or of a few drawn at random."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        choices: int = Field(default=0, ge=0)

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self._choices, self._random = parameters.choices, context.random

    def pick(self, request: Request, c: Candidates, totals: Floats) -> Sequence[int]:
        """The index of the least loaded of the drawn ones."""
        drawn = self._random.sample(range(len(c)), min(self._choices or len(c), len(c)))
        load = c[INFLIGHT_REQUESTS]
        return [min(drawn, key=lambda index: float(load[index]))]  # the drawn ones are in random order
