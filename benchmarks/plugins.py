"""What each plugin costs a request, in microseconds, at 10, 100 and 1,000 endpoints.

    python benchmarks/plugins.py [--json] [--smoke] [--endpoints 10 100 1000] [--only TYPE ...]

For every registered type with a method that is called for requests: its instance from its manual's example, and the
median time of all of those methods together for one request with a new prompt of 1 kB. What a plugin reads of other
plugins is random; what it reads of the pool it gathers itself, as the first one does that reads it. Parsers read a
body with that prompt (benchmarks/parse.py has longer ones). Fetchers and tokenizers, which wait for others, and plugins
that are asked once or at each fetch, such as data sources, are left out.
"""

import argparse
import gc
import json
import random
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from epp_protos import vertex_prediction_pb2, vllm_engine_pb2

from epp.keys import Key
from epp.plugin import Candidates, Context, Outcome, Pool, Request
from epp.settings import Registry, resolve
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

    @property
    def candidates(self) -> Candidates:
        """Whom the decision began with."""
        return self.c

    def __call__(self, profile: str, peer: Any = None) -> Any:
        """Runs a profile, for profile handlers."""
        return self.decision.primary


Call = Callable[[Any, Occasion], object]

CALLS: dict[str, Call] = {
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
}
"""The methods that are called for a request, in their order, and how."""

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
    }


def pool_of(endpoints: int, rng: np.random.Generator) -> Pool:
    """Engines under some load, with labels of every sort."""
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
    return make_pool(
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


def plugin_of(type_name: str, registry: Registry, pool: Pool) -> Any:
    """The instance of a type in its manual's example."""
    manual = registry.find(type_name).manual
    example = textwrap.dedent(manual.partition("\nExample:\n")[2].partition("\nWhere it departs")[0])
    source = random.Random(0)

    def context(name: str) -> Context:
        return Context(name, time.monotonic, source, pool)

    instances = resolve(HEAD + example, type_name, registry, context).instances
    found = next((i.plugin for i in instances.values() if i.type == type_name), None)
    if found is None:  # the example shows another type of the same manual
        text = f"{HEAD}plugins:\n- type: {type_name}\n"
        found = resolve(text, type_name, registry, context).instances[type_name].plugin
    return found


def methods_of(registry: Registry) -> Iterator[tuple[str, list[str]]]:
    """Every type with the methods of it that are called for requests."""
    for type_name in registry.types:
        cls = registry.find(type_name).cls
        methods = [name for name in (*CALLS, "parse") if callable(getattr(cls, name, None))]
        if methods:
            yield type_name, methods


def measure(type_name: str, methods: list[str], registry: Registry, endpoints: int, repeats: int) -> float:
    """The median microseconds of all of its calls for one request."""
    rng, source = np.random.default_rng(0), random.Random(0)
    pool = pool_of(endpoints, rng)
    plugin = plugin_of(type_name, registry, pool)
    reads = tuple(getattr(plugin, "reads", ()))
    calls = [(CALLS[name], getattr(plugin, name)) for name in methods if name != "parse"]
    times = []
    for _ in range(repeats):
        prompt = source.randbytes(PROMPT_BYTES // 2).hex()
        occasion = Occasion(pool, request(prompt, headers=HEADERS, priority=-1), reads, rng)
        path, body = bodies(prompt).get(type_name, ("", b"")) if "parse" in methods else ("", b"")
        start = time.perf_counter_ns()
        for call, method in calls:
            call(method, occasion)
        if body:
            plugin.parse(path, HEADERS, body)
        times.append(time.perf_counter_ns() - start)
    return round(float(np.median(times)) / 1e3, 2)


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="few repeats: only shows that it works")
    parser.add_argument("--endpoints", type=int, nargs="*", default=SIZES)
    parser.add_argument("--only", nargs="*", metavar="TYPE", help="these types only")
    arguments = parser.parse_args()
    repeats = 3 if arguments.smoke else 300
    registry = Registry.installed()
    gc.freeze()
    found = {
        type_name: {str(count): measure(type_name, methods, registry, count, repeats) for count in arguments.endpoints}
        for type_name, methods in methods_of(registry)
        if not arguments.only or type_name in arguments.only
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{'us a request, endpoints:':40} " + " ".join(f"{count:>8}" for count in arguments.endpoints))
    for type_name, row in found.items():
        print(f"{type_name:40} " + " ".join(f"{value:8.1f}" for value in row.values()))


if __name__ == "__main__":
    main()
