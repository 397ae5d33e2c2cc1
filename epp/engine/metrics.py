"""What an engine counts about itself, with vLLM's meanings: each number enters at the moment at which vLLM counts it.

Both drivers feed it: ``scheduled`` when a batch is chosen, ``stepping`` just before a step is applied, ``stepped``
after it. ``epp.engine.page`` writes it down as the ``/metrics`` page.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby

from epp.engine.model import Batch, Model, Sequence, StepResult

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
ITERATION_BUCKETS = (1.0, *(8.0 * 2**power for power in range(12)))
N_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0)
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
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
    count: int = 0
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Counts one value, or several equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.count += times
        self.total += value * times

    def observe_each(self, values: Iterable[float]) -> None:
        """Counts values, of which many in a row are equal."""
        total = self.total
        for value, times in groupby(values):
            self.count += (many := len(list(times)))
            self.counts[bisect_left(self.bounds, value)] += many
            for _ in range(many):  # added one by one: in the order and with the rounding of `observe`
                total += value
        self.total = total


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read off the engine when the page is asked for; ``lora_*`` are the adapters of the two queues."""

    running: int
    waiting: int
    deferred: int
    kv_usage: float
    lora_running: tuple[str, ...]
    lora_waiting: tuple[str, ...]

    @classmethod
    def of(cls, model: Model, blocks_ahead: int = 0) -> "Gauges":
        """The model as it is; ``blocks_ahead`` are in use besides those that it knows of."""
        return cls(
            running=len(model.running),
            waiting=len(model.waiting),
            deferred=model.deferred,
            kv_usage=(model.pool.used + blocks_ahead) / model.pool.size,
            lora_running=_adapters(model.running) if model.adapted else (),
            lora_waiting=_adapters(model.waiting) if model.adapted else (),
        )


def _adapters(queue: Iterable[Sequence]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(s.request.lora for s in queue if s.request.lora))


class EngineMetrics:
    """The counters and histograms of one engine since its start; times in seconds, names as on vLLM's page."""

    def __init__(self, max_model_len: int) -> None:
        """All zero."""
        tokens = token_buckets(max_model_len)
        self.prefix_cache_queries = self.prefix_cache_hits = 0
        self.prompt_tokens = self.prompt_tokens_cached = self.generation_tokens = 0
        self.num_preemptions = 0
        self.request_success = dict.fromkeys(FINISH_REASONS, 0)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_generation_tokens = Histogram(tokens)
        self.iteration_tokens = Histogram(ITERATION_BUCKETS)
        self.request_max_num_generation_tokens = Histogram(tokens)
        self.request_params_n = Histogram(N_BUCKETS)
        self.request_params_max_tokens = Histogram(tokens)
        self.time_to_first_token = Histogram(TTFT_BUCKETS)
        self.inter_token_latency = Histogram(ITL_BUCKETS)
        self.request_time_per_output_token = Histogram(ITL_BUCKETS)
        self.e2e_request_latency = Histogram(LATENCY_BUCKETS)
        self.request_queue_time = Histogram(LATENCY_BUCKETS)
        self.request_inference_time = Histogram(LATENCY_BUCKETS)
        self.request_prefill_time = Histogram(LATENCY_BUCKETS)
        self.request_decode_time = Histogram(LATENCY_BUCKETS)
        self.request_num_preemptions = Histogram(PREEMPTION_BUCKETS)
        self.request_prefill_kv_computed_tokens = Histogram(tokens)

    def scheduled(self, batch: Batch) -> None:
        """A batch was chosen: prefix hits at first admission, and preemptions."""
        self.num_preemptions += len(batch.preempted)
        for sequence in batch.admissions:
            self.prefix_cache_queries += sequence.request.prompt_tokens
            self.prefix_cache_hits += sequence.cached_tokens

    def stepping(self, batch: Batch, now: float) -> None:
        """The (first) step of a batch ends, not yet applied: the tokens of those that have had one before."""
        gaps = [
            now - sequence.last_token
            for sequence, count in batch.scheduled
            if sequence.produced and sequence.tokens - sequence.computed <= count and sequence.finish_reason is None
        ]
        first = [
            sequence.request.prompt_tokens - sequence.cached_tokens
            for sequence, count in (batch.scheduled if batch.prefill_tokens else ())
            if not sequence.produced
            and sequence.tokens - sequence.computed <= count
            and sequence.finish_reason is None
            and sequence.request.output_tokens
        ]
        self.inter_token_latency.observe_each(gaps)
        self.generation_tokens += len(gaps) + len(first)
        if gaps or first:
            self.iteration_tokens.observe(sum(first) + len(gaps) + len(first))

    def decoded(self, batch: Batch, steps: int, seconds: float) -> None:
        """Further steps of a batch that only decodes, none of which was aborted; ``seconds`` long in all."""
        sequences = batch.decode_sequences
        self.generation_tokens += sequences * steps
        self.inter_token_latency.observe(seconds / steps, sequences * steps)
        self.iteration_tokens.observe(sequences, steps)

    def stepped(self, result: StepResult) -> None:
        """Steps have been applied: first tokens, and ends."""
        for sequence in result.started:
            self._prefilled(sequence, sequence.first_token)
        for sequence in result.finished:
            if not sequence.produced:
                self._prefilled(sequence, sequence.last_token)
            self._ended(sequence)

    def _prefilled(self, sequence: Sequence, now: float) -> None:
        self.prompt_tokens += sequence.request.prompt_tokens
        self.prompt_tokens_cached += sequence.cached_tokens
        self.time_to_first_token.observe(now - sequence.arrived)

    def _ended(self, sequence: Sequence) -> None:
        request = sequence.request
        first, last = sequence.first_token, sequence.last_token
        self.request_success[sequence.finish_reason or "error"] += 1
        self.request_prompt_tokens.observe(request.prompt_tokens)
        self.request_generation_tokens.observe(sequence.produced)
        self.request_params_max_tokens.observe(request.max_tokens or request.output_tokens)
        self.e2e_request_latency.observe(last - sequence.arrived)
        self.request_queue_time.observe(sequence.admitted - sequence.arrived)
        self.request_inference_time.observe(last - sequence.admitted)
        self.request_prefill_time.observe(first - sequence.admitted)
        self.request_decode_time.observe(last - first)
        gaps = sequence.produced - 1
        self.request_time_per_output_token.observe((last - first) / gaps if gaps > 0 else 0.0)
        self.request_num_preemptions.observe(sequence.preemptions)
        self.request_prefill_kv_computed_tokens.observe(request.prompt_tokens - sequence.cached_tokens)

    def answered(self, answers: int, longest: int) -> None:
        """A client's request is complete: how many answers it asked for, and the tokens of the longest."""
        self.request_params_n.observe(answers)
        self.request_max_num_generation_tokens.observe(longest)
