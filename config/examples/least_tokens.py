"""least_tokens.py: prefers endpoints that have fewer of our prompt tokens in flight. An example of a plugin in a file.

What it does
    Scores each endpoint by the tokens that were sent there and whose prompts have not been answered yet: 1 for the
    fewest, 0 for the most. Counts up to `idleTokens` are all the same to it.

Reads
    `inflight_tokens`: our own count.

Writes
    Nothing.

Parameters
    - `idleTokens` (0): the tokens up to which an endpoint counts as idle.

Example:
    plugins:
    - type: ./least_tokens.py
      parameters:
        idleTokens: 512
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: least-tokens-scorer
"""
# ruff: noqa: INP001 (a file on its own, no part of a package)

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import INFLIGHT_TOKENS, Candidates, Floats, Request, lower_is_better


class LeastTokensScorer:
    """Prefers endpoints that have fewer of our prompt tokens in flight."""

    class Parameters(epp.plugin.Parameters):
        """Written in camelCase in the configuration; unknown ones are refused."""

        idle_tokens: float = Field(default=0.0, ge=0.0)

    def __init__(self, parameters: Parameters) -> None:
        self._idle = parameters.idle_tokens

    def score(self, request: Request, c: Candidates) -> Floats:
        """(max - t) / (max - min) of the tokens in flight, shape (n,)."""
        return lower_is_better(np.maximum(c[INFLIGHT_TOKENS], self._idle))
