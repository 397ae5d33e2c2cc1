"""prefix-based-pd-decider, always-disagg-pd-decider, always-disagg-multimodal-decider: whether to split a request.

What it does
    A profile handler for disaggregated serving (`disagg-profile-handler`) asks a decider whether a request is worth a
    stage of its own, a prefill or an encoding. Nothing else uses one.

    - `always-disagg-pd-decider`: always.
    - `prefix-based-pd-decider`: if the endpoint that was picked for the decoding would have to compute at least
      `nonCachedTokens` of the prompt, and the prompt has at least `promptTokens`. A short rest is computed sooner than
      its KV cache is transferred. Where it isn't known what the endpoint has cached, the answer is no.
    - `always-disagg-multimodal-decider`: if the request has a picture, a sound or a video.

    Tokens are estimated at 4 bytes of prompt each, as llm-d does without a tokenizer.

Reads
    - prefix-based-pd-decider: `matched_tokens` of the producer that `prefixMatchInfoProducerName` names.

Writes
    Nothing.

Parameters
    of prefix-based-pd-decider; the others have None.

    - `nonCachedTokens` (0): the tokens to compute from which on a request is split; 0 for never.
    - `promptTokens` (0): the length of a prompt from which on.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer, ours): whose figures to use.

Example:
    plugins:
    - type: decode-filter
    - type: prefill-filter
    - type: queue-scorer
    - type: prefix-based-pd-decider
      parameters:
        nonCachedTokens: 512
    - type: always-disagg-multimodal-decider
    - type: disagg-profile-handler
      parameters:
        deciders:
          prefill: prefix-based-pd-decider
          encode: always-disagg-multimodal-decider
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
    The producer can be chosen. There a decider reads the default one, which is added and asked even where another one
    knows better.
"""

import math

from pydantic import Field

import epp.plugin
from epp.plugin import APPROX_PREFIX_PRODUCER, Candidates, Pick, Request, matched_tokens


class PrefixDeciderParameters(epp.plugin.Parameters):
    """See the module's manual."""

    non_cached_tokens: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER


class PrefixBasedDecider:
    """Splits requests of which enough is to be computed."""

    Parameters = PrefixDeciderParameters

    def __init__(self, parameters: PrefixDeciderParameters) -> None:
        self._uncached, self._prompt = parameters.non_cached_tokens, parameters.prompt_tokens
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,)

    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        """Whether prompt - cached >= nonCachedTokens at the pick's endpoint."""
        tokens = math.ceil(request.prompt_tokens)
        if pick is None or not self._uncached or tokens < max(self._prompt, self._uncached):
            return False
        cached = float(c[self._matched][c.index(pick.slots[0])])
        return tokens - cached >= self._uncached  # false for NaN


class AlwaysDecider:
    """Splits every request."""

    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        """Always."""
        return True


class MultimodalDecider:
    """Splits requests with pictures, sounds or videos."""

    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        """Whether the request has any."""
        return bool(request.body.media)
