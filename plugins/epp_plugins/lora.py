"""lora-affinity-scorer: prefers endpoints that have the request's LoRA adapter loaded.

What it does
    Scores each endpoint by the first line that holds, so that a request goes where its adapter is, or else where
    loading it evicts nobody:

    | The adapter | Score |
    |---|---|
    | is running there | 1.0 |
    | fits in: active + waiting adapters < the most that fit | 0.8 |
    | is waiting there | 0.6 |
    | would evict another | 0 |

Reads
    `vllm:lora_requests_info` as last scraped: the sets `active_models` and `waiting_models`, and the columns
    `active_loras`, `waiting_loras` and `max_loras`. The adapter is the request's `model`.

Writes
    Nothing.

Parameters
    None.

Example:
    plugins:
    - type: lora-affinity-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: lora-affinity-scorer

Where it departs from llm-d, and why
    An endpoint that missed its last scrape gets no points, whatever adapters it had then. One without LoRA gets 0, as
    there.
"""

import numpy as np

from epp.plugin import (
    ACTIVE_LORAS,
    ACTIVE_MODELS,
    MAX_LORAS,
    WAITING_LORAS,
    WAITING_MODELS,
    Candidates,
    Floats,
    Request,
)


class LoraAffinityScorer:
    """Prefers endpoints that have the request's LoRA adapter loaded, then those with room for it."""

    def score(self, request: Request, c: Candidates) -> Floats:
        """1 active, 0.8 room, 0.6 waiting, else 0, shape (n,); NaN where the last scrape is overdue."""
        scores = np.where(c.has(WAITING_MODELS, request.model), 0.6, 0.0)
        scores[c[ACTIVE_LORAS] + c[WAITING_LORAS] < c[MAX_LORAS]] = 0.8
        scores[c.has(ACTIVE_MODELS, request.model)] = 1.0
        scores[~c.fresh] = np.nan
        return scores
