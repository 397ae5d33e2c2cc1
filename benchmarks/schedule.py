"""What a decision costs, from a parsed request to the entered pick, by the number of endpoints and the prompt's length.

    python benchmarks/schedule.py [--json] [--smoke] [--endpoints 10 100 1000]

The configuration has four scorers, the prefix cache's among them, and the guard, the metrics and the kept explanation
of the real process; there is no gRPC. The prefix index is full (1.4 million blocks in all), so that every pick evicts,
and the garbage collector is on. "Request" adds reading the JSON body and settling the request at its end.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator

import numpy as np

from epp.exchange import Exchange, Observability
from epp.extproc.events import Arrival
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.pipeline import Pipeline
from epp.plugin import BYTES_PER_TOKEN, Body, Candidates, Context, Pool, PrefixIndex, Request
from epp.schedule import decide, produce
from epp.schedule.profile import run_profile
from epp.settings import Registry, load
from epp.testing import pool as make_pool

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: active-request-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
  - pluginRef: kv-cache-utilization-scorer
  - pluginRef: active-request-scorer
  - pluginRef: prefix-cache-scorer
    weight: 3
"""
BLOCKS, BLOCK_TOKENS = 1_400_000, 64
SIZES = {"1 kB": 1_000, "400 kB": 100_000 * BYTES_PER_TOKEN}

Row = dict[str, str | float]


def row(what: str, nanoseconds: list[int]) -> Row:
    """Median and 99th percentile in microseconds."""
    p50, p99 = np.percentile(nanoseconds, [50, 99]) / 1e3
    return {"what": what, "p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


def pipeline_of(endpoints: int, blocks: int, rng: np.random.Generator) -> Pipeline:
    """A pipeline over engines with some load, whose caches hold so many of the index's blocks together."""
    each = np.full(endpoints, blocks // endpoints * BLOCK_TOKENS / 16)
    load_of = {"waiting": rng.integers(0, 4, endpoints), "kv_usage": rng.random(endpoints)}
    pool = make_pool(**load_of, cache_blocks=each, cache_block_size=np.full(endpoints, 16.0))
    metrics = Metrics(pool, "benchmark")
    durations, faults = (metrics.families[f"llm_d_epp_plugin_{name}"] for name in ("duration_seconds", "faults_total"))
    observe = Observability(metrics, Decisions(), RequestLog(None), TimingGuard(durations, faults))
    context = Context("", time.monotonic, random.Random(0), pool)
    router = load(CONFIG, "benchmark", Registry.installed(), lambda name: replace_name(context, name))
    return Pipeline(pool, router, observe, time.monotonic, time.time)


def replace_name(context: Context, name: str) -> Context:
    """The same for another plugin."""
    return Context(name, context.now, context.random, context.pool)


def fill(index: PrefixIndex, pool: Pool, blocks: int, rng: np.random.Generator) -> None:
    """Fills every endpoint's cache with long prompts."""
    each = blocks // len(pool)
    for slot in pool.all_slots().tolist():
        index.set_capacity(slot, each)
        for start in range(0, each, 1562):
            index.insert(slot, rng.integers(0, 2**64, min(1562, each - start), np.uint64))


class Bench:
    """One pipeline, measured."""

    def __init__(self, endpoints: int, blocks: int, repeats: int) -> None:
        rng = np.random.default_rng(0)
        self._random, self._repeats = random.Random(0), repeats
        self._name = f"{endpoints} endpoints: "
        self._pipeline = pipeline_of(endpoints, blocks, rng)
        (producer,) = self._pipeline.router.producers
        fill(producer.plugin.index, self._pipeline.pool, blocks, rng)

    def rows(self) -> Iterator[Row]:
        """All measurements."""
        yield self._row("profile run, 4 scorers", self._profile_run, [b""] * self._repeats)
        for name, size in SIZES.items():
            prompts = [self._prompt(size) for _ in range(self._repeats)]
            yield self._row(f"decision, {name}, never seen", self._decision, prompts)
            yield self._row(f"decision, {name}, repeated", self._decision, prompts[:1] * self._repeats)
        for name, size in SIZES.items():
            prompts = [self._prompt(size) for _ in range(self._repeats)]
            yield self._row(f"request, {name}, never seen", self._request, prompts)
            yield self._row(f"request, {name}, repeated", self._request, prompts[:1] * self._repeats)

    def _prompt(self, size: int) -> bytes:
        return self._random.randbytes(size // 2).hex().encode()

    def _row(self, what: str, measured: Callable[[bytes], int], prompts: list[bytes]) -> Row:
        return row(self._name + what, [measured(prompt) for prompt in prompts])

    def _profile_run(self, prompt: bytes) -> int:
        router, guard = self._pipeline.router, self._pipeline.observe.guard
        request, c = _request(prompt), self._candidates()
        produce(router, request, c, guard)
        start = time.perf_counter_ns()
        run_profile(router.profiles["default"], request, c, None, guard)
        return time.perf_counter_ns() - start

    def _decision(self, prompt: bytes) -> int:
        exchange, request = self._pipeline.open(), _request(prompt)
        start = time.perf_counter_ns()
        self._decide(exchange, request)
        taken = time.perf_counter_ns() - start
        exchange.close("ended", complete=True)
        return taken

    def _decide(self, exchange: Exchange, request: Request) -> None:
        router, guard, c = exchange.router, self._pipeline.observe.guard, self._candidates()
        produce(router, request, c, guard)
        decision = exchange.note_decision(decide(router, request, c, guard), self._pipeline.now())
        exchange.charge(decision, request)
        for plugged in router.observers:
            guard.call("PreRequest", plugged, plugged.plugin.picked, request, decision, c)

    def _candidates(self) -> Candidates:
        return Candidates(self._pipeline.pool, self._pipeline.pool.all_slots(), self._pipeline.now())

    def _request(self, prompt: bytes) -> int:
        body = json.dumps({"model": "m", "prompt": prompt.decode(), "stream": True}).encode()
        arrival = Arrival({":path": "/v1/completions", "x-request-id": "benchmark"}, body, None)
        start = time.perf_counter_ns()
        exchange = self._pipeline.open()
        finish(exchange.route(arrival))
        exchange.close("ended", complete=True)
        return time.perf_counter_ns() - start


def finish(coroutine: object) -> None:
    """Runs a coroutine that awaits nothing."""
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration:
        return
    raise AssertionError("it has awaited")


def _request(prompt: bytes) -> Request:
    return Request("benchmark", "/v1/completions", {}, Body("m", (prompt,)), len(prompt), "openai-parser")


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows")
    parser.add_argument("--smoke", action="store_true", help="once, and briefly")
    parser.add_argument("--endpoints", type=int, nargs="*", default=[10, 100, 1000])
    arguments = parser.parse_args()
    counts, blocks, repeats = ([3], 10_000, 3) if arguments.smoke else (arguments.endpoints, BLOCKS, 500)
    rows = [each for count in counts for each in Bench(count, blocks, repeats).rows()]
    if arguments.json:
        print(json.dumps(rows))
        return
    for each in rows:
        print(f"{each['what']:50} {each['p50_us']:9} {each['p99_us']:9}")


if __name__ == "__main__":
    main()
