"""What a decision costs: from a request's body to the charged decision, parse, hash, match and index insert included.

    python benchmarks/schedule.py [--json] [--smoke] [--endpoints 10 100 1000] [--prompts 2000]

Each row sends distinct prompts through `Pipeline.route`, each one for the first time and then once again, with four
scorers, the guard, the metrics and the kept explanation of the real process; there is no gRPC. The prefix index is full
(1.4 million blocks in all), so that every pick evicts, and the garbage collector is on. A token is four bytes of text;
a paragraph, whose end JSON escapes, has 400.
"""

import argparse
import gc
import json
import random
import time

import numpy as np

from epp import memory
from epp.extproc.events import Arrival
from epp.hooks import Hooks
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.pipeline import Pipeline
from epp.plugin import Context, Pool, PrefixIndex
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
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: active-request-scorer, weight: 1}
  - {pluginRef: prefix-cache-scorer, weight: 3}
"""
BLOCKS = 1_400_000
BLOCK_TOKENS = 64  # of the index
LONG_CHAIN = 1562  # blocks of a prompt of 100,000 tokens
TOKENS = (250, 100_000)

Row = dict[str, int | float | str]


def pipeline_of(endpoints: int, blocks: int, rng: np.random.Generator) -> Pipeline:
    """A pipeline over engines with some load, whose caches hold so many of the index's blocks together."""
    each = np.full(endpoints, blocks // endpoints * BLOCK_TOKENS / 16)
    load_of = {"waiting": rng.integers(0, 4, endpoints), "kv_usage": rng.random(endpoints)}
    pool = make_pool(**load_of, cache_blocks=each, cache_block_size=np.full(endpoints, 16.0))
    metrics = Metrics(pool, "benchmark")
    durations, faults = (metrics.families[f"llm_d_epp_plugin_{name}"] for name in ("duration_seconds", "faults_total"))
    requests = RequestLog(None, lambda *_: None)
    guard = TimingGuard(durations, faults)
    observe = Observability(metrics, Decisions(), requests, guard, later=lambda *_: None)
    source = random.Random(0)
    router = load(CONFIG, "benchmark", Registry.installed(), lambda name: Context(name, time.monotonic, source, pool))
    pipeline = Pipeline(pool, Hooks.of(router), observe, time.monotonic, time.time)
    (producer,) = router.producers
    fill(producer.plugin.index, pool, blocks, rng)
    return pipeline


def fill(index: PrefixIndex, pool: Pool, blocks: int, rng: np.random.Generator) -> None:
    """Fills every endpoint's cache with long prompts."""
    each = blocks // len(pool)
    for slot in pool.all_slots().tolist():
        index.set_capacity(slot, each)
        for start in range(0, each, LONG_CHAIN):
            index.insert(slot, rng.integers(0, 2**64, min(LONG_CHAIN, each - start), np.uint64))


def body_of(tokens: int, source: random.Random) -> bytes:
    """The body of a chat request with a prompt never seen before."""
    text = source.randbytes(tokens * 2).hex()
    lines = "\n".join([text[start : start + 399] for start in range(0, len(text), 399)])
    return json.dumps({"model": "llama-8b", "messages": [{"role": "user", "content": lines}], "stream": True}).encode()


def routed(pipeline: Pipeline, body: bytes, number: int) -> int:
    """Nanoseconds from the body to the charged decision; the request then ends."""
    arrival = Arrival({":path": "/v1/chat/completions", "x-request-id": str(number)}, body, None)
    exchange = pipeline.open()
    start = time.perf_counter_ns()
    finish(exchange.route(arrival))
    taken = time.perf_counter_ns() - start
    exchange.close("ended", complete=True)
    pipeline.observe.settle()  # what the process does when it has a moment
    return taken


def finish(coroutine: object) -> None:
    """Runs a coroutine that awaits nothing."""
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration:
        return
    raise AssertionError("it has awaited")


def measure(endpoints: int, tokens: int, prompts: int, blocks: int) -> list[Row]:
    """Two rows: prompts never seen before, and the same once again."""
    pipeline = pipeline_of(endpoints, blocks, np.random.default_rng(0))
    source = random.Random(tokens)
    memory.settle()  # as the process does once it serves
    times: dict[str, list[int]] = {"first": [], "repeated": []}
    for number in range(prompts):
        body = body_of(tokens, source)
        for seen in times.values():
            seen.append(routed(pipeline, body, number))
    gc.unfreeze()
    return [row(endpoints, tokens, seen, nanoseconds) for seen, nanoseconds in times.items()]


def row(endpoints: int, tokens: int, seen: str, nanoseconds: list[int]) -> Row:
    """Median and 99th percentile in microseconds."""
    p50, p99 = (round(float(value) / 1e3, 1) for value in np.percentile(nanoseconds, [50, 99]))
    return {"endpoints": endpoints, "prompt_tokens": tokens, "prompt": seen, "p50_us": p50, "p99_us": p99}


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows")
    parser.add_argument("--smoke", action="store_true", help="run once, small: only shows that it works")
    parser.add_argument("--endpoints", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--prompts", type=int, default=2000)
    arguments = parser.parse_args()
    counts, prompts, blocks = arguments.endpoints, arguments.prompts, BLOCKS
    if arguments.smoke:
        counts, prompts, blocks = [3], 3, 10_000
    rows = [each for count in counts for tokens in TOKENS for each in measure(count, tokens, prompts, blocks)]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'endpoints':>9} {'tokens':>8} {'prompt':9} {'p50 us':>8} {'p99 us':>8}")
    for each in rows:
        print("{endpoints:9} {prompt_tokens:8} {prompt:9} {p50_us:8} {p99_us:8}".format(**each))


if __name__ == "__main__":
    main()
