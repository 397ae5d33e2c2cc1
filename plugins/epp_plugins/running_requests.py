"""running-requests-size-scorer: prefers endpoints that run fewer requests.

What it does
    Scores each endpoint by the requests that its engine is running, relative to the other candidates: 1 for the fewest,
    0 for the most, (most - r) / (most - fewest) between them, 1 for everybody if all are equal.

Reads
    `running`: `vllm:num_requests_running` as last scraped.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: running-requests-size-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: running-requests-size-scorer

Where it departs from llm-d, and why
    An endpoint that was never scraped, or missed its last scrape, gets no points. There it counts as idle, and wins.
"""

from epp.plugin import RUNNING, Candidates, Floats, Request, lower_is_better


class RunningRequestsSizeScorer:
    """Prefers endpoints that run fewer requests: 1 for the fewest, 0 for the most, 1 if all are equal."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """(max - r) / (max - min) of the running requests, shape (n,); NaN where unknown."""
        return lower_is_better(c[RUNNING])
