"""What each plugin costs a request, in microseconds, at 10, 100 and 1,000 endpoints.

    python benchmarks/plugins.py [--json] [--smoke] [--endpoints 10 100 1000] [--only TYPE ...] [--limit 50]

There is a row for every type that `epp plugins` calls implemented, old names included, but those in `WITHOUT`, which
says why. It is the median time of all methods that are called for one request with a new prompt of 1 kB, of the
instance in the type's manual. What a plugin reads of other plugins is random; what it reads of the pool it gathers
itself, as the first one does that reads it. Parsers read a body with that prompt (benchmarks/parse.py has longer ones);
tokenizers one with a picture besides, without which they aren't called. The fetcher of bursts has windows of one
request, and waits for nobody. Data sources and extractors aren't called for requests: their rows are what one look at
one endpoint costs them, or what they say once, of a page that has two GPUs, two metrics or a model.

If a type takes longer than `--limit` microseconds at 100 endpoints in each of five tries, stderr says so and the exit
status is 1.
"""

import argparse
import asyncio
import base64
import gc
import inspect
import json
import random
import struct
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from epp_protos import vertex_prediction_pb2, vllm_engine_pb2

from epp.keys import Key
from epp.plugin import Candidates, Context, Outcome, Pool, Request
from epp.settings import Registry, resolve
from epp.settings.catalogue import ALIASES
from epp.settings.migrations import DIVIDED
from epp.testing import decided, request
from epp.testing import pool as make_pool

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
SIZES = (10, 100, 1000)
PROMPT_BYTES = 1024
ZONES = "topology.kubernetes.io/zone"
HEADERS = {
    "cookie": "theme=dark; chat-session=0123456789abcdef",
    "session-id": "0123456789abcdef",
    "x-session-id": "0123456789abcdef",
    "x-conversation-id": "0123456789abcdef",
    "x-region": "zone-1",
    "x-llm-d-slo-ttft-ms": "500",
    "test-epp-endpoint-selection": "10.0.0.1,10.0.0.2",
}


WITHOUT = {"endpoint-notification-source": "has no method: who is in the pool, extractors hear of without it"}
"""Implemented types without a row, and why."""

PARAMETERS: Mapping[str, Any] = {"burst-prefix-cache-producer": {"maxBatchSize": 1}}
"""In place of those of the manual's example."""

LIMIT_AT = 100
TRIES = 5

PAGE = b"""\
DCGM_FI_DEV_GPU_UTIL{gpu="0",pod="pod-0"} 50
DCGM_FI_DEV_GPU_UTIL{gpu="1",pod="pod-0"} 70
llm_d_epp_average_kv_cache_utilization{name="llama"} 0.5
llm_d_epp_average_queue_size{name="llama"} 3
"""
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "vllm"}]}'
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 360) + bytes(64)


class Occasion:
    """One request before one pool, with everything that a plugin may be given."""

    def __init__(self, pool: Pool, sent: Request, reads: tuple[Key, ...], rng: np.random.Generator) -> None:
        self.request = sent
        self.c = Candidates(pool, pool.all_slots(), time.monotonic())
        for key in reads:
            if key.scope == "request":
                self.c.put(key, rng.random(len(self.c)) * 256.0)
        self.c.peer = self.c.pick("other", [0], 1.0)
        self.totals = rng.random(len(self.c))
        self.decision = decided(self.c, 0, others={"prefill": 1})
        self.served = self.decision.primary.endpoints[0]
        self.path, self.body = "", b""

    @property
    def candidates(self) -> Candidates:
        """Whom the decision began with."""
        return self.c

    def __call__(self, profile: str, peer: Any = None) -> Any:
        """Runs a profile, for profile handlers."""
        return self.decision.primary


Call = Callable[[Any, Occasion], object]

CALLS: dict[str, Call] = {
    "parse": lambda method, o: method(o.path, o.request.headers, o.body),
    "tokenize": lambda method, o: method(o.request, o.body),
    "fetch": lambda method, o: method(o.request, o.c),
    "attributes": lambda method, o: method(o.request.headers),
    "screen": lambda method, o: method(o.request, o.c),
    "produce": lambda method, o: method(o.request, o.c),
    "deny": lambda method, o: method(o.request, o.c),
    "decide": lambda method, o: method(o.request, o),
    "disaggregate": lambda method, o: method(o.request, o.decision.primary, o.c),
    "keep": lambda method, o: method(o.request, o.c),
    "score": lambda method, o: method(o.request, o.c),
    "pick": lambda method, o: method(o.request, o.c, o.totals),
    "picked": lambda method, o: method(o.request, o.decision, o.c),
    "request_headers": lambda method, o: method(o.request, o.decision),
    "destination": lambda method, o: method(o.request, o.decision),
    "response_headers": lambda method, o: method(o.request, o.decision, o.served),
    "response_metadata": lambda method, o: method(o.request, o.decision, Outcome()),
    "first_byte": lambda method, o: method(o.request, o.decision, o.c.now),
    "done": lambda method, o: method(o.request, o.decision, Outcome(), o.c.now),
    "columns": lambda method, o: method(o.served, PAGE),
    "served_models": lambda method, _: method(MODELS),
    "extract": lambda method, o: method(o.served),
}
"""The methods that are called for a request, in their order, and those of extractors; and how."""

SAID = ("metrics_page", "polled_page", "models_page", "watched_kind", "engine_metrics", "endpoints_file")
CALLS |= dict.fromkeys(SAID, lambda method, _: method())

CHAT = "/v1/chat/completions"


def bodies(prompt: str) -> dict[str, tuple[str, bytes]]:
    """For each parser the path and the body of a request with that prompt."""
    chat = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": prompt}]}).encode()
    ids = list(prompt.encode()[: len(prompt) // 4])
    engine = vllm_engine_pb2.GenerateRequest(tokenized=vllm_engine_pb2.TokenizedInput(input_ids=ids))
    vertex = vertex_prediction_pb2.PredictRequest(http_body=vertex_prediction_pb2.HttpBody(data=chat))
    return {
        "openai-parser": (CHAT, chat),
        "anthropic-parser": ("/v1/messages", chat),
        "passthrough-parser": (CHAT, chat),
        "vllmhttp-parser": ("/inference/v1/generate", json.dumps({"model": "m", "token_ids": ids}).encode()),
        "sglanghttp-parser": ("/generate", json.dumps({"input_ids": ids}).encode()),
        "vllmgrpc-parser": ("/vllm.grpc.engine.VllmEngine/Generate", engine.SerializeToString()),
        "vertexai-parser": ("/PredictionService/ChatCompletions", vertex.SerializeToString()),
        "token-producer": (CHAT, chat_with_picture(prompt)),
    }


def chat_with_picture(prompt: str) -> bytes:
    """A body with that prompt and a picture."""
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": content}]}).encode()


def pool_of(endpoints: int, rng: np.random.Generator) -> Pool:
    """Engines under some load, scraped just now, with labels of every sort."""
    labels = [
        {
            "llm-d.ai/role": ("decode", "prefill", "both")[index % 3],
            "llm-d.ai/context-length-range": ("0-1000", "500-100000")[index % 2],
            "disaggregatedset.x-k8s.io/revision": ("one", "two")[index % 2],
            "disaggregatedset.x-k8s.io/role": ("decode", "prefill")[index // 2 % 2],
            "topology.kubernetes.io/region": "zone-1",
            "kubernetes.io/hostname": f"host-{index // 8}",
            ZONES: f"zone-{index % 4}",
        }
        for index in range(endpoints)
    ]
    pool = make_pool(
        labels=labels,
        waiting=rng.integers(0, 8, endpoints),
        running=rng.integers(0, 64, endpoints),
        kv_usage=rng.random(endpoints),
        inflight_requests=rng.integers(0, 64, endpoints),
        inflight_tokens=rng.integers(0, 64_000, endpoints),
        cache_blocks=np.full(endpoints, 10_000.0),
        cache_block_size=np.full(endpoints, 16.0),
        active_loras=rng.integers(0, 4, endpoints),
        waiting_loras=rng.integers(0, 4, endpoints),
        max_loras=np.full(endpoints, 4.0),
        active_models=[("model",) if index % 5 == 0 else () for index in range(endpoints)],
    )
    pool.updated[:] = time.monotonic()
    return pool


def plugin_of(type_name: str, registry: Registry, pool: Pool) -> Any:
    """The instance of a type in its manual's example."""
    manual = registry.find(type_name).manual
    example = textwrap.dedent(manual.partition("\nExample:\n")[2].partition("\nWhere it departs")[0])
    source = random.Random(0)

    def context(name: str) -> Context:
        return Context(name, time.monotonic, source, pool)

    instances = {} if type_name in PARAMETERS else resolve(HEAD + example, type_name, registry, context).instances
    found = next((i.plugin for i in instances.values() if i.type == type_name), None)
    if found is None:  # the example shows another type of the same manual
        entry = {"type": type_name, "parameters": PARAMETERS.get(type_name, {})}
        text = f"{HEAD}plugins: [{json.dumps(entry)}]\n"
        found = resolve(text, type_name, registry, context).instances[type_name].plugin
    return found


def wanted(registry: Registry, only: list[str] | None) -> dict[str, tuple[str, ...]]:
    """The types that have rows, each with those whose cost it is: its own, or those that an old name stands for."""
    old = {name: (new,) for name, new in ALIASES.items()} | dict(DIVIDED)
    rows = {name: (name,) for name in registry.types if methods_of(name, registry)} | old
    return {name: rows[name] for name in sorted(rows) if not only or name in only}


def methods_of(type_name: str, registry: Registry) -> list[str]:
    """The methods of a type that are called, in their order."""
    cls = registry.find(type_name).cls
    return [name for name in CALLS if callable(getattr(cls, name, None))]


async def measure(type_name: str, registry: Registry, endpoints: int, repeats: int) -> float:
    """The median microseconds of all of its calls for one request."""
    rng, source = np.random.default_rng(0), random.Random(0)
    pool = pool_of(endpoints, rng)
    plugin = plugin_of(type_name, registry, pool)
    reads = tuple(getattr(plugin, "reads", ()))
    methods, parser = methods_of(type_name, registry), plugin_of("openai-parser", registry, pool)
    calls = [(CALLS[name], getattr(plugin, name)) for name in methods]
    times = []
    for _ in range(repeats):
        prompt = source.randbytes(PROMPT_BYTES // 2).hex()
        sent = request(prompt, headers=HEADERS, priority=-1)
        path, body = bodies(prompt).get(type_name, ("", b""))
        if "tokenize" in methods:
            sent = sent.with_body(parser.parse(path, HEADERS, body))
        occasion = Occasion(pool, sent, reads, rng)
        occasion.path, occasion.body = path, body
        start = time.perf_counter_ns()
        for call, method in calls:
            result = call(method, occasion)
            if inspect.isawaitable(result):
                await result
        times.append(time.perf_counter_ns() - start)
    return round(float(np.median(times)) / 1e3, 2)


async def rows_of(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The rows. What other work on the machine adds isn't the plugin's: who is above the limit is measured again."""
    registry, found = Registry.installed(), {}
    for name, types in wanted(registry, arguments.only).items():
        found[name] = row = dict.fromkeys(map(str, arguments.endpoints), 0.0)
        for count in arguments.endpoints:
            for _ in range(1 if arguments.smoke else TRIES):
                took = sum([await measure(each, registry, count, 3 if arguments.smoke else 300) for each in types])
                row[str(count)] = min(took, row[str(count)] or took)
                if row[str(count)] <= arguments.limit:
                    break
    return found


def main() -> int:
    """Runs it; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="few repeats: only shows that it works")
    parser.add_argument("--endpoints", type=int, nargs="*", default=SIZES)
    parser.add_argument("--only", nargs="*", metavar="TYPE", help="these types only")
    parser.add_argument("--limit", type=float, default=50.0, help=f"microseconds at {LIMIT_AT} endpoints (%(default)s)")
    arguments = parser.parse_args()
    gc.freeze()
    found = asyncio.run(rows_of(arguments))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{'us a request, endpoints:':44} " + " ".join(f"{count:>8}" for count in arguments.endpoints))
        for type_name, row in found.items():
            print(f"{type_name:44} " + " ".join(f"{value:8.1f}" for value in row.values()))
    above = [
        f"{name} {row[str(LIMIT_AT)]:.1f}"
        for name, row in found.items()
        if row.get(str(LIMIT_AT), 0.0) > arguments.limit
    ]
    if above and not arguments.smoke:
        print(f"above {arguments.limit:g} us at {LIMIT_AT} endpoints: {', '.join(above)}", file=sys.stderr)
    return 1 if above and not arguments.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
