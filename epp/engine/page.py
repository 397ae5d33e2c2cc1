"""The ``/metrics`` page of a vLLM server, written by hand: its families in their order, their labels and buckets.

A picker scrapes every few dozen milliseconds, and rendering six hundred lines with a general library costs
milliseconds; here what has not changed since the last page is kept as text. The help texts are ours.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

from epp.engine.metrics import EngineMetrics, Gauges, Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROCESS_SECONDS = 1.0

Value = int | float
Labels = tuple[str, ...]
"""As they stand between the braces, one text a label, in alphabetical order."""
Sample = tuple[Labels, Value]
_Read = Callable[[EngineMetrics], Value]
_ReadMany = Callable[[EngineMetrics], dict[str, Value]]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change while the engine lives; ``started`` is a Unix time.

    Attributes:
        max_loras: 0 = the engine serves no adapters.
        ranks: the ``engine`` label of each data-parallel rank.
    """

    model: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_loras: int
    started: float
    ranks: tuple[int, ...] = (0,)

    def cache_config(self) -> dict[str, object]:
        """Labels of ``vllm:cache_config_info``, with the values of a plain full-attention model."""
        tokens = self.block_size * self.num_blocks
        return {
            "_block_size_resolved": True,
            "block_size": self.block_size,
            "cache_dtype": "auto",
            "cache_hit_alignment_tokens": None,
            "effective_attention_block_size": self.block_size,
            "enable_mamba_shared_prefix_checkpoint": False,
            "enable_prefix_caching": True,
            "gpu_memory_utilization": 0.92,
            "hash_block_size": None,
            "is_attention_free": False,
            "kv_cache_dtype_skip_layers": [],
            "kv_cache_layout": None,
            "kv_cache_max_concurrency": tokens / self.max_model_len,
            "kv_cache_memory_bytes": None,
            "kv_cache_size_tokens": tokens,
            "kv_offloading_backend": "native",
            "kv_offloading_size": None,
            "kv_sharing_fast_prefill": False,
            "mamba_block_size": None,
            "mamba_cache_dtype": "auto",
            "mamba_cache_mode": "none",
            "mamba_page_size_padded": None,
            "mamba_ssm_cache_dtype": "auto",
            "num_cpu_blocks": None,
            "num_gpu_blocks": self.num_blocks,
            "num_gpu_blocks_override": None,
            "prefix_cache_retention_interval": 0,
            "prefix_caching_hash_algo": "xxhash",
            "prefix_match_unit": None,
            "replayssm_buffer_len": 16,
            "skip_page_size_padded": None,
            "sliding_window": None,
            "swa_bounded_replay": True,
            "use_kda_recoverssm": False,
            "use_replayssm": False,
            "user_specified_block_size": True,
        }


def _zero(_: EngineMetrics) -> int:
    """Of what is not modelled: memory traffic, pictures, a second cache tier."""
    return 0


_FIRST_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("estimated_flops_per_gpu", "Floating point operations; not modelled.", _zero),
    ("estimated_read_bytes_per_gpu", "Bytes read from memory; not modelled.", _zero),
    ("estimated_write_bytes_per_gpu", "Bytes written to memory; not modelled.", _zero),
)

_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda m: m.prefix_cache_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda m: m.prefix_cache_hits),
    ("external_prefix_cache_queries", "Tokens looked up in other instances' caches; not modelled.", _zero),
    ("external_prefix_cache_hits", "Tokens found in other instances' caches; not modelled.", _zero),
    ("mm_cache_queries", "Pictures looked up; not modelled.", _zero),
    ("mm_cache_hits", "Pictures found; not modelled.", _zero),
    ("num_preemptions", "Requests that had to give their blocks back.", lambda m: m.num_preemptions),
    ("prompt_tokens", "Tokens of prompts whose prefill has ended.", lambda m: m.prompt_tokens),
)

_BY_SOURCE: tuple[tuple[str, str, _ReadMany], ...] = (
    (
        "prompt_tokens_by_source",
        "Tokens of prompts by where their KV came from.",
        lambda m: {
            "local_compute": m.prompt_tokens - m.prompt_tokens_cached,
            "local_cache_hit": m.prompt_tokens_cached,
            "external_kv_transfer": 0,
        },
    ),
    (
        "prompt_tokens_cached_by_source",
        "Tokens found in a cache, at admission, by the tier that had them.",
        lambda m: {"device": m.prefix_cache_hits, "host": 0, "p2p": 0, "disk": 0, "external_unspecified": 0},
    ),
)

_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineMetrics], Histogram]], ...] = (
    ("request_prompt_tokens", "Tokens of the prompt.", lambda m: m.request_prompt_tokens),
    ("request_generation_tokens", "Tokens generated.", lambda m: m.request_generation_tokens),
    ("iteration_tokens_total", "Tokens a step.", lambda m: m.iteration_tokens),
    (
        "request_max_num_generation_tokens",
        "Tokens of a request's longest answer.",
        lambda m: m.request_max_num_generation_tokens,
    ),
    ("request_params_n", "Answers asked for.", lambda m: m.request_params_n),
    ("request_params_max_tokens", "Tokens allowed.", lambda m: m.request_params_max_tokens),
    ("time_to_first_token_seconds", "From arrival to the first token.", lambda m: m.time_to_first_token),
    ("inter_token_latency_seconds", "Between two tokens of a request.", lambda m: m.inter_token_latency),
    (
        "request_time_per_output_token_seconds",
        "Mean time between a request's tokens.",
        lambda m: m.request_time_per_output_token,
    ),
    ("e2e_request_latency_seconds", "From arrival to the last token.", lambda m: m.e2e_request_latency),
    ("request_queue_time_seconds", "From arrival to admission.", lambda m: m.request_queue_time),
    ("request_inference_time_seconds", "From admission to the last token.", lambda m: m.request_inference_time),
    ("request_prefill_time_seconds", "From admission to the first token.", lambda m: m.request_prefill_time),
    ("request_decode_time_seconds", "From the first token to the last.", lambda m: m.request_decode_time),
    ("request_num_preemptions", "Preemptions a request.", lambda m: m.request_num_preemptions),
    (
        "request_prefill_kv_computed_tokens",
        "Tokens of the prompt that were not cached.",
        lambda m: m.request_prefill_kv_computed_tokens,
    ),
)


class Page:
    """Writes the page of one server with one or several ranks.

    State: ``_texts`` (histograms as they were written last, with the counts that they had then), and the process'
    own families with the time at which they were read.
    """

    def __init__(self, info: EngineInfo) -> None:
        """Nothing is read yet."""
        self._info = info
        self._ranks = [labels(engine=rank, model_name=info.model) for rank in info.ranks]
        self._texts: dict[str, tuple[list[int], str]] = {}
        self._registry = CollectorRegistry()
        GCCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        ProcessCollector(registry=self._registry)
        self._process = (-PROCESS_SECONDS, "")
        config: list[str] = []
        samples = [(labels(engine=rank, **info.cache_config()), 1) for rank in info.ranks]
        family(config, "vllm:cache_config_info", "gauge", "The KV cache's configuration.", samples)
        self._cache_config = "".join(config)

    def render(self, metrics: Sequence[EngineMetrics], gauges: Sequence[Gauges], http: str = "") -> bytes:
        """The page in Prometheus' text format 0.0.4.

        Args:
            metrics: of each rank.
            gauges: of each rank.
            http: families of the HTTP server, already written.
        """
        out = [self._process_families()]
        self._counters(out, _FIRST_COUNTERS, metrics)
        self._gauges(out, gauges)
        self._counters(out, _COUNTERS, metrics)
        self._labelled(out, *_BY_SOURCE[0], metrics, "source")
        about = "Tokens of prompts found in a cache."
        self._counters(out, (("prompt_tokens_cached", about, lambda m: m.prompt_tokens_cached),), metrics)
        self._labelled(out, *_BY_SOURCE[1], metrics, "source")
        about = "Tokens generated."
        self._counters(out, (("generation_tokens", about, lambda m: m.generation_tokens),), metrics)
        about = "Requests that have ended."
        self._labelled(out, "request_success", about, lambda m: dict(m.request_success), metrics, "finished_reason")
        self._rejections(out)
        for name, about, read in _HISTOGRAMS:
            out.append(self._histogram(f"vllm:{name}", about, [read(one) for one in metrics]))
        out += [self._cache_config, http]
        return "".join(out).encode()

    def _process_families(self) -> str:
        read, text = self._process
        now = time.monotonic()
        if now - read >= PROCESS_SECONDS:
            text = generate_latest(self._registry).decode()
            self._process = (now, text)
        return text

    def _gauges(self, out: list[str], gauges: Sequence[Gauges]) -> None:
        def plain(name: str, about: str, values: Iterable[Value]) -> None:
            family(out, f"vllm:{name}", "gauge", about, list(zip(self._ranks, values, strict=True)))

        plain("num_requests_running", "Requests in the batch.", (g.running for g in gauges))
        plain("num_requests_waiting", "Requests in the queue.", (g.waiting for g in gauges))
        samples: list[Sample] = []
        for own, g in zip(self._ranks, gauges, strict=True):
            samples.append(((*own, 'reason="capacity"'), g.waiting - g.deferred))
            samples.append(((*own, 'reason="deferred"'), g.deferred))
        about = "Requests in the queue for want of room, or of a slot for their adapter."
        family(out, "vllm:num_requests_waiting_by_reason", "gauge", about, samples)
        states = {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
        samples = [((*own, f'sleep_state="{name}"'), value) for own in self._ranks for name, value in states.items()]
        family(out, "vllm:engine_sleep_state", "gauge", "Always awake.", samples)
        plain("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", (g.kv_usage for g in gauges))
        if self._info.max_loras:
            about = "Adapters of the running and waiting requests; the value is the time."
            family(out, "vllm:lora_requests_info", "gauge", about, [self._adapters(gauges)])

    def _adapters(self, gauges: Sequence[Gauges]) -> Sample:
        running = dict.fromkeys(name for g in gauges for name in g.lora_running)
        waiting = dict.fromkeys(name for g in gauges for name in g.lora_waiting)
        own = labels(
            max_lora=self._info.max_loras,
            running_lora_adapters=",".join(running),
            waiting_lora_adapters=",".join(waiting),
        )
        return own, time.time()

    def _counters(
        self, out: list[str], table: Iterable[tuple[str, str, _Read]], metrics: Sequence[EngineMetrics]
    ) -> None:
        for name, about, read in table:
            samples = [(own, read(one)) for own, one in zip(self._ranks, metrics, strict=True)]
            counter(out, f"vllm:{name}", about, samples, self._info.started)

    def _labelled(
        self, out: list[str], name: str, about: str, read: _ReadMany, metrics: Sequence[EngineMetrics], label: str
    ) -> None:
        samples = [
            (tuple(sorted((*own, f'{label}="{value}"'))), number)
            for own, one in zip(self._ranks, metrics, strict=True)
            for value, number in read(one).items()
        ]
        counter(out, f"vllm:{name}", about, samples, self._info.started)

    def _rejections(self, out: list[str]) -> None:
        own = labels(model_name=self._info.model)
        reasons = ("max_num_queued_reqs", "max_num_queued_tokens")
        samples: list[Sample] = [((*own, f'reason="{reason}"'), 0) for reason in reasons]
        about = "Requests refused for the queue's length: there is no limit."
        counter(out, "vllm:admission_rejections", about, samples, self._info.started)

    def _histogram(self, name: str, about: str, ranks: Sequence[Histogram]) -> str:
        counts = [histogram.count for histogram in ranks]
        known, text = self._texts.get(name, ([], ""))
        if counts == known:
            return text
        out = [f"# HELP {name} {about}\n# TYPE {name} histogram\n"]
        out.extend(buckets(name, own, histogram) for own, histogram in zip(self._ranks, ranks, strict=True))
        family(out, f"{name}_created", "gauge", about, [(own, self._info.started) for own in self._ranks])
        text = "".join(out)
        self._texts[name] = (counts, text)
        return text


def labels(**values: object) -> Labels:
    """Labels with what needs escaping escaped."""
    escaped = ((name, str(value).replace("\\", r"\\").replace('"', r"\"")) for name, value in sorted(values.items()))
    return tuple(f'{name}="{value}"' for name, value in escaped)


def _sample(name: str, own: Labels, value: Value) -> str:
    return f"{name}{{{','.join(own)}}} {float(value)!r}\n" if own else f"{name} {float(value)!r}\n"


def family(out: list[str], name: str, kind: str, about: str, samples: Iterable[Sample]) -> None:
    """Head and samples of a family."""
    out.append(f"# HELP {name} {about}\n# TYPE {name} {kind}\n")
    out.extend(_sample(name, own, value) for own, value in samples)


def counter(out: list[str], name: str, about: str, samples: Sequence[Sample], created: float) -> None:
    """A counter, and when it began."""
    family(out, f"{name}_total", "counter", about, samples)
    family(out, f"{name}_created", "gauge", about, [(own, created) for own, _ in samples])


def buckets(name: str, own: Labels, histogram: Histogram) -> str:
    """The samples of one histogram."""
    lines, below = [], 0
    for bound, count in zip((*map(float, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(_sample(f"{name}_bucket", tuple(sorted((*own, f'le="{bound}"'))), below))
    return "".join([*lines, _sample(f"{name}_count", own, below), _sample(f"{name}_sum", own, histogram.total)])
