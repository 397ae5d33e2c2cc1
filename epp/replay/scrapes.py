"""What a scrape of a simulated engine finds: the samples of its page that somebody reads, without the page.

The names, labels and values are those that `epp engine` has on `/metrics`. Writing a page and reading it again costs a
millisecond, and there are hundreds of thousands of scrapes in a replay: so it is done only for a configuration that
reads what is not in the tables below.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import NamedTuple

from epp.data.engines import START_TIME
from epp.data.report import Found
from epp.engine.metrics import EngineMetrics, Gauges
from epp.engine.model import Model, ModelConfig
from epp.engine.page import EngineInfo, Page, labels
from epp.engine.virtual import VirtualEngine
from epp.formats.exposition import Exposition, Sample

Value = Callable[[EngineMetrics, Gauges], float]

_CACHE = "vllm:cache_config_info"

_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "time_to_first_token",
    "vllm:inter_token_latency_seconds": "inter_token_latency",
    "vllm:request_time_per_output_token_seconds": "request_time_per_output_token",
    "vllm:e2e_request_latency_seconds": "e2e_request_latency",
    "vllm:request_queue_time_seconds": "request_queue_time",
    "vllm:request_inference_time_seconds": "request_inference_time",
    "vllm:request_prefill_time_seconds": "request_prefill_time",
    "vllm:request_decode_time_seconds": "request_decode_time",
    "vllm:request_prompt_tokens": "request_prompt_tokens",
    "vllm:request_generation_tokens": "request_generation_tokens",
    "vllm:request_prefill_kv_computed_tokens": "request_prefill_kv_computed_tokens",
    "vllm:iteration_tokens_total": "iteration_tokens",
}
_COUNTERS = {
    "vllm:prefix_cache_queries_total": "prefix_cache_queries",
    "vllm:prefix_cache_hits_total": "prefix_cache_hits",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:prompt_tokens_cached_total": "prompt_tokens_cached",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:num_preemptions_total": "num_preemptions",
}
_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
}


def _gauge(field: str) -> Value:
    return lambda _, gauges: getattr(gauges, field)


def _counter(field: str) -> Value:
    read = attrgetter(field)
    return lambda metrics, _: read(metrics)


def _values(labels: str) -> Iterable[tuple[str, bytes, Value]]:
    """What a page has: name, labels and how the value is come by."""
    own, by_source = labels.encode(), "vllm:prompt_tokens_by_source_total"
    for name, field in _GAUGES.items():
        yield name, own, _gauge(field)
    for name, field in _COUNTERS.items():
        yield name, own, _counter(field)
    for name, field in _HISTOGRAMS.items():
        yield f"{name}_sum", own, _counter(f"{field}.total")
        yield f"{name}_count", own, _counter(f"{field}.count")
    yield by_source, f'{labels},source="local_compute"'.encode(), lambda m, _: m.prompt_tokens - m.prompt_tokens_cached
    yield by_source, f'{labels},source="local_cache_hit"'.encode(), lambda m, _: m.prompt_tokens_cached


class Reading(NamedTuple):
    """What an engine's page says: the values at hand, and what had to be read off the page itself."""

    values: list[float]
    others: dict[str, list[Sample]]


class Pages:
    """The samples of engines of one kind. What hasn't changed since an engine's last page is the same object.

    Args:
        model: the model's name.
        config: the engines'.
        names: of the samples that somebody reads.
    """

    def __init__(self, model: str, config: ModelConfig, names: frozenset[str]) -> None:
        own = f'engine="0",model_name="{model}"'
        self._values = [value for value in _values(own) if value[0] in names]
        info = EngineInfo(model, config.block_size, config.num_blocks, config.max_model_len, 0, 0.0)
        self._info = [Sample(",".join(labels(engine=0, **info.cache_config())).encode(), 1.0)]
        self._page = Page(info)
        self._others = self._beyond(EngineMetrics(config.max_model_len), Gauges.of(Model(config)), names)
        self._known: dict[VirtualEngine, tuple[list[float], Found]] = {}

    def _beyond(self, metrics: EngineMetrics, gauges: Gauges, names: frozenset[str]) -> Exposition | None:
        """Reads what a page has of these names besides the values above; None if there is nothing."""
        asked = names - {name for name, _, _ in self._values} - {_CACHE, START_TIME}
        found = Exposition(asked).read(self._page.render([metrics], [gauges])) if asked else {}
        return Exposition(found) if found else None

    def read(self, engine: VirtualEngine, now: float) -> Reading:
        """What an engine's page would say at this moment, in short."""
        gauges, metrics = engine.observe(now), engine.metrics
        values = [value(metrics, gauges) for _, _, value in self._values]
        others = {} if self._others is None else self._others.read(self._page.render([metrics], [gauges]))
        return Reading(values, others)

    def found(self, engine: VirtualEngine, reading: Reading) -> Found:
        """The same as the samples of the page."""
        known = self._known.get(engine)
        if known is not None and known[0] == reading.values and self._others is None:
            return known[1]
        found: dict[str, list[Sample]] = {_CACHE: self._info}
        for (name, own, _), value in zip(self._values, reading.values, strict=True):
            found.setdefault(name, []).append(Sample(own, float(value)))
        found |= reading.others
        self._known[engine] = (reading.values, found)
        return found
