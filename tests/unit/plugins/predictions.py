"""A producer of predictions whose parameters say what it predicts."""

import numpy as np

import epp.plugin
from epp.keys import latency
from epp.plugin import Context


class Predictions:
    """Predicts what its parameters say: a value an endpoint, by slot; null for none."""

    class Parameters(epp.plugin.Parameters):
        ttft: tuple[float | None, ...]
        tpot: tuple[float | None, ...]
        ttft_headroom: tuple[float | None, ...]
        tpot_headroom: tuple[float | None, ...]
        dispatched: tuple[float | None, ...]

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self.writes = tuple(latency(context.name))
        named = ((key, getattr(parameters, key.name)) for key in self.writes)
        self._values = {key: np.array(values, dtype=np.float64) for key, values in named}

    def produce(self, request, c):
        return {key: values[c.slots] for key, values in self._values.items()}
