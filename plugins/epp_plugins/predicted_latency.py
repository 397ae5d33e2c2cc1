"""predicted-latency-producer: says how long each endpoint would take; it makes no predictions yet.

What it does
    Its parameters are read and checked, and its columns are there for the plugins that read them, without a value: it
    doesn't learn yet. Those plugins do what they do where nobody has a prediction: `latency-scorer` weighs cache, queue
    and prefix, `slo-headroom-tier-filter` keeps everybody, `latency-slo-admitter` admits everybody.

Reads
    Nothing.

Writes
    - `ttft`, `tpot`: the predicted milliseconds to the first token, and for each further one; NaN for none.
    - `ttft_headroom`, `tpot_headroom`: what the request asks for less what is predicted, milliseconds.
    - `dispatched`: the endpoint's own requests in flight.

Parameters
    - `sloBufferFactor` (1): multiplies what the request asks for a further token; above 0.
    - `contextTTL` (5m): a duration such as "5m", or nanoseconds.
    - `streamingMode` (false), `predictInProduce` (true).
    - `endpointRoleLabel` (""): the label with an endpoint's role.
    - `useEncoderCacheFeatures` (false), `encoderCacheMatchInfoProducerName`.
    - `prefixMatchInfoProducerName`, `inFlightLoadProducerName`.
    - `samplingMean`, `maxDecodeTokenSamplesForPrediction`: accepted and ignored, as in llm-d.

Example:
    plugins:
    - type: predicted-latency-producer
      parameters:
        sloBufferFactor: 0.9
    - type: latency-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: latency-scorer

Where it departs from llm-d, and why
    `contextTTL` takes a duration, as llm-d's documentation has it; its code takes nanoseconds only.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field

import epp.plugin
from epp.keys import latency
from epp.plugin import Candidates, Context, Floats, Key, PositiveDuration, Request


def _nanoseconds(value: Any) -> Any:
    """A number is one of nanoseconds, as llm-d has it."""
    return f"{value}ns" if isinstance(value, int) else value


Ttl = Annotated[PositiveDuration, BeforeValidator(_nanoseconds, json_schema_input_type=int | str)]


class PredictedLatencyProducer:
    """Says how long each endpoint would take; it makes no predictions yet."""

    loads_only = True

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        slo_buffer_factor: float = Field(default=1.0, gt=0.0)
        context_ttl: Ttl = Field(default=300.0, alias="contextTTL")
        streaming_mode: bool = False
        predict_in_produce: bool = True
        endpoint_role_label: str = ""
        use_encoder_cache_features: bool = False
        encoder_cache_match_info_producer_name: str | None = None
        prefix_match_info_producer_name: str | None = None
        in_flight_load_producer_name: str | None = None
        sampling_mean: Any = None
        max_decode_token_samples_for_prediction: Any = None

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self.writes = tuple(latency(context.name))
        self._columns: Mapping[Key, Floats] = {}

    def produce(self, request: Request, c: Candidates) -> Mapping[Key, Floats]:
        """No predictions: NaN, each of shape (n,)."""
        if not self._columns or len(self._columns[self.writes[0]]) != len(c):
            self._columns = dict.fromkeys(self.writes, np.full(len(c), np.nan))
        return self._columns
