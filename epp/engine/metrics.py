"""The ``/metrics`` page of a vLLM server: its names, labels and buckets, written by hand.

A picker scrapes every few dozen milliseconds, and rendering with a general library costs milliseconds a page; here
each number is a plain attribute and the page is one pass over a table.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from epp.engine.model import Admission, Batch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to the longest request."""
    steps = (mantissa * 10.0**exponent for exponent in range(12) for mantissa in (1, 2, 5))
    return tuple(step for step in steps if step <= max_model_len)


@dataclass(slots=True)
class Histogram:
    """Counts of values up to each bound (not cumulative), the last count for those above all, and the sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read off the engine when the page is asked for; ``lora_*`` are the adapters of the two queues."""

    running: int
    waiting: int
    kv_usage: float
    lora_running: frozenset[str]
    lora_waiting: frozenset[str]
    now: float


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change while the engine lives; ``started`` is a Unix time, ``max_loras`` is 0 without adapters."""

    model: str
    block_size: int
    num_blocks: int
    max_model_len: int
    max_loras: int
    started: float


class EngineMetrics:
    """The counters and histograms of one engine since its start; times in seconds."""

    def __init__(self, info: EngineInfo) -> None:
        """All zero."""
        self._info = info
        self._labels = _labels(engine=0, model_name=info.model)
        tokens = token_buckets(info.max_model_len)
        self.prefix_queries = self.prefix_hits = 0
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = 0
        self.preemptions = 0
        self.finished = dict.fromkeys(FINISH_REASONS, 0)
        self.prompt_lengths = Histogram(tokens)
        self.generation_lengths = Histogram(tokens)
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(LATENCY_BUCKETS)
        self.queue = Histogram(LATENCY_BUCKETS)

    def scheduled(self, batch: Batch) -> None:
        """Counts what the scheduler decided: prefix hits at admission, and preemptions."""
        self.preemptions += len(batch.preempted)
        for admission in batch.admissions:
            self.prefix_queries += admission.prompt_tokens
            self.prefix_hits += admission.cached_tokens
            self.queue.observe(admission.queue_seconds)

    def prefilled(self, admission: Admission, seconds: float) -> None:
        """Counts a prompt once all of it is computed, ``seconds`` after the request's arrival."""
        self.prompt_tokens += admission.prompt_tokens
        self.cached_tokens += admission.cached_tokens
        self.ttft.observe(seconds)

    def ended(self, reason: str, prompt_tokens: int, generation_tokens: int, seconds: float) -> None:
        """Counts the end of a request, ``seconds`` after its arrival."""
        self.finished[reason] += 1
        self.prompt_lengths.observe(prompt_tokens)
        self.generation_lengths.observe(generation_tokens)
        self.e2e.observe(seconds)

    def render(self, gauges: Gauges) -> bytes:
        """The page in Prometheus' text format 0.0.4."""
        lines: list[str] = []
        self._render_gauges(lines, gauges)
        self._render_counters(lines)
        for name, about, histogram in (
            ("request_prompt_tokens", "Prompt tokens a request.", self.prompt_lengths),
            ("request_generation_tokens", "Generated tokens a request.", self.generation_lengths),
            ("time_to_first_token_seconds", "From arrival to the first token.", self.ttft),
            ("inter_token_latency_seconds", "Between two tokens of a request.", self.itl),
            ("e2e_request_latency_seconds", "From arrival to the last token.", self.e2e),
            ("request_queue_time_seconds", "From arrival to admission.", self.queue),
        ):
            _histogram(lines, f"vllm:{name}", about, self._labels, histogram)
        return ("\n".join(lines) + "\n").encode()

    def _render_gauges(self, lines: list[str], gauges: Gauges) -> None:
        info, own = self._info, self._labels
        _family(lines, "process_start_time_seconds", "gauge", "Unix time of the start.", ("", info.started))
        _family(lines, "vllm:num_requests_running", "gauge", "Requests in the batch.", (own, gauges.running))
        _family(lines, "vllm:num_requests_waiting", "gauge", "Requests in the queue.", (own, gauges.waiting))
        _family(lines, "vllm:kv_cache_usage_perc", "gauge", "Share of KV blocks in use.", (own, gauges.kv_usage))
        config = _labels(block_size=info.block_size, engine=0, num_gpu_blocks=info.num_blocks)
        _family(lines, "vllm:cache_config_info", "gauge", "The KV cache's configuration.", (config, 1))
        if info.max_loras:
            adapters = _labels(
                max_lora=info.max_loras,
                running_lora_adapters=",".join(sorted(gauges.lora_running)),
                waiting_lora_adapters=",".join(sorted(gauges.lora_waiting)),
            )
            about = "Adapters of the running and waiting requests; the value is the time."
            _family(lines, "vllm:lora_requests_info", "gauge", about, (adapters, gauges.now))

    def _render_counters(self, lines: list[str]) -> None:
        own = self._labels
        for name, about, value in (
            ("prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", self.prefix_queries),
            ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", self.prefix_hits),
            ("num_preemptions_total", "Preemptions.", self.preemptions),
            ("prompt_tokens_total", "Prompt tokens processed.", self.prompt_tokens),
            ("generation_tokens_total", "Tokens generated.", self.generation_tokens),
        ):
            _family(lines, f"vllm:{name}", "counter", about, (own, value))
        sources = {
            "local_compute": self.prompt_tokens - self.cached_tokens,
            "local_cache_hit": self.cached_tokens,
            "external_kv_transfer": 0,
        }
        samples = [(f"{own},{_labels(source=source)}", value) for source, value in sources.items()]
        _family(lines, "vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens by source.", *samples)
        samples = [(f"{own},{_labels(finished_reason=reason)}", value) for reason, value in self.finished.items()]
        _family(lines, "vllm:request_success_total", "counter", "Requests ended.", *samples)


def _labels(**labels: str | int) -> str:
    escaped = ((name, str(value).replace("\\", r"\\").replace('"', r"\"")) for name, value in labels.items())
    return ",".join(f'{name}="{value}"' for name, value in escaped)


def _family(lines: list[str], name: str, kind: str, about: str, *samples: tuple[str, float]) -> None:
    lines.append(f"# HELP {name} {about}\n# TYPE {name} {kind}")
    for labels, value in samples:
        lines.append(f"{name}{{{labels}}} {float(value)}" if labels else f"{name} {float(value)}")


def _histogram(lines: list[str], name: str, about: str, labels: str, histogram: Histogram) -> None:
    lines.append(f"# HELP {name} {about}\n# TYPE {name} histogram")
    below = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(below)}')
    lines.append(f"{name}_count{{{labels}}} {float(below)}\n{name}_sum{{{labels}}} {float(histogram.total)}")
