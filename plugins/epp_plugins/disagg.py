"""disagg-profile-handler: serves a request in stages: encoded, prefilled and decoded at endpoints of their own.

What it does
    The decode profile's pick is the destination. Whether further profiles run, deciders say (see
    `epp plugins always-disagg-pd-decider`); the picks of these go along as headers, which the sidecar beside the
    decoding engine reads. A header that isn't there means that the decoding engine does that stage itself.

    With `stageOrder: decode-first` the decode profile runs first; if it finds nobody, the request is refused. Then the
    encode profile runs if there is one and its decider wants it, then the prefill profile in the same way. With
    `prefill-first` the prefill profile runs first and always, then the encode profile if its decider wants it (which
    hears of no pick), then the decode profile. What the earlier of prefill and decode chose is the peer of the later,
    for plugins that keep the two close. A stage without a profile or, but for prefill in `prefill-first`, without a
    decider is left out; one that finds nobody is, too, and the decoding engine does it.

    A fallback list is the decode profile's. Where a response is seen, the load of the other stages is given back at its
    first byte.

Reads
    What its deciders read.

Writes
    - the request headers `x-prefiller-host-port`, the first endpoint of the prefill profile's pick, and
      `x-encoder-hosts-ports`, all endpoints of the encode profile's with commas. A client's own copy never passes.
    - the metric `llm_d_epp_disagg_decision_total` and its old name `llm_d_inference_scheduler_disagg_decision_total`:
      requests by `decode-only`, `prefill-decode`, `encode-decode`, `encode-prefill-decode`.

Parameters
    - `stageOrder` (`decode-first`): or `prefill-first`; also written `decode`, `prefillFirst` and so on.
    - `profiles`: the names of the profiles: `decode` (decode), `prefill` (prefill), `encode` (encode). There
      must be the one for decoding, and every other that is named unlike its default.
    - `deciders`: the names of plugins: `prefill` (none; not with `prefill-first`), `encode` (none).
    - `decodeProfile`, `prefillProfile`, `encodeProfile`: deprecated, for `profiles`.
    - `prefillDeciderPluginName`, `encodeDeciderPluginName`: deprecated, for `deciders`.
    - `deciderPluginName`: deprecated, for `deciders.prefill`.

    The deprecated ones can't stand beside `profiles` and `deciders`.

Example:
    plugins:
    - type: decode-filter
    - type: prefill-filter
    - type: queue-scorer
    - type: always-disagg-pd-decider
    - type: disagg-profile-handler
      parameters:
        deciders:
          prefill: always-disagg-pd-decider
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
    - A decode profile that is not configured is an error at load; there it is one of every request.
    - The prefix cache is looked at only if a decider or a scorer needs it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, model_serializer, model_validator

import epp.plugin
from epp.plugin import (
    Candidates,
    Context,
    Decider,
    Decision,
    Pick,
    Request,
    Run,
    WrongParameters,
    refers_to,
    refers_to_profile,
)

PREFILLER: Final = "x-prefiller-host-port"
ENCODERS: Final = "x-encoder-hosts-ports"
METRIC: Final = "llm_d_epp_disagg_decision_total"

_ORDERS = {
    "decode": "decode-first",
    "decodefirst": "decode-first",
    "prefill": "prefill-first",
    "prefillfirst": "prefill-first",
}


def _order(value: Any) -> str:
    found = _ORDERS.get(value.lower().replace("-", "").replace("_", "")) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'must be "decode-first" or "prefill-first", not {value!r}')
    return found


DecodeName = Annotated[str, refers_to_profile("decode")]
PrefillName = Annotated[str, refers_to_profile("prefill", "")]
EncodeName = Annotated[str, refers_to_profile("encode", "")]
DeciderName = Annotated[str, refers_to(Decider, "decider: it has no method disaggregate")]


class Profiles(epp.plugin.Parameters):
    """`profiles`: the profiles' names."""

    decode: DecodeName = "decode"
    prefill: PrefillName = "prefill"
    encode: EncodeName = "encode"


class Deciders(epp.plugin.Parameters):
    """`deciders`: the plugins' names."""

    prefill: DeciderName = ""
    encode: DeciderName = ""


_OLD_PROFILES = {"decode_profile": "decode", "prefill_profile": "prefill", "encode_profile": "encode"}
_OLD_DECIDERS = {
    "decider_plugin_name": "prefill",
    "prefill_decider_plugin_name": "prefill",
    "encode_decider_plugin_name": "encode",
}


class DisaggParameters(epp.plugin.Parameters):
    """See the module's manual."""

    stage_order: Annotated[str, BeforeValidator(_order, json_schema_input_type=str)] = "decode-first"
    profiles: Profiles = Profiles()
    deciders: Deciders = Deciders()
    decode_profile: DecodeName | None = Field(default=None, deprecated='write "profiles.decode"')
    prefill_profile: PrefillName | None = Field(default=None, deprecated='write "profiles.prefill"')
    encode_profile: EncodeName | None = Field(default=None, deprecated='write "profiles.encode"')
    prefill_decider_plugin_name: DeciderName | None = Field(default=None, deprecated='write "deciders.prefill"')
    encode_decider_plugin_name: DeciderName | None = Field(default=None, deprecated='write "deciders.encode"')
    decider_plugin_name: DeciderName | None = Field(default=None, deprecated='write "deciders.prefill"')

    @model_validator(mode="after")
    def _one_spelling(self) -> "DisaggParameters":
        old = [name for name in (*_OLD_PROFILES, *_OLD_DECIDERS) if name in self.model_fields_set]
        if old and self.model_fields_set & {"profiles", "deciders"}:
            message = "is deprecated, and can't stand beside profiles and deciders"
            raise WrongParameters(*(((_key(name),), message) for name in old))
        return self

    @model_validator(mode="after")
    def _fits_the_order(self) -> "DisaggParameters":
        if self.stage_order == "prefill-first" and self.stages[1].prefill:
            message = "has no place in prefill-first, where the prefill profile always runs"
            raise WrongParameters((self.place(_OLD_DECIDERS, "deciders", "prefill"), message))
        return self

    def place(self, old: Mapping[str, str], section: str, stage: str) -> tuple[str, ...]:
        """Where it is written, or should be."""
        flat = [name for name, new in old.items() if new == stage and name in self.model_fields_set]
        return (_key(flat[-1]),) if flat else (section, stage)

    @model_serializer
    def _current(self) -> dict[str, Any]:
        """As it is written now."""
        profiles, deciders = self.stages
        return {
            "stageOrder": self.stage_order,
            "profiles": profiles.model_dump(by_alias=True),
            "deciders": deciders.model_dump(by_alias=True),
        }

    @property
    def stages(self) -> tuple[Profiles, Deciders]:
        """The profiles and the deciders, however they are written."""
        values = dict(self)  # the attributes would warn of themselves
        profiles = {new: values[old] for old, new in _OLD_PROFILES.items() if values[old]}
        deciders = {new: values[old] for old, new in _OLD_DECIDERS.items() if values[old]}
        return self.profiles.model_copy(update=profiles), self.deciders.model_copy(update=deciders)


def _key(name: str) -> str:
    return DisaggParameters.model_fields[name].alias or name


class DisaggProfileHandler:
    """Runs the profiles for decoding, prefill and encoding as deciders say."""

    mandatory = True

    Parameters = DisaggParameters

    def __init__(self, parameters: DisaggParameters, context: Context) -> None:
        self._names, deciders = parameters.stages
        self._parameters = parameters
        self.encodes = (self._names.encode,)
        self._prefill_first = parameters.stage_order == "prefill-first"
        self._prefill_decider: Decider | None = context.plugin(deciders.prefill) if deciders.prefill else None
        self._encode_decider: Decider | None = context.plugin(deciders.encode) if deciders.encode else None
        self._prefills = self._encodes = False
        self._context = context

    def bind(self, profiles: tuple[str, ...]) -> None:
        """Takes the names of the configured profiles.

        Raises:
            WrongParameters: there is none for decoding.
        """
        if self._names.decode not in profiles:
            message = f'profile "{self._names.decode}", for decoding, is needed; there are: {", ".join(profiles)}'
            raise WrongParameters((self._parameters.place(_OLD_PROFILES, "profiles", "decode"), message))
        self._prefills, self._encodes = self._names.prefill in profiles, self._names.encode in profiles

    def decide(self, request: Request, run: Run) -> str:
        """Runs what the request needs; the name of the decode profile."""
        return self._run_prefill_first(request, run) if self._prefill_first else self._run_decode_first(request, run)

    def _run_decode_first(self, request: Request, run: Run) -> str:
        names = self._names
        decode = run(names.decode)
        if decode is None:
            return names.decode
        if self._encodes and _wants(self._encode_decider, request, decode, run.candidates):
            run(names.encode)
        if self._prefills and _wants(self._prefill_decider, request, decode, run.candidates):
            run(names.prefill, peer=decode)
        return names.decode

    def _run_prefill_first(self, request: Request, run: Run) -> str:
        names = self._names
        prefill = run(names.prefill) if self._prefills else None
        if self._encodes and _wants(self._encode_decider, request, None, run.candidates):
            run(names.encode)
        run(names.decode, peer=prefill)
        return names.decode

    def picked(self, request: Request, decision: Decision, c: Candidates) -> None:
        """Counts the request by its stages."""
        stages = [name for name in ("encode", "prefill") if getattr(self._names, name) in decision.picks]
        labels = {
            "plugin_name": self._context.name,
            "plugin_type": "disagg-profile-handler",
            "model_name": request.model,
            "decision_type": "-".join([*stages, "decode"]) if stages else "decode-only",
        }
        self._context.counter(METRIC, labels).inc()

    def request_headers(self, request: Request, decision: Decision) -> Mapping[str, str]:
        """Where the other stages are."""
        headers, picks = {}, decision.picks
        if prefill := picks.get(self._names.prefill):
            headers[PREFILLER] = prefill.endpoints[0].hostport
        if encode := picks.get(self._names.encode):
            headers[ENCODERS] = encode.destination
        return headers


def _wants(decider: Decider | None, request: Request, pick: Pick | None, c: Candidates) -> bool:
    return decider is not None and decider.disaggregate(request, pick, c)
