"""What the engines call their metrics: one table an engine, and the little language that selects a series.

A selector is `name` or `name{label=value,...}`, values quoted or not; it stands for every series of that metric whose
labels agree. Several series of one metric are the parts of one engine (data-parallel ranks, models) and are added; what
is a fraction or the same everywhere (KV usage, block size) is the highest of them. The blocks of the cache are added
too: an endpoint is one port, and what is behind it is the caches of all its ranks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from epp.errors import ConfigError
from epp.formats.exposition import Sample
from epp.keys import (
    CACHE_BLOCK_SIZE,
    CACHE_BLOCKS,
    CORE_METRICS_EXTRACTOR,
    FIRST_TOKEN_SECONDS,
    FIRST_TOKENS,
    KV_USAGE,
    RUNNING,
    TOKEN_GAP_SECONDS,
    TOKEN_GAPS,
    WAITING,
    Key,
    attribute,
)
from epp.sources import ENGINE_LABELS, EngineMetrics, parse_selector

Combine = Literal["sum", "max"]


@dataclass(frozen=True, slots=True)
class Selector:
    """The series of one metric whose labels have these values."""

    name: str
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Reads `name` or `name{label=value,...}`.

        Raises:
            ConfigError: the text is neither.
        """
        try:
            return cls(*parse_selector(text))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def matches(self, sample: Sample) -> bool:
        """Whether a sample of this name is meant."""
        return not self.labels or all(sample.labels.get(label) == value for label, value in self.labels)


@dataclass(frozen=True, slots=True)
class Reading:
    """How one column is read; several readings of one key are alternatives, the first that the page has counts.

    Attributes:
        key: the column.
        selector: the series.
        combine: what several series make.
        label: the number is the value of this label, as in `vllm:cache_config_info`; "" for the sample's own value.
    """

    key: Key
    selector: Selector
    combine: Combine
    label: str = ""


def gauge(key: Key, metric: str, combine: Combine = "sum") -> Reading:
    """A column that is a gauge's value; `metric` is a selector."""
    return Reading(key, Selector.parse(metric), combine)


def info(key: Key, metric: str, label: str, combine: Combine = "sum") -> Reading:
    """A column that is the value of a label of an info metric."""
    return Reading(key, Selector.parse(metric), combine, label)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """The metrics of one kind of engine.

    Attributes:
        name: as in the label `llm-d.ai/engine-type`.
        readings: the columns, see `Reading`.
        lora: the info metric with the labels `running_lora_adapters`, `waiting_lora_adapters` (comma-separated) and
            `max_lora`, whose value is the time of its last change; "" if the engine has none.
        restarts: names of counters that only fall when the engine starts anew.
    """

    name: str
    readings: tuple[Reading, ...]
    lora: str = ""
    restarts: tuple[str, ...] = ()

    @property
    def own_names(self) -> frozenset[str]:
        """The metrics by which a page is known as this engine's."""
        lora = {self.lora} if self.lora else set()
        return frozenset({reading.selector.name for reading in self.readings} | lora)


START_TIME = "process_start_time_seconds"
"""On the page of every Python server that runs one process; a value that changes is a restart."""

VLLM = EngineSpec(
    "vllm",
    (
        gauge(WAITING, "vllm:num_requests_waiting"),
        gauge(RUNNING, "vllm:num_requests_running"),
        gauge(KV_USAGE, "vllm:kv_cache_usage_perc", "max"),
        gauge(KV_USAGE, "vllm:gpu_cache_usage_perc", "max"),  # its name before vLLM 0.10
        gauge(FIRST_TOKENS, "vllm:time_to_first_token_seconds_count"),
        gauge(FIRST_TOKEN_SECONDS, "vllm:time_to_first_token_seconds_sum"),
        gauge(TOKEN_GAPS, "vllm:inter_token_latency_seconds_count"),
        gauge(TOKEN_GAP_SECONDS, "vllm:inter_token_latency_seconds_sum"),
        info(CACHE_BLOCK_SIZE, "vllm:cache_config_info", "block_size", "max"),
        info(CACHE_BLOCKS, "vllm:cache_config_info", "num_gpu_blocks"),
    ),
    lora="vllm:lora_requests_info",
    restarts=("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
)

SGLANG = EngineSpec(
    "sglang",
    (
        gauge(WAITING, "sglang:num_queue_reqs"),
        gauge(RUNNING, "sglang:num_running_reqs"),
        gauge(KV_USAGE, "sglang:token_usage", "max"),
        gauge(FIRST_TOKENS, "sglang:time_to_first_token_seconds_count"),
        gauge(FIRST_TOKEN_SECONDS, "sglang:time_to_first_token_seconds_sum"),
        gauge(TOKEN_GAPS, "sglang:inter_token_latency_seconds_count"),
        gauge(TOKEN_GAP_SECONDS, "sglang:inter_token_latency_seconds_sum"),
        info(CACHE_BLOCK_SIZE, "sglang:cache_config_info", "page_size", "max"),
        info(CACHE_BLOCKS, "sglang:cache_config_info", "num_pages"),
        gauge(CACHE_BLOCK_SIZE, "sglang:page_size", "max"),  # instead of the info metric since SGLang 0.5.11
        gauge(CACHE_BLOCKS, "sglang:num_pages"),
    ),
    restarts=("sglang:prompt_tokens_total", "sglang:generation_tokens_total"),
)

TRTLLM_SERVE = EngineSpec(
    "trtllm-serve",
    (
        gauge(WAITING, "trtllm_num_requests_waiting"),
        gauge(RUNNING, "trtllm_num_requests_running"),
        gauge(KV_USAGE, "trtllm_kv_cache_utilization", "max"),
        gauge(CACHE_BLOCK_SIZE, "trtllm_kv_cache_tokens_per_block", "max"),
        gauge(CACHE_BLOCKS, "trtllm_kv_cache_max_blocks"),
    ),
    restarts=("trtllm_num_requests_completed_total", "trtllm_request_success_total"),
)

_TRITON_COUNTERS = ("nv_inference_request_success", "nv_inference_exec_count")

TRITON_TENSORRT_LLM = EngineSpec(
    "triton-tensorrt-llm",
    (
        gauge(WAITING, "nv_trt_llm_request_metrics{request_type=waiting}"),
        gauge(RUNNING, "nv_trt_llm_request_metrics{request_type=scheduled}"),
        gauge(KV_USAGE, "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}", "max"),
        gauge(CACHE_BLOCK_SIZE, "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}", "max"),
        gauge(CACHE_BLOCKS, "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}"),
    ),
    restarts=_TRITON_COUNTERS,
)

# Triton alone doesn't say how many requests run: nv_inference_exec_count counts executions since the start.
TRITON = EngineSpec("triton", (gauge(WAITING, "nv_inference_pending_request_count"),), restarts=_TRITON_COUNTERS)

ENGINES = (VLLM, SGLANG, TRTLLM_SERVE, TRITON_TENSORRT_LLM, TRITON)
"""In the order in which a page of unknown origin is tried: Triton's TensorRT-LLM backend has Triton's metrics too."""


def engine_of(labels: Mapping[str, str], keys: tuple[str, ...] = ENGINE_LABELS) -> str:
    """The engine that an endpoint's labels name; "" if none."""
    return next((labels[key] for key in keys if key in labels), "")


def overridden(engine: EngineSpec, metrics: EngineMetrics, producer: str = CORE_METRICS_EXTRACTOR) -> EngineSpec:
    """The engine, with other metrics where they are given.

    Args:
        engine: what is known of it.
        metrics: what is given.
        producer: whose the keys of custom metrics are.

    Raises:
        ConfigError: one of them is no selector.
    """
    given = list(_readings(metrics))
    given += [gauge(attribute(name, producer), selector) for name, selector in metrics.custom]
    replaced = {reading.key for reading in given}
    kept = [reading for reading in engine.readings if reading.key not in replaced]
    lora = Selector.parse(metrics.lora).name if metrics.lora else engine.lora
    return EngineSpec(engine.name, (*given, *kept), lora, engine.restarts)


def _readings(metrics: EngineMetrics) -> Iterator[Reading]:
    if metrics.waiting:
        yield gauge(WAITING, metrics.waiting)
    if metrics.running:
        yield gauge(RUNNING, metrics.running)
    if metrics.kv_usage:
        yield gauge(KV_USAGE, metrics.kv_usage, "max")
    if metrics.cache_info:
        yield info(CACHE_BLOCK_SIZE, metrics.cache_info, metrics.block_size_label, "max")
        yield info(CACHE_BLOCKS, metrics.cache_info, metrics.blocks_label)
    if metrics.block_size:
        yield gauge(CACHE_BLOCK_SIZE, metrics.block_size, "max")
    if metrics.blocks:
        yield gauge(CACHE_BLOCKS, metrics.blocks)
