"""What the engines call their metrics: one table an engine, and the little language that selects a series.

A selector is `name` or `name{label=value,...}`, values quoted or not; it stands for every series of that metric whose
labels agree. Several series of one metric are the parts of one engine (data-parallel ranks, models) and are added; what
is a fraction or the same everywhere (KV usage, block size) is the highest of them. The blocks of the cache are added
too: an endpoint is one port, and what is behind it is the caches of all its ranks.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from epp.data.exposition import Sample
from epp.errors import ConfigError
from epp.keys import CACHE_BLOCK_SIZE, CACHE_BLOCKS, KV_USAGE, RUNNING, WAITING, Key, pool_key

Combine = Literal["sum", "max"]

_NAME = re.compile(r"\s*([A-Za-z_:][\w:]*)\s*(?:\{(.*)\}\s*)?", re.DOTALL)
_MATCHER = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^"=,{}]*?))\s*(?:,|$)', re.DOTALL)


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
        whole = _NAME.fullmatch(text)
        if whole is None:
            raise ConfigError(f"metric {text!r}: write name or name{{label=value,...}}")
        return cls(whole[1], _matchers(text, whole[2] or ""))

    def matches(self, sample: Sample) -> bool:
        """Whether a sample of this name is meant."""
        return not self.labels or all(sample.labels.get(label) == value for label, value in self.labels)


def _matchers(text: str, block: str) -> tuple[tuple[str, str], ...]:
    found, position = [], 0
    while block[position:].strip():
        matcher = _MATCHER.match(block, position)
        if matcher is None:
            raise ConfigError(f"metric {text!r}: {block[position:].strip()!r} is not label=value")
        quoted = matcher[2]
        found.append((matcher[1], matcher[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)))
        position = matcher.end()
    return tuple(found)


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


def custom_key(name: str) -> Key:
    """The key of a custom metric: what scrapes report under a name of the operator's choice."""
    return pool_key(name, missing=math.nan, source="metrics")


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

ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
"""The labels of an endpoint that name its engine; the first that is there counts."""


def engine_of(labels: Mapping[str, str], keys: tuple[str, ...] = ENGINE_LABELS) -> str:
    """The engine that an endpoint's labels name; "" if none."""
    return next((labels[key] for key in keys if key in labels), "")


def with_names(
    *, waiting: str = "", running: str = "", kv_usage: str = "", lora: str = "", cache_info: str = ""
) -> tuple[EngineSpec, ...]:
    """The known engines, vLLM's metrics under other names (selectors) where they are given.

    Raises:
        ConfigError: a name is no selector.
    """
    named = {WAITING: waiting, RUNNING: running, KV_USAGE: kv_usage}
    given = [gauge(key, name, "max" if key is KV_USAGE else "sum") for key, name in named.items() if name]
    if cache_info:
        given += [
            info(CACHE_BLOCK_SIZE, cache_info, "block_size", "max"),
            info(CACHE_BLOCKS, cache_info, "num_gpu_blocks"),
        ]
    replaced = {reading.key for reading in given}
    kept = [reading for reading in VLLM.readings if reading.key not in replaced]
    vllm = EngineSpec(VLLM.name, (*given, *kept), lora or VLLM.lora, VLLM.restarts)
    return tuple(vllm if engine is VLLM else engine for engine in ENGINES)
