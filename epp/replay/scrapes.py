"""What a scrape of a simulated engine finds: the samples of its page that somebody reads, without the page.

The names, labels and values are those that `epp engine` has on `/metrics`; writing a page and reading it again costs
milliseconds, and there are hundreds of thousands of scrapes in a replay.
"""

from collections.abc import Callable, Iterable
from operator import attrgetter

from epp.data.report import Found
from epp.engine.metrics import EngineMetrics, Gauges
from epp.engine.model import ModelConfig
from epp.engine.virtual import VirtualEngine
from epp.formats.exposition import Sample

Value = Callable[[EngineMetrics, Gauges], float]

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


class Page:
    """The samples of engines of one kind.

    Args:
        model: the model's name.
        config: the engines'.
        names: of the samples that somebody reads.
    """

    def __init__(self, model: str, config: ModelConfig, names: frozenset[str]) -> None:
        labels = f'engine="0",model_name="{model}"'
        self._values = [value for value in _values(labels) if value[0] in names]
        info = f'block_size="{config.block_size}",engine="0",num_gpu_blocks="{config.num_blocks}"'
        self._info = [Sample(info.encode(), 1.0)]

    def of(self, engine: VirtualEngine, now: float) -> Found:
        """What an engine's page would say at this moment."""
        gauges, metrics = engine.observe(now), engine.metrics
        found: dict[str, list[Sample]] = {"vllm:cache_config_info": self._info}
        for name, labels, value in self._values:
            found.setdefault(name, []).append(Sample(labels, float(value(metrics, gauges))))
        return found
