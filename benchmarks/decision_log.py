"""What the decision log and a shadow cost: on a request's path, beside it, and on the disk.

    python benchmarks/decision_log.py [--json] [--smoke] [--endpoints 10 100] [--requests 3000]

Requests take turns without either, with the log, and with a shadow of the same profile, so that whatever else moves the
figures moves all of them. `path` is what lies between the body and the answer; `beside` is what is done afterwards in
the event loop (entering metrics, explanation and row; the shadow's decision); both in microseconds of CPU a request.
`thread` is the CPU of the thread that compresses and writes, `row` the bytes that a request takes on the disk.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from textwrap import indent

import numpy as np
from schedule import CONFIG, body_of, finish, pipeline_of

from epp import memory
from epp.extproc.events import Arrival, ResponseBody, ResponseHeaders
from epp.hooks import Hooks
from epp.observe.decision_log import DecisionLog, LogOptions
from epp.observe.entries import read_log
from epp.pipeline import Pipeline
from epp.plugin import Context
from epp.settings import Registry, load

SHADOW = CONFIG + indent(CONFIG[CONFIG.index("schedulingProfiles") :], "  ").join(("shadow:\n", ""))
VARIANTS = ("neither", "log", "shadow")
ANSWER = ResponseBody(b'{"usage": {"prompt_tokens": 250, "completion_tokens": 20}}', end=True)
BATCH = 25
"""Requests whose notes are entered together."""
TOKENS = (250, 100_000)

Row = dict[str, int | float | str]


class Bench:
    """One pipeline, with what is switched on for a request and off for the next."""

    def __init__(self, endpoints: int, blocks: int, file: Path) -> None:
        self.pipeline = pipeline_of(endpoints, blocks, np.random.default_rng(0))
        self.log = self._log(file)
        self.hooks = dict.fromkeys(VARIANTS, self.pipeline.hooks)
        self.hooks["shadow"] = replace(self.pipeline.hooks, shadow=self._shadow(self.pipeline))

    def _log(self, file: Path) -> DecisionLog:
        rows = self.pipeline.observe.metrics.families["llm_d_epp_decision_log_rows_total"]
        return DecisionLog(LogOptions(file), rows, lambda *_: None, time.time, random.Random(0))

    def _shadow(self, pipeline: Pipeline) -> Hooks | None:
        def context(name: str) -> Context:
            return Context(name, time.monotonic, random.Random(0), pipeline.pool)

        return Hooks.of(load(SHADOW, "benchmark", Registry.installed(), context)).shadow

    def batch(self, variant: str, bodies: list[bytes]) -> tuple[list[float], float]:
        """Microseconds on the path of each request, and beside it a request."""
        self.pipeline.hooks = self.hooks[variant]
        self.pipeline.observe.log = self.log if variant == "log" else None
        path, beside = [], 0
        for number, body in enumerate(bodies):
            arrival = Arrival({":path": "/v1/chat/completions", "x-request-id": str(number)}, body, None)
            exchange = self.pipeline.open()
            start = time.thread_time_ns()
            finish(exchange.route(arrival))
            path.append((time.thread_time_ns() - start) / 1e3)
            start = time.thread_time_ns()
            if exchange.pending is not None:
                exchange.answered()
            beside += time.thread_time_ns() - start
            exchange.response_headers(ResponseHeaders({":status": "200"}, end=False))
            exchange.response_body(ANSWER)
            exchange.close("ended", complete=True)
        start = time.thread_time_ns()
        self.pipeline.observe.settle()
        return path, (beside + time.thread_time_ns() - start) / 1e3 / len(bodies)


def measure(endpoints: int, tokens: int, requests: int, blocks: int) -> list[Row]:
    """A row a variant."""
    source = random.Random(tokens)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log"
        bench = Bench(endpoints, blocks, file)
        memory.settle()
        paths: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        besides: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        thread = 0.0
        for _ in range(-(-requests // BATCH)):
            bodies = [body_of(tokens, source) for _ in range(BATCH)]
            for variant in source.sample(VARIANTS, len(VARIANTS)):
                path, beside = bench.batch(variant, bodies)
                paths[variant] += path
                besides[variant].append(beside)
            bench.log.flush()
            start = time.process_time()
            bench.log.drain()
            thread += time.process_time() - start
        bench.log.close()
        written = len(paths["log"])
        extra = {"row_bytes": round(file.stat().st_size / written), "thread_us": round(thread * 1e6 / written, 1)}
        start = time.thread_time()
        assert sum(1 for _ in read_log(file)) == written
        extra["read_us"] = round((time.thread_time() - start) * 1e6 / written, 1)
    return [row(endpoints, tokens, v, paths[v], besides[v]) | (extra if v == "log" else {}) for v in VARIANTS]


def row(endpoints: int, tokens: int, variant: str, path: list[float], beside: list[float]) -> Row:
    """Medians, in microseconds."""
    medians = {"path_us": statistics.median(path), "beside_us": statistics.median(beside)}
    return {"endpoints": endpoints, "prompt_tokens": tokens, "with": variant} | {
        k: round(v, 1) for k, v in medians.items()
    }


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list of rows")
    parser.add_argument("--smoke", action="store_true", help="run once, small: only shows that it works")
    parser.add_argument("--endpoints", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--requests", type=int, default=3000)
    arguments = parser.parse_args()
    counts, requests, blocks = arguments.endpoints, arguments.requests, 100_000
    if arguments.smoke:
        counts, requests, blocks = [3], 3, 10_000
    rows: list[Row] = []
    for count in counts:
        for tokens in TOKENS:
            rows += measure(count, tokens, requests if tokens < 1000 else max(requests // 20, 3), blocks)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for each in rows:
        print("  ".join(f"{name} {value}" for name, value in each.items()))


if __name__ == "__main__":
    main()
