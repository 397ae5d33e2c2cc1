"""The process's metrics: what the table lists, entered from records, and read off the pool when somebody scrapes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import numpy as np
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from epp import __version__
from epp.keys import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, KV_USAGE, RUNNING, WAITING, Key
from epp.observe.record import Comparison, Record
from epp.observe.series import Family, Spec, Value
from epp.observe.table import SPECS
from epp.pool import Endpoint, Pick, Pool
from epp.request import BYTES_PER_TOKEN

MOST_MODELS = 1000
MOST_FAIRNESS_IDS = 1000
OTHER = "other"


class RequestSeries:
    """The children of one (model, target, fairness id, priority), looked up once."""

    def __init__(self, families: dict[str, Family], labels: tuple[str, str, str, str]) -> None:
        def value(tail: str) -> Family:
            return families[f"llm_d_epp_request_{tail}"]

        self.total = value("total").value(*labels)
        self.running = value("running").value(*labels)
        self.duration = value("duration_seconds").buckets(*labels)
        self.size = value("size_bytes").buckets(*labels)
        self.response_size = families["llm_d_epp_response_size_bytes"].buckets(*labels)
        self.input_tokens = value("input_tokens").buckets(*labels)
        self.output_tokens = value("output_tokens").buckets(*labels)
        self.cached_tokens = value("cached_tokens").buckets(*labels)
        self.ntpot = value("ntpot_seconds").buckets(*labels)
        self.ttft = partial(value("ttft_seconds").buckets, *labels)
        self.tpot = value("streaming_tpot_seconds").buckets(*labels)
        self.itl = value("streaming_itl_seconds").buckets(*labels)
        self.error = partial(value("error_total").value, *labels)
        self._attempts = families["llm_d_epp_scheduler_attempts_total"]
        self._target = labels[1]
        self._routed: dict[str, Value] = {}

    def routed_to(self, endpoint: Endpoint) -> Value:
        """The counter of the decisions for this endpoint."""
        count = self._routed.get(endpoint.id)
        if count is None:
            where = (endpoint.name, endpoint.namespace, str(endpoint.port))
            count = self._routed[endpoint.id] = self._attempts.value("success", self._target, *where)
        return count


class Metrics(Collector):
    """All families, and the registry that exposes them.

    Args:
        pool: whose gauges are read at each scrape.
        pool_name: the label `name` of the pool's gauges.
        streams: expose the opt-in families about ext_proc streams.
        sizes: gives the blocks in each prefix index, by the plugin's name and type.
        now: the injected monotonic clock, seconds.
        staleness: how many seconds old an endpoint's metrics may be to count in the pool's averages.
    """

    def __init__(
        self,
        pool: Pool,
        pool_name: str,
        *,
        streams: bool = False,
        sizes: Callable[[], Mapping[tuple[str, str], int]] = dict,
        now: Callable[[], float] = time.monotonic,
        staleness: float = 2.0,
    ) -> None:
        self.families = {spec.name: Family(spec) for spec in SPECS}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._pool, self._pool_name, self._streams, self._sizes = pool, pool_name, streams, sizes
        self._now, self._staleness = now, staleness
        self.families["llm_d_epp_info"].value("", __version__).set(1)
        self._series: dict[tuple[str, str, str, int], RequestSeries] = {}
        self._models: set[str] = set()
        self._fairness_ids: set[str] = set()
        self._decided = self.families["llm_d_epp_scheduler_e2e_duration_seconds"].buckets()
        self._processed = self.families["llm_d_epp_request_processing_duration_seconds"].buckets()
        self._hit_ratio = self.families["llm_d_epp_prefix_indexer_hit_ratio"]
        self._hit_bytes = self.families["llm_d_epp_prefix_indexer_hit_bytes"]
        self._hits = self.families["scheduler_cache_hits_total"].value()
        self._misses = self.families["scheduler_cache_misses_total"].value()
        self.streams_inflight = self.families["llm_d_epp_extproc_streams_inflight"].value()

    def counter(self, name: str, labels: Mapping[str, str]) -> Value:
        """A counter for a plugin; a name that is not in the table is added, with the labels as they come.

        Raises:
            ValueError: the name is taken by a family with other labels, or one that is no counter.
        """
        family = self.families.get(name)
        if family is None:
            family = Family(Spec(name, "counter", tuple(labels), "[ALPHA] Counted by a plugin."))
            self.families[name] = family
        if family.spec.kind != "counter" or labels.keys() != set(family.spec.labels):
            raise ValueError(f"{name} is a {family.spec.kind} with the labels {', '.join(family.spec.labels)}")
        return family.value(*[self._label(label, labels[label]) for label in family.spec.labels])

    def _label(self, label: str, value: str) -> str:
        return _capped(value, self._models, MOST_MODELS) if label == "model_name" else value

    def of(self, record: Record) -> RequestSeries:
        """The series of a request's labels."""
        key = (record.model, record.target_model, record.fairness_id, record.priority)
        series = self._series.get(key)
        if series is None:
            model, target = self._named(record)
            fairness_id = _capped(record.fairness_id, self._fairness_ids, MOST_FAIRNESS_IDS)
            series = RequestSeries(self.families, (model, target, fairness_id, str(record.priority)))
            if OTHER not in (model, target, fairness_id):
                self._series[key] = series
        return series

    def _named(self, record: Record) -> tuple[str, str]:
        """The labels of the model that the client names and of the one that is asked; both count for the limit."""
        model = _capped(record.model, self._models, MOST_MODELS)
        target = record.target_model or record.model
        return model, model if target == record.model else _capped(target, self._models, MOST_MODELS)

    def routed(self, record: Record, series: RequestSeries) -> None:
        """Enters a request that has its destination."""
        series.total.inc()
        series.running.inc()
        if record.size is not None:
            series.size.observe(record.size)
        if record.rewrite:
            model, target = self._named(record)
            self.families["llm_d_epp_model_rewrite_decisions_total"].value(record.rewrite, model, target).inc()
        if record.observed is None:
            self._picked(record.decision.found(), series)
        else:
            self.compared("picker", record.against_ours)
        if record.decided_in is not None:
            self._decided.observe(record.decided_in)
        if record.processed_in is not None:
            self._processed.observe(record.processed_in)
        if record.matched is not None:
            self._prefix(record, record.matched)

    def _picked(self, pick: Pick, series: RequestSeries) -> None:
        series.routed_to(pick.endpoints[0]).inc()
        self.families["scheduler_requests_total"].value(pick.profile).inc()
        self.families["scheduler_pod_score"].value(pick.endpoints[0].name).set(pick.score)

    def compared(self, other: str, comparison: Comparison | None) -> None:
        """Enters where a request went against where it would have gone; None if that could not be found out."""
        result = "failed" if comparison is None else comparison.result
        if comparison is not None and comparison.regret is not None:
            self.families["llm_d_epp_regret"].buckets(other).observe(comparison.regret)
        self.families["llm_d_epp_compared_decisions_total"].value(other, result).inc()

    def _prefix(self, record: Record, matched: float) -> None:
        (self._hits if matched > 0 else self._misses).inc()
        if record.matchable and record.indexer is not None:
            self._hit_ratio.buckets(*record.indexer).observe(matched / record.matchable)
            self._hit_bytes.buckets(*record.indexer).observe(matched * BYTES_PER_TOKEN)

    def refused(self, record: Record) -> None:
        """Enters a request that we answered ourselves."""
        if record.error is not None:
            self.of(record).error(record.error.code).inc()
        if record.decision is not None and record.decision.found() is None:
            _, target = self._named(record)
            self.families["llm_d_epp_scheduler_attempts_total"].value("failure", target, "", "", "").inc()

    def finished(self, record: Record, series: RequestSeries) -> None:
        """Enters the end of a request that was routed."""
        outcome, usage = record.outcome, record.outcome.usage
        series.running.inc(-1)
        if outcome.status is not None and outcome.status >= 400:
            series.error("ModelServerError").inc()
        if outcome.duration is not None:
            series.duration.observe(outcome.duration)
        if outcome.response_bytes is not None:
            series.response_size.observe(outcome.response_bytes)
        if usage.prompt_tokens:
            series.input_tokens.observe(usage.prompt_tokens)
        if usage.cached_tokens is not None:
            series.cached_tokens.observe(usage.cached_tokens)
        if usage.completion_tokens:
            self._generated(record, series, usage.completion_tokens)

    def _generated(self, record: Record, series: RequestSeries, tokens: int) -> None:
        outcome = record.outcome
        series.output_tokens.observe(tokens)
        if outcome.duration is None:
            return
        series.ntpot.observe(outcome.duration / tokens)
        if outcome.streaming and outcome.first_byte is not None and tokens > 1:
            series.tpot.observe((outcome.duration - outcome.first_byte) / (tokens - 1))

    def stream_ended(self, code: str, duration: float) -> None:
        """Enters the end of an ext_proc stream, by gRPC status."""
        if not self._streams:
            return
        self.families["llm_d_epp_extproc_streams_total"].value(code).inc()
        self.families["llm_d_epp_extproc_stream_duration_seconds"].buckets().observe(duration)

    def forget_endpoint(self, name: str) -> None:
        """Drops the gauge of an endpoint that has left."""
        self.families["scheduler_pod_score"].children.pop((name,), None)

    def collect(self) -> Iterator[Metric]:
        """Everything, for prometheus_client."""
        self.families["llm_d_epp_prefix_indexer_size"].children.clear()  # of plugins that have gone
        for plugin, blocks in self._sizes().items():
            self.families["llm_d_epp_prefix_indexer_size"].value(*plugin).set(blocks)
        for family in list(self.families.values()):  # a plugin may add one while the page is put together
            if self._streams or "_extproc_stream" not in family.spec.name:
                yield from family.collect()
        yield from self._pool_metrics()

    # --- the pool's gauges, computed when somebody looks

    def _pool_metrics(self) -> Iterable[Metric]:
        slots = self._pool.all_slots()
        fresh = slots[self._now() - self._pool.updated[slots] <= self._staleness]
        for key, tail, twin in _AVERAGES:
            values = self._pool.column(key)[fresh]
            yield from self._average(tail, twin, values[~np.isnan(values)])
        ready = float(self._pool.eligible[slots].sum())
        yield from self._gauge("llm_d_epp_ready_endpoints", "inference_pool_ready_pods", "Endpoints in play.", ready)
        yield from self._per_endpoint()

    def _average(self, tail: str, twin: str, values: np.ndarray) -> Iterable[Metric]:
        if not len(values):
            return
        mean = round(float(values.mean()), 2)
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        yield from self._gauge(f"llm_d_epp_average_{tail}", f"inference_pool_average_{twin}", f"Mean {tail}.", mean)
        yield from self._gauge(f"llm_d_epp_std_dev_{tail}", None, f"Sample standard deviation of {tail}.", spread)

    def _gauge(self, name: str, twin: str | None, text: str, value: float) -> Iterable[Metric]:
        for each in (name, twin):
            if each is not None:
                family = GaugeMetricFamily(each, f"[ALPHA] {text}", labels=("name",))
                family.add_metric((self._pool_name,), value)
                yield family

    def _per_endpoint(self) -> Iterable[Metric]:
        queue = GaugeMetricFamily(
            "llm_d_epp_per_endpoint_queue_size", "[ALPHA] Waiting.", labels=("name", "model_server_endpoint")
        )
        twin = GaugeMetricFamily(
            "inference_pool_per_pod_queue_size", "[ALPHA] Waiting.", labels=("name", "model_server_pod")
        )
        labels = ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority")
        requests = GaugeMetricFamily("llm_d_epp_inflight_requests", "[ALPHA] Sent and not ended.", labels=labels)
        tokens = GaugeMetricFamily("llm_d_epp_inflight_tokens", "[ALPHA] Uncached tokens of those.", labels=labels)
        waiting = self._pool.column(WAITING)
        for slot in self._pool.slots.values():
            endpoint = self._pool.endpoints[slot]
            if endpoint is None:
                continue
            if not np.isnan(waiting[slot]):
                queue.add_metric((self._pool_name, endpoint.name), waiting[slot])
                twin.add_metric((self._pool_name, endpoint.name), waiting[slot])
            where = (endpoint.name, endpoint.namespace, "pool", "", "")
            requests.add_metric(where, self._pool.column(INFLIGHT_REQUESTS)[slot])
            tokens.add_metric(where, self._pool.column(INFLIGHT_TOKENS)[slot])
        return (queue, twin, requests, tokens)


_AVERAGES: tuple[tuple[Key, str, str], ...] = (
    (KV_USAGE, "kv_cache_utilization", "kv_cache_utilization"),
    (WAITING, "queue_size", "queue_size"),
    (RUNNING, "running_requests", "running_requests"),
)


def _capped(label: str, seen: set[str], most: int) -> str:
    if label in seen:
        return label
    if len(seen) >= most:
        return OTHER
    seen.add(label)
    return label
