"""pd-profile-handler: serves a request in two stages, prefilled and decoded at endpoints of their own; deprecated.

What it does
    Runs the decode profile, whose pick is the destination, and then the prefill profile if the decider wants it; see
    `epp plugins disagg-profile-handler`, which takes its place. It sets no header that names the prefill's endpoint:
    `prefill-header-handler` beside it does.

    In files from before there were deciders, which name none, `threshold` decides: 0 splits every request, and more
    those of which the decoding endpoint would have to compute at least so many characters.

    With `primaryPort` it does what `data-parallel-profile-handler` does, too.

Reads
    - what its decider reads; with `threshold`, `matched_tokens` of the producer that `prefixMatchInfoProducerName`
      names.

Writes
    - with `primaryPort`, the destination and the request header `x-data-parallel-host-port`.
    - the metric `llm_d_epp_pd_decision_total` and its old name `llm_d_inference_scheduler_pd_decision_total`: requests
      by `decode-only`, `prefill-decode`.

Parameters
    - `decodeProfile` (decode), `prefillProfile` (prefill): the names of the profiles. There must be the first one, and
      the other if it is named unlike its default.
    - `deciderPluginName` (prefix-based-pd-decider): the decider; if it is left out and there is none of that name,
      `threshold` counts.
    - `primaryPort` (0): a sidecar's port; 0 for none.
    - `prefixMatchInfoProducerName` (approx-prefix-cache-producer): see above.
    - `threshold` (0): deprecated; in characters, 4 to a token.
    - `prefixPluginName`, `prefixPluginType`: deprecated; a scorer of prefixes, whose producer counts.
    - `hashBlockSize`: deprecated, without an effect.

Example:
    plugins:
    - type: decode-filter
    - type: prefill-filter
    - type: queue-scorer
    - type: prefill-header-handler
    - type: pd-profile-handler
      parameters:
        threshold: 2000
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
    A file of before, with `threshold` or without a decider, still does what it did; there it doesn't load any more.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

import epp.plugin
from epp.plugin import (
    APPROX_PREFIX_PRODUCER,
    Candidates,
    Context,
    Decider,
    Decision,
    Pick,
    Request,
    Run,
    UnknownPlugin,
    WrongParameters,
    matched_tokens,
    refers_to,
    refers_to_profile,
)

METRIC: Final = "llm_d_epp_pd_decision_total"
CHARACTERS_PER_TOKEN: Final = 4
DECIDER: Final = "prefix-based-pd-decider"


class PdParameters(epp.plugin.Parameters):
    """See the module's manual."""

    decode_profile: Annotated[str, refers_to_profile("decode")] = "decode"
    prefill_profile: Annotated[str, refers_to_profile("prefill")] = "prefill"
    decider_plugin_name: Annotated[str, refers_to(Decider, "decider: it has no method disaggregate")] | None = None
    primary_port: int = Field(default=0, ge=0, le=65535)
    prefix_match_info_producer_name: str = APPROX_PREFIX_PRODUCER
    threshold: int = Field(default=0, ge=0, deprecated='write "deciderPluginName", with a decider')
    hash_block_size: int | None = Field(default=None, deprecated="leave it out")
    prefix_plugin_type: str | None = Field(default=None, deprecated='write "prefixMatchInfoProducerName"')
    prefix_plugin_name: str | None = Field(default=None, deprecated='write "prefixMatchInfoProducerName"')

    @model_validator(mode="before")
    @classmethod
    def _without_an_unused_decider(cls, value: Any) -> Any:
        if isinstance(value, dict) and "threshold" in value:  # which counts, whether the decider is there or not
            return {key: each for key, each in value.items() if key != "deciderPluginName"}
        return value


class PdProfileHandler:
    """Runs the profiles for decoding and, where it pays, for prefill."""

    mandatory = True

    Parameters = PdParameters
    deprecated = 'write "disagg-profile-handler"'

    def __init__(self, parameters: PdParameters, context: Context) -> None:
        self._decode, self._prefill = parameters.decode_profile, parameters.prefill_profile
        self._port = parameters.primary_port
        self._context = context
        self._prefills = False
        own = _Threshold(parameters)
        self._decider = _decider(parameters, context) or own
        self.reads = own.reads if self._decider is own else ()

    def bind(self, profiles: tuple[str, ...]) -> None:
        """Takes the names of the configured profiles.

        Raises:
            WrongParameters: there is none for decoding.
        """
        if self._decode not in profiles:
            message = f'profile "{self._decode}", for decoding, is needed; there are: {", ".join(profiles)}'
            raise WrongParameters((("decodeProfile",), message))
        self._prefills = self._prefill in profiles

    def decide(self, request: Request, run: Run) -> str:
        """Runs what the request needs; the name of the decode profile."""
        pick = run(self._decode)
        if pick is not None and self._prefills and self._decider.disaggregate(request, pick, run.candidates):
            run(self._prefill, peer=pick)
        return self._decode

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Counts the request by its stages."""
        labels = {
            "plugin_name": self._context.name,
            "plugin_type": "pd-profile-handler",
            "model_name": request.model,
            "decision_type": "prefill-decode" if self._prefill in decision.picks else "decode-only",
        }
        self._context.counter(METRIC, labels).inc()

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """With a primary port, the rank that was picked."""
        return {"x-data-parallel-host-port": decision.primary.endpoints[0].hostport} if self._port else {}

    def destination(self, request: Request, decision: Decision) -> str | None:
        """With a primary port, the sidecar of the rank's pod."""
        return f"{decision.primary.endpoints[0].host}:{self._port}" if self._port else None


def _decider(parameters: PdParameters, context: Context) -> Decider | None:
    """The decider that is named; None for the threshold."""
    if "threshold" in parameters.model_fields_set:
        return None
    try:
        found: Decider = context.plugin(parameters.decider_plugin_name or DECIDER)
    except UnknownPlugin:  # nobody has that name, which nobody has written
        return None
    return found


class _Threshold:
    """A decider by the characters that are to be computed."""

    def __init__(self, parameters: PdParameters) -> None:
        characters: int = dict(parameters)["threshold"]  # the attribute would warn of itself
        self._tokens = math.ceil(characters / CHARACTERS_PER_TOKEN)
        self._matched = matched_tokens(parameters.prefix_match_info_producer_name or APPROX_PREFIX_PRODUCER)
        self.reads = (self._matched,) if self._tokens else ()

    def disaggregate(self, request: Request, pick: Pick | None, c: Candidates) -> bool:
        if not self._tokens or pick is None:
            return pick is not None
        cached = float(c[self._matched][c.index(pick.slots[0])])
        return math.ceil(request.prompt_tokens) - cached >= self._tokens
