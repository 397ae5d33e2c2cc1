"""Random pools and requests: anything that engines may report or leave out, and that clients may send."""

import base64
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from epp import keys, testing
from epp.plugin import Candidates, Pool, Request

NAN = math.nan
MODELS = ("model", "other", "third")
LABELS = ("llm-d.ai/role", "llm-d.ai/engine-type", "zone")
VALUES = ("decode", "prefill", "both", "vllm", "a", "")
HEADERS = ("x-session-token", "x-session-id", "x-conversation-id")
TEXTS = ("", "one", "%%%", *(base64.b64encode(name).decode() for name in (b"default/pod-0", b"default/nobody")))
LENGTHS = (0, 1, 60, 600, 600, 20_000)
"""Of prompts, in bytes."""

PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/")


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A request and the candidates for it, and another order of these."""

    request: Request
    candidates: Candidates
    order: tuple[int, ...]

    def __str__(self) -> str:
        c = self.candidates
        columns = {key.name: np.round(values, 3).tolist() for key, values in c.read.items()}
        stale = f", stale: {np.flatnonzero(~c.fresh).tolist()}" if not c.all_fresh else ""
        sent = self.request
        prompts = [len(prompt) for prompt in sent.body.prompts]
        return f"{len(c)} endpoints, read: {columns}{stale}; prompts of {prompts} bytes, headers {dict(sent.headers)}"


def cases(count: int = 200, seed: int = 0) -> Iterator[Case]:
    """So many cases; the same ones for the same seed."""
    random = Random(seed)
    for _ in range(count):
        yield case(random)


def case(random: Random) -> Case:
    """One case out of this randomness, such as hypothesis's own, which makes a failing case small."""
    c = _candidates(random)
    order = random.sample(range(len(c)), len(c))
    return Case(_request(random), c, tuple(order))


def _candidates(random: Random) -> Candidates:
    number = random.randint(1, 8)

    def column(draw: Callable[[], Any]) -> list[Any]:
        same = random.random() < 0.2  # ties are what formulas trip over
        drawn = [draw() for _ in range(number)]
        return drawn[:1] * number if same else drawn

    def count() -> float:
        return random.choice([0.0, 0.0, 1.0, float(random.randint(0, 300))])

    def reported() -> float:
        return NAN if random.random() < 0.2 else count()

    def fraction() -> float:
        return random.choice([NAN, 0.0, 1.0, random.random(), random.random()])

    def some(of: Sequence[str]) -> list[str]:
        return [each for each in of if random.random() < 0.4]

    return testing.candidates(
        waiting=column(reported),
        running=column(reported),
        kv_usage=column(fraction),
        cache_blocks=column(reported),
        cache_block_size=column(lambda: random.choice([NAN, 16.0, 64.0])),
        **_adapters(random, number),
        inflight_requests=column(count),
        inflight_tokens=column(count),
        labels=column(lambda: {label: random.choice(VALUES) for label in some(LABELS)}),
        stale=column(lambda: random.random() < 0.2),
        columns={
            keys.CLUSTER_QUEUE: column(reported),
            keys.CLUSTER_KV_USAGE: column(fraction),
            keys.GPU_UTILIZATION: column(fraction),
        },
    )


def _adapters(random: Random, number: int) -> dict[str, Any]:
    """An engine reports all of its adapters' figures, or none of them."""
    found: dict[str, list[Any]] = {"active_models": [], "waiting_models": []}
    found |= {"active_loras": [], "waiting_loras": [], "max_loras": []}
    for _ in range(number):
        told = random.random() < 0.8
        for state in ("active", "waiting"):
            models = [model for model in MODELS if random.random() < 0.4] if told else []
            found[f"{state}_models"].append(models)
            found[f"{state}_loras"].append(float(len(models)) if told else NAN)
        found["max_loras"].append(float(random.randint(0, 4)) if told else NAN)
    return found


def _request(random: Random) -> Request:
    prompts = [_prompt(random, random.choice(LENGTHS)) for _ in range(random.choice([0, 1, 1, 1, 3]))]
    headers = {name: random.choice(TEXTS) for name in HEADERS if random.random() < 0.4}
    model = random.choice([*MODELS, ""])
    return testing.request(prompts, model=model, headers=headers, priority=random.choice([0, 0, -1, 5]))


def _prompt(random: Random, length: int) -> bytes:
    """So many bytes; a long one repeats itself, so that randomness is spent sparingly."""
    return (random.randbytes(min(length, 600)) * -(-length // 600))[:length]


def fleet(number: int) -> Pool:
    """A pool of as many endpoints, busy and healthy: what a pool looks like most of the time. For measuring."""
    random = Random(number)
    counts = ("waiting", "running", "inflight_requests", "inflight_tokens")
    columns: dict[str, Any] = {name: [float(random.randint(0, 50)) for _ in range(number)] for name in counts}
    usage = [random.random() for _ in range(number)]
    models = [["model"]] * number
    return testing.pool(**columns, kv_usage=usage, active_models=models, labels={"zone": "a"})


def refreshed(c: Candidates) -> Candidates:
    """The same candidates, of which nobody has missed its last scrape."""
    other = c.keeping(np.ones(len(c), dtype=bool))
    other.fresh, other.all_fresh = np.ones(len(c), dtype=bool), True
    return other


def reordered(c: Candidates, order: Sequence[int]) -> Candidates:
    """The same candidates in another order, with the same produced columns."""
    other = c.keeping(np.array(order, dtype=np.intp))
    for key, values in c.read.items():
        if key.scope == "request":
            other.put(key, values[list(order)])
    return other
