"""queue-scorer: prefers endpoints with fewer waiting requests.

What it does
    Scores each endpoint by the requests that wait in its engine, relative to the other candidates: 1 for the shortest
    queue, 0 for the longest, (longest - q) / (longest - shortest) between them, 1 for everybody if all are equal. The
    score is relative: 0 against 1 waiting request weighs as much as 0 against 100. `load-aware-scorer` is the absolute
    one; `active-request-scorer` counts what this process itself has sent, which no scrape delays.

Reads
    `waiting`: `vllm:num_requests_waiting` as last scraped.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer
        weight: 2

Where it departs from llm-d, and why
    An endpoint that was never scraped, or missed its last scrape, gets no points. There it counts as an empty queue,
    and a hung engine wins.
"""

from epp.plugin import WAITING, Candidates, Floats, Request, lower_is_better


class QueueScorer:
    """Prefers endpoints with fewer waiting requests: 1 for the shortest queue, 0 for the longest, 1 if all equal."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """(max - q) / (max - min) of the waiting requests, shape (n,); NaN where unknown."""
        return lower_is_better(c[WAITING])
