"""context-length-aware: routes prompts by length to the endpoints that are meant for them.

What it does
    An endpoint says by a label which prompts it is for: `min-max`, in tokens, both included. As a scorer it gives, for
    a prompt of L tokens:

    | The endpoint | Score |
    |---|---|
    | has no such label | 0.5 |
    | has one that can't be read | 0 |
    | has the range [L, L] | 1 |
    | has L in its range of width w = max - min | 0.3 + 0.7 * (0.7 / (1 + w / 10000) + 0.3 * (max - L) / w) |
    | has a range that L is d tokens away from | 0.3 / (1 + d / 1000) |

    so narrow ranges come first, then room above the prompt. As a filter, with `enableFiltering`, it keeps the endpoints
    whose range has the prompt, and those without the label; it may leave nobody.

    Tokens are estimated at 4 bytes of prompt each, rounded up: check ranges against that, above all for text in scripts
    of several bytes a letter.

Reads
    The label that `label` names.

Writes
    Nothing.

Parameters
    - `label` (llm-d.ai/context-length-range): the label's name; not empty.
    - `enableFiltering` (false): be a filter too.

Example:
    plugins:
    - type: context-length-aware
      parameters:
        label: example.com/context-length
        enableFiltering: true
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: context-length-aware
        weight: 2

Where it departs from llm-d, and why
    A label such as `100-10` can't be read, rather than be a range that nothing is in.
"""

import re
from functools import partial

import numpy as np
from pydantic import Field

import epp.plugin
from epp.plugin import BYTES_PER_TOKEN, Candidates, Floats, Mask, Pool, Request

_RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*", re.ASCII)
_UNLABELLED = (0.0, np.inf)
_UNREADABLE = (np.inf, -np.inf)


def _range(text: str | None) -> tuple[float, float]:
    if text is None:
        return _UNLABELLED
    match = _RANGE.fullmatch(text)
    low, high = (float(match[1]), float(match[2])) if match else _UNREADABLE
    return (low, high) if low <= high else _UNREADABLE


def _ranges(pool: Pool, *, label: str) -> Floats:
    """Lowest and highest length over the pool's slots, shape (slots, 2)."""
    return np.array([_range(e.labels.get(label) if e is not None else None) for e in pool.endpoints])


def tokens_of(request: Request) -> int:
    """The prompt's length in tokens: the last one of each prompt may be shorter."""
    return sum(-(-len(prompt) // BYTES_PER_TOKEN) for prompt in request.body.prompts)


class ContextLengthAware:
    """Prefers endpoints whose label says that they are for prompts of this length, or keeps only those."""

    mandatory = True

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        label: str = Field(default="llm-d.ai/context-length-range", min_length=1)
        enable_filtering: bool = False

    def __init__(self, parameters: Parameters) -> None:
        self._filters = parameters.enable_filtering
        self._ranges = partial(_ranges, label=parameters.label)  # one object: the pool's cache is keyed by it

    def keep(self, request: Request, c: Candidates) -> Mask:
        """Whose range has the prompt's length, or who has no range, shape (n,)."""
        if not self._filters:
            return np.ones(len(c), dtype=bool)
        low, high = c.derived(self._ranges).T
        length = tokens_of(request)
        mask: Mask = (low <= length) & (length <= high)
        return mask

    def score(self, request: Request, c: Candidates) -> Floats:
        """The manual's formula, shape (n,)."""
        low, high = c.derived(self._ranges).T
        length = float(tokens_of(request))
        distance = np.maximum(np.maximum(low - length, length - high), 0.0)  # infinite where the label is unreadable
        scores: Floats = 0.3 / (1.0 + distance / 1000.0)
        inside = (distance == 0.0) & (high < np.inf)
        width = high[inside] - low[inside]
        room = (high[inside] - length) / np.maximum(width, 1.0)
        scores[inside] = np.where(width == 0.0, 1.0, 0.3 + 0.7 * (0.7 / (1.0 + width / 10_000.0) + 0.3 * room))
        scores[high == np.inf] = 0.5
        return scores
