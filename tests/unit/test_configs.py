"""Realistic configurations, old spellings among them: where each sends requests, by numbers worked out by hand.

A prompt of 256 bytes is a block of 64 tokens. `before` are requests that fill the prefix index, each sent to the
endpoint that its subset names.
"""

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from epp.errors import RequestError
from epp.exchange import Exchange
from epp.extproc.events import Answer, Arrival
from epp.hooks import Hooks
from epp.keys import CLUSTER_KV_USAGE, CLUSTER_QUEUE, GPU_UTILIZATION, attribute
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.pipeline import Pipeline
from epp.plugin import Context, EndpointsFile, Page, Router
from epp.pool import Pool
from epp.settings import Registry, resolve, show
from epp.testing import FakeClock, pool

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.name for path in CONFIGS.iterdir())
REGISTRY = Registry.installed()
nan = float("nan")


def role(*names: str) -> list[Mapping[str, str]]:
    return [{"llm-d.ai/role": name} if name else {} for name in names]


def hostport(pod: int, port: int = 8000) -> str:
    return f"10.0.0.{pod + 1}:{port}"


def token(pod: int) -> str:
    return base64.b64encode(f"default/pod-{pod}".encode()).decode()


PICTURE = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "http://a/b.png"}}]


@dataclass(frozen=True)
class Sent:
    """A request: its prompt, a text or the parts of a chat message; headers; and the endpoint that is allowed."""

    prompt: str | Sequence[Any] = "hi"
    model: str = "model"
    headers: Mapping[str, str] = field(default_factory=dict)
    only: int | None = None

    def arrival(self) -> Arrival:
        chat = not isinstance(self.prompt, str)
        content = {"messages": [{"role": "user", "content": self.prompt}]} if chat else {"prompt": self.prompt}
        path = "/v1/chat/completions" if chat else "/v1/completions"
        body = json.dumps({"model": self.model} | content).encode()
        subset = None if self.only is None else [hostport(self.only)]
        return Arrival({":path": path, "x-request-id": "r"} | dict(self.headers), body, subset)


@dataclass(frozen=True)
class Case:
    """One decision.

    Attributes:
        file: the configuration.
        name: of the case.
        pool: arguments of `epp.testing.pool`.
        picked: the endpoints' numbers, best first; or the status of the answer in their place.
        totals: of the primary profile, by the endpoint's number.
        headers: that are set on the request.
        sent: the request.
        before: the ones before it.
        destination: where it isn't the pick.
    """

    file: str
    name: str
    pool: Mapping[str, Any]
    picked: tuple[int, ...] | int
    totals: Mapping[int, float]
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Sent = Sent()
    before: tuple[Sent, ...] = ()
    destination: str = ""


THREE = {"waiting": [0, 5, 10], "kv_usage": [0.8, 0.2, 0.5]}
PD = {"labels": role("decode", "decode", "prefill"), "waiting": [0, 1, 0]}
EPD = {"labels": role("decode", "prefill", "encode", "encode", "encode"), "waiting": [0, 0, 5, 3, 1]}
LENGTHS = [{"llm-d.ai/context-length-range": "0-100"}, {"llm-d.ai/context-length-range": "101-1000"}, {}]
IN_RANGE = 0.3 + 0.7 * (0.7 / (1 + 899 / 10000) + 0.3 * (1000 - 200) / 899)
PREFILLER, ENCODERS = "x-prefiller-host-port", "x-encoder-hosts-ports"
BATCH_AGE = attribute("batch_age")

CLUSTERS = {"columns": {CLUSTER_QUEUE: [0, 5, 10], CLUSTER_KV_USAGE: [0.25, 0.5, nan]}}
ALPHA = "is alpha: its parameters and effect may change"

CASES = [
    Case(
        "kserve-default.yaml",
        "a cached prompt outweighs the queue",
        THREE,
        (2,),
        # 2 queue + 2 free cache + 3 prefix + 2 * 0.5, since somebody has a part of the prompt
        {0: 2 + 0.4 + 0 + 1, 1: 1 + 1.6 + 0 + 1, 2: 0 + 1 + 3 + 1},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 1024, only=2),),
    ),
    Case(
        "kserve-default.yaml",
        "nobody has it: who hasn't been used comes first",
        THREE,
        (0,),
        {0: 2 + 0.4 + 2, 1: 1 + 1.6 + 1, 2: 0 + 1 + 0},
    ),
    Case(
        "kserve-default.yaml",
        "nobody has it, and that is what is asked for",
        THREE,
        412,
        {},
        sent=Sent("a" * 1024, headers={"prefer": "respond-async, if-available; x=1"}),
    ),
    Case(
        "kserve-default.yaml",
        "somebody has it, as is asked for",
        THREE,
        (2,),
        {0: 2 + 0.4 + 0 + 1, 1: 1 + 1.6 + 0 + 1, 2: 0 + 1 + 3 + 1},
        sent=Sent("a" * 1024, headers={"prefer": "respond-async, if-available; x=1"}),
        before=(Sent("a" * 1024, only=2),),
    ),
    Case(
        "kserve-pd.yaml",
        "every request is split",
        {
            "labels": role("decode", "decode", "prefill", "prefill"),
            "waiting": [0, 0, 4, 2],
            "kv_usage": [0, 0, 0.1, 0.5],
            "inflight_requests": [3, 1, 0, 0],
        },
        (1,),
        {0: 0, 1: 2 * (3 - 1) / 3},
        # prefill: 2 * 0 + 2 * 0.9 against 2 * 1 + 2 * 0.5
        {PREFILLER: hostport(3)},
    ),
    Case(
        "kserve-pd.yaml",
        "nobody prefills: decoded alone",
        {"labels": role("decode", "decode"), "inflight_requests": [1, 2]},
        (0,),
        {0: 2 * (2 - 1) / 2, 1: 0},
    ),
    Case("kserve-pd.yaml", "nobody decodes", {"labels": role("prefill", "encode"), "waiting": [0, 0]}, 503, {}),
    Case(
        "kserve-lora-0.20.yaml",
        "the adapter runs at a busy one, fits in at another",
        {
            "active_models": [["ad"], [], []],
            "waiting_models": [[], [], ["ad"]],
            "active_loras": [1, 0, 1],
            "waiting_loras": [0, 0, 1],
            "max_loras": [1, 1, 2],
            "waiting": [9, 0, 0],
            "kv_usage": [0.5, 0.5, 0.5],
        },
        (1,),
        {0: 4 + 0 + 1 + 2, 1: 3.2 + 2 + 1 + 1, 2: 2.4 + 2 + 1 + 0},
        sent=Sent(model="ad"),
    ),
    Case(
        "kserve-pd-0.18.yaml",
        "the prompt is cached where the queue is",
        {"labels": role("decode", "decode", "prefill"), "waiting": [2, 0, 0]},
        (0,),
        {0: 0 + 2, 1: 1 + 0},
        {PREFILLER: hostport(2)},
        sent=Sent("a" * 512),
        before=(Sent("a" * 512, only=0),),
    ),
    Case(
        "kserve-pd-0.17.yaml",
        "2000 characters are split",
        {"labels": role("", "decode", "prefill"), "waiting": [3, 1, 0]},
        (1,),
        {0: 0, 1: 1},
        {PREFILLER: hostport(2)},
        sent=Sent("a" * 2000),
    ),
    Case(
        "kserve-pd-0.17.yaml",
        "1996 characters are not",
        {"labels": role("", "decode", "prefill"), "waiting": [3, 1, 0]},
        (1,),
        {0: 0, 1: 1},
        sent=Sent("a" * 1996),
    ),
    Case(
        "kserve-default-0.16.yaml",
        "a full hit against an empty queue",
        {"waiting": [0, 64, 128]},
        (1,),
        {0: 0.5, 1: 2 + 0.25, 2: 0},
        sent=Sent("b" * 256),
        before=(Sent("b" * 256, only=1),),
    ),
    Case("kserve-metrics-source.yaml", "the queue", {"waiting": [4, 1, 0]}, (2,), {0: 0, 1: 1.5, 2: 2}),
    Case("chart-default.yaml", "queue and cache", {"waiting": [0, 10], "kv_usage": [0.9, 0.1]}, (0,), {0: 2.2, 1: 1.8}),
    Case(
        "pd-prefix-decider.yaml",
        "128 of 256 tokens are to be computed: split",
        PD,
        (0,),
        {0: 2 * 0.5 + 1, 1: 0},
        {PREFILLER: hostport(2)},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 512, only=0),),
    ),
    Case(
        "pd-prefix-decider.yaml",
        "64 of 256 tokens are to be computed: not split",
        PD,
        (0,),
        {0: 2 * 0.75 + 1, 1: 0},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 768, only=0),),
    ),
    Case("pd-prefix-decider.yaml", "199 tokens are too short", PD, (0,), {0: 1, 1: 0}, sent=Sent("a" * 796)),
    Case(
        "pd-flat.yaml",
        "one that does both prefills for itself",
        {"labels": role("decode", "prefill-decode", "prefill"), "waiting": [5, 0, 3]},
        (1,),
        {0: 0, 1: 1},
        {PREFILLER: hostport(1)},
    ),
    Case(
        "pd-prefill-first.yaml",
        "the shorter queue prefills, the emptier cache decodes",
        {
            "labels": role("decode", "decode", "prefill", "prefill"),
            "kv_usage": [0.5, 0.25, 0, 0],
            "waiting": [0, 0, 2, 0],
        },
        (1,),
        {0: 0.5, 1: 0.75},
        {PREFILLER: hostport(3)},
    ),
    Case(
        "pd-prefill-first.yaml",
        "nobody prefills",
        {"labels": role("decode", "decode"), "kv_usage": [0.5, 0.25], "waiting": [0, 0]},
        (1,),
        {0: 0.5, 1: 0.75},
    ),
    Case(
        "epd.yaml",
        "a picture is encoded at the two least busy",
        EPD,
        (0,),
        {0: 1},
        {PREFILLER: hostport(1), ENCODERS: f"{hostport(4)},{hostport(3)}"},
        sent=Sent(PICTURE),
    ),
    Case("epd.yaml", "a text is not", EPD, (0,), {0: 1}, {PREFILLER: hostport(1)}, sent=Sent([PICTURE[0]])),
    Case(
        "session-token.yaml",
        "a session stays where the queue is short enough",
        THREE,
        (1,),
        {0: 1, 1: 0.75 + 0.5, 2: 0},
        sent=Sent(headers={"x-session-token": token(1)}),
    ),
    Case(
        "session-token.yaml",
        "and goes where it isn't",
        THREE,
        (0,),
        {0: 1, 1: 0.5, 2: 0.75 + 0},
        sent=Sent(headers={"x-session-token": token(2)}),
    ),
    Case(
        "session-id.yaml",
        "a conversation stays",
        {"waiting": [3, 0, 6]},
        (2,),
        {2: 1},
        sent=Sent(headers={"x-conversation-id": "c"}),
        before=(Sent(headers={"x-conversation-id": "c"}, only=2),),
    ),
    Case("session-id.yaml", "a stranger goes by the queue", {"waiting": [3, 0, 6]}, (1,), {0: 0.5, 1: 1, 2: 0}),
    Case(
        "lora.yaml",
        "room for the adapter and half the queue",
        {
            "active_models": [["ad"], ["other"], []],
            "active_loras": [1, 1, 0],
            "waiting_loras": [0, 0, 0],
            "max_loras": [1, 1, 1],
            "waiting": [10, 0, 5],
        },
        (2,),
        {0: 2 + 0, 1: 0 + 1, 2: 1.6 + 0.5},
        sent=Sent(model="ad"),
    ),
    Case("header-profiles.yaml", "the default", {"kv_usage": [0.1, 0.6], "waiting": [5, 0]}, (0,), {0: 0.9, 1: 0.4}),
    Case(
        "header-profiles.yaml",
        "the profile that is named",
        {"kv_usage": [0.1, 0.6], "waiting": [5, 0]},
        (1,),
        {0: 0, 1: 1},
        sent=Sent(headers={"x-tier": "interactive"}),
    ),
    Case(
        "header-profiles.yaml",
        "one that there isn't",
        {"kv_usage": [0.1, 0.6], "waiting": [5, 0]},
        400,
        {},
        sent=Sent(headers={"x-tier": "gold"}),
    ),
    Case(
        "data-parallel.yaml",
        "the rank goes along, the sidecar gets the request",
        {"waiting": [3, 1]},
        (1,),
        {0: 0, 1: 1},
        {"x-data-parallel-host-port": hostport(1)},
        destination=hostport(1, 9000),
    ),
    Case(
        "by-label.yaml",
        "two filters in a row",
        {
            "labels": [{"zone": "a", "gpu": "h100"}, {"gpu": "h100"}, {"zone": "c", "gpu": "h100"}, {"zone": "b"}],
            "waiting": [4, 2, 0, 0],
        },
        (1,),
        {0: 0, 1: 1},
    ),
    Case("by-label.yaml", "nobody fits", {"labels": [{"zone": "c"}] * 2, "waiting": [0, 0]}, 503, {}),
    Case(
        "label-selector.yaml",
        "one of two, and not drained",
        {
            "labels": [{"gpu": "h100"}, {"gpu": "h200", "drained": ""}, {"gpu": "a100"}, {"gpu": "h200"}],
            "waiting": [1, 0, 0, 3],
        },
        (0,),
        {0: 1, 3: 0},
    ),
    Case(
        "prefix-length.yaml",
        "half the prompt, half the scale",
        {"waiting": [0, 0]},
        (1,),
        {0: 0, 1: 2 * (0.5 * 0.5**2 + 0.5 * 0.5)},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 512, only=1),),
    ),
    Case(
        "old-prefix-0.5.yaml",
        "two blocks of 512 characters are all that is looked at",
        {"waiting": [0, 9]},
        (1,),
        {0: 1, 1: 0 + 2},
        sent=Sent("a" * 2048),
        before=(Sent("a" * 1024, only=1),),
    ),
    Case(
        "old-prefix-0.5.yaml",
        "a block is 512 characters long",
        {"waiting": [0, 9]},
        (0,),
        {0: 1, 1: 0},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 511, only=1),),
    ),
    Case("old-saturation.yaml", "who runs least", {"running": [4, 1, 3]}, (1,), {0: 0, 1: 1, 2: 1 / 3}),
    Case("old-sections-0.5.yaml", "the shortest queue", {"waiting": [9, 5, 1]}, (2,), {0: 0, 1: 2 * 0.5, 2: 2}),
    Case("flow-control.yaml", "the queue up to a threshold", {"waiting": [10, 5, 2]}, (2,), {0: 0, 1: 0.5, 2: 0.8}),
    Case(
        "data-layer.yaml",
        "a metric of one's own",
        {"waiting": [0, 1, 2], "columns": {BATCH_AGE: [10, 4, 0]}},
        (2,),
        {0: 1 + 0, 1: 0.5 + 1.2, 2: 0 + 2},
    ),
    Case(
        "data-layer.yaml",
        "which one doesn't report",
        {"waiting": [0, 1, 2], "columns": {BATCH_AGE: [10, 4, nan]}},
        (1,),
        {0: 1 + 0, 1: 0.5 + 1.2, 2: 0},
    ),
    Case(
        "precise-old.yaml",
        "a full hit against a free cache",
        {"kv_usage": [0.1, 0.6]},
        (1,),
        {0: 0.9, 1: 2 + 0.4},
        sent=Sent("a" * 512),
        before=(Sent("a" * 512, only=1),),
    ),
    Case(
        "precise.yaml",
        "a quarter of the prompt against the queue",
        {"waiting": [2, 0]},
        (1,),
        {0: 0.75 + 0, 1: 0 + 2},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 256, only=0),),
    ),
    Case(
        "precise-extractor.yaml",
        "a full hit against queue and cache",
        {"labels": role("decode", "decode", "prefill"), "waiting": [4, 0, 0], "kv_usage": [0.5, 0, 0]},
        (0,),
        {0: 2 + 0.5 + 0, 1: 0 + 1 + 1},
        sent=Sent("a" * 512),
        before=(Sent("a" * 512, only=0),),
    ),
    Case(
        "precise-extractor-0.8.yaml",
        "a quarter of the prompt against the queue",
        {"labels": role("decode", "decode", "prefill"), "waiting": [4, 0, 0]},
        (1,),
        {0: 2 * 0.25 + 0, 1: 0 + 1},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 256, only=0),),
    ),
    Case(
        "media-extractor.yaml",
        "who has the picture, though it is busier",
        {"waiting": [0, 5]},
        (1,),
        {0: 1, 1: 4},
        sent=Sent(PICTURE),
        before=(Sent([{"type": "text", "text": "who is that?"}, PICTURE[1]], only=1),),
    ),
    Case(
        "media-extractor.yaml",
        "and the whole prompt",
        {"waiting": [0, 5]},
        (1,),
        {0: 1, 1: 10 + 4},
        sent=Sent(PICTURE),
        before=(Sent(PICTURE, only=1),),
    ),
    Case(
        "fallbacks.yaml",
        "best first",
        {"waiting": [3, 0, 1, 4]},
        (1, 2, 0),
        {0: 0.625, 1: 2.5, 2: 1.875, 3: 0},
    ),
    Case(
        "token-load.yaml",
        "what is in flight, and the 100 tokens that come",
        {"inflight_tokens": [800, 300, 0]},
        (2,),
        {0: 2 * 0.1, 1: 2 * 0.6, 2: 2 * 0.9},
        sent=Sent("a" * 400),
    ),
    Case(
        "context-length.yaml",
        "200 tokens are in the second's range",
        {"labels": LENGTHS, "waiting": [0, 0, 0]},
        (1,),
        {1: IN_RANGE + 1, 2: 0.5 + 1},
        sent=Sent("a" * 800),
    ),
    Case(
        "context-length.yaml",
        "which has a queue",
        {"labels": LENGTHS, "waiting": [0, 2, 0]},
        (2,),
        {1: IN_RANGE + 0, 2: 0.5 + 1},
        sent=Sent("a" * 800),
    ),
    Case(
        "utilization.yaml",
        "one is within all bounds",
        {"waiting": [5, 4, 0], "kv_usage": [0.1, 0.9, 0.95], "running": [0, 9, 0]},
        (1,),
        {1: 3},
    ),
    Case(
        "utilization.yaml",
        "nobody is",
        {"waiting": [5, 0], "kv_usage": [0.1, 0.95], "running": [0, 0]},
        429,
        {},
    ),
    Case(
        "no-profiles.yaml",
        "all of them, at weight 1",
        {"labels": role("prefill", "both", "decode"), "waiting": [0, 4, 0], "kv_usage": [0.5, 0.1, 0]},
        (0,),
        {0: 1 + 0.5, 1: 0 + 0.9},
    ),
    Case(
        "file-discovery.yaml",
        "idle, half busy, busy",
        {"inflight_requests": [1, 2, 4]},
        (0,),
        {0: 2, 1: 2 * 0.5 * (4 - 2) / 4, 2: 0},
    ),
    Case(
        "p2p.yaml",
        "256 tokens are fetched",
        {"waiting": [10, 0, 10]},
        (1,),
        {0: 0 + 1, 1: 3 + 0, 2: 0},
        {"x-kv-cache-source-host-port": hostport(0)},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 1024, only=0),),
    ),
    Case(
        "p2p.yaml",
        "64 tokens are not",
        {"waiting": [10, 0, 10]},
        (1,),
        {0: 0 + 1, 1: 3 + 0, 2: 0},
        sent=Sent("a" * 256),
        before=(Sent("a" * 256, only=0),),
    ),
    Case(
        "multicluster.yaml",
        "three quarters of the prompt were there, against queue and caches",
        CLUSTERS,
        (1,),
        # 2 * (1 - usage) + 2 queue + 3 prefix
        {0: 2 * 0.75 + 2 * 1, 1: 2 * 0.5 + 2 * 0.5 + 3 * 0.75, 2: 0 + 0},
        sent=Sent("a" * 1024),
        before=(Sent("a" * 768, only=1),),
    ),
    Case(
        "multicluster.yaml",
        "a session stays in its cluster, however busy",
        CLUSTERS,
        (2,),
        {2: 2},  # alone it has the shortest queue
        sent=Sent(headers={"x-session-token": token(2)}),
    ),
    Case(
        "gpu-and-burst.yaml",
        "a request alone goes by the queue, and by its GPU",
        {"waiting": [0, 32, 64], "columns": {GPU_UTILIZATION: [0.95, 0.5, nan]}},
        (1,),
        # 0.5 * (1 - 32 / 128), and for who tells nothing 0.5 * (1 - 64 / 128)
        {1: 0.375, 2: 0.25},
        sent=Sent("a" * 1024),
    ),
    Case("as-json.json", "two scorers", {"waiting": [0, 2], "running": [6, 0]}, (0,), {0: 1.5 + 0, 1: 0 + 1}),
]


def load(file: str, own: Pool) -> Router:
    clock, source, path = FakeClock(), random.Random(0), CONFIGS / file
    return resolve(path.read_text(), path, REGISTRY, lambda name: Context(name, clock, source, own)).router


def pipeline(file: str, own: Pool) -> Pipeline:
    metrics, clock = Metrics(own, "test"), FakeClock()
    durations, faults = (metrics.families[f"llm_d_epp_plugin_{name}"] for name in ("duration_seconds", "faults_total"))
    observe = Observability(metrics, Decisions(), RequestLog(None, lambda *_: None), TimingGuard(durations, faults))
    router = replace(load(file, own), tokenizer=None)  # no server renders prompts here: bytes are what counts
    return Pipeline(own, Hooks.of(router), observe, clock, clock)


async def send(path: Pipeline, sent: Sent) -> tuple[Answer | int, Exchange]:
    """The answer, or the status in its place; and the exchange, which has ended."""
    exchange = path.open()
    try:
        answer: Answer | int = await exchange.route(sent.arrival())
    except RequestError as error:
        answer = error.status
        exchange.refused(error)
    exchange.close("ended", complete=True)
    return answer, exchange


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}: {case.name}")
async def test_pick(case: Case) -> None:
    """The request goes where the formulas say, for the totals that they give, with these headers."""
    own = pool(**case.pool)
    path = pipeline(case.file, own)
    for sent in case.before:
        answer, _ = await send(path, sent)
        assert isinstance(answer, Answer)
    answer, exchange = await send(path, case.sent)
    if isinstance(case.picked, int):
        assert answer == case.picked
        return
    assert isinstance(answer, Answer)
    assert exchange.record.decision is not None
    assert [endpoint.name for endpoint in exchange.record.decision.primary.endpoints] == [
        f"pod-{n}" for n in case.picked
    ]
    assert answer.destination == (case.destination or ",".join(map(hostport, case.picked)))
    assert dict(answer.set_headers) == case.headers
    assert totals(exchange) == pytest.approx({f"pod-{number}": total for number, total in case.totals.items()})


def totals(exchange: Exchange) -> dict[str, float]:
    """The primary profile's totals by the endpoint's name."""
    decision = exchange.record.decision
    assert decision is not None
    stage = next(stage for stage in decision.stages if stage.profile.name == decision.handler_result)
    assert stage.totals is not None
    names = [endpoint.name for endpoint in stage.candidates.endpoints]
    return dict(zip(names, map(float, stage.totals), strict=True))


def test_there_are_enough() -> None:
    """Every file has a case."""
    assert len(FILES) >= 25
    assert set(FILES) == {case.file for case in CASES}


OLD_API = 'apiVersion: "inference.networking.x-k8s.io/v1alpha1" is deprecated'


def moved(index: int, *keys: str) -> list[str]:
    """The index's parameters that stand at a scorer."""
    return [f"plugins[{index}].parameters.{key}: is deprecated: write it at the producer" for key in keys]


HEADERS_HANDLER = 'plugins[0].type: "disagg-headers-handler" is deprecated'
NO_EVENTS = '"precise-prefix-cache-producer" is accepted, has no KV events yet'
OLD_THRESHOLDS = ("queueDepthThreshold", "kvCacheUtilThreshold", "metricsStalenessThreshold")
OLD_LIMITS = ("lruCapacityPerServer", "maxPrefixBlocksToMatch")
MULTICLUSTER = enumerate(
    (
        *("file-discovery", "metrics-data-source", "metrics-extractor", "session-affinity-filter"),
        *("kv-cache-utilization-scorer", "queue-scorer", "prefix-cache-scorer", "approx-prefix-cache-producer"),
    )
)
WARNINGS: Mapping[str, Sequence[str]] = {
    "by-label.yaml": [
        OLD_API,
        'plugins[0].type: "by-label" is deprecated: write "label-selector-filter"',
        'plugins[1].type: "by-label-selector" is deprecated: write "label-selector-filter"',
    ],
    "data-layer.yaml": ['plugins[3].type: "endpoint-attribute-scorer" is alpha'],
    "flow-control.yaml": [
        'plugins[1].type: "program-aware-fairness" is accepted, has no effect yet',
        'plugins[2].type: "edf-ordering-policy" is accepted, has no effect yet',
        'plugins[3].type: "static-usage-limit-policy" is accepted, has no effect yet',
        "featureGates: flowControl is accepted, has no effect yet",
        "flowControl: is accepted, has no effect yet",
    ],
    "gpu-and-burst.yaml": [
        f'plugins[2].type: "burst-prefix-cache-producer" {ALPHA}',
        f'plugins[5].type: "dcgm-data-source" {ALPHA}',
        f'plugins[6].type: "dcgm-extractor" {ALPHA}',
        f'plugins[7].type: "endpoint-attribute-filter" {ALPHA}',
    ],
    "multicluster.yaml": [f'plugins[{index}].type: "multicluster-{name}" {ALPHA}' for index, name in MULTICLUSTER],
    "header-profiles.yaml": ['plugins[0].type: "header-profile-handler" is alpha'],
    "kserve-default-0.16.yaml": [OLD_API],
    "kserve-pd-0.17.yaml": [
        OLD_API,
        'plugins[0].type: "prefill-header-handler" is deprecated',
        'plugins[6].type: "pd-profile-handler" is deprecated: write "disagg-profile-handler"',
        "plugins[6].parameters.threshold: is deprecated",
        "plugins[6].parameters.hashBlockSize: is deprecated: leave it out",
    ],
    "kserve-pd-0.18.yaml": [
        OLD_API,
        *moved(5, "autoTune", "blockSizeTokens", *OLD_LIMITS),
        HEADERS_HANDLER,
        'plugins[9].type: "model-server-protocol-metrics" is deprecated: write "core-metrics-extractor"',
        'plugins[4]: "kv-cache-utilization-scorer" (plugins[4]) is referred to by nothing',
    ],
    "kserve-pd.yaml": [HEADERS_HANDLER],
    "old-prefix-0.5.yaml": [
        OLD_API,
        "parser: is deprecated: write requestHandler.parsers",
        *moved(0, "hashBlockSize", *OLD_LIMITS),
    ],
    "old-saturation.yaml": [
        OLD_API,
        "saturationDetector: is deprecated: write flowControl.saturationDetector",
        "featureGates[0]: dataLayer is no gate any more",
    ],
    "old-sections-0.5.yaml": [
        OLD_API,
        "data: is deprecated: write dataLayer",
        *(f'saturationDetector.{key}: is deprecated: write it at a "utilization-detector"' for key in OLD_THRESHOLDS),
        "featureGates[0]: dataLayer is no gate any more",
        'plugins[4].type: "model-server-protocol-metrics" is deprecated: write "core-metrics-extractor"',
    ],
    "p2p.yaml": ['plugins[0].type: "p2p-source-producer" is alpha'],
    "pd-flat.yaml": [
        'plugins[3].parameters.decodeProfile: is deprecated: write "profiles.decode"',
        'plugins[3].parameters.prefillProfile: is deprecated: write "profiles.prefill"',
        'plugins[3].parameters.deciderPluginName: is deprecated: write "deciders.prefill"',
    ],
    "precise-old.yaml": [
        OLD_API,
        'plugins[1].type: "precise-prefix-cache-scorer" is deprecated: write "prefix-cache-scorer"',
        "plugins[1].parameters.indexerConfig.tokenizersPoolConfig: is deprecated, and has no effect",
        f"plugins[1].type: {NO_EVENTS}",
        'plugins[1].parameters.tokenProcessorConfig.blockSize: is deprecated: write "blockSizeTokens"',
    ],
    "precise.yaml": [f"plugins[1].type: {NO_EVENTS}"],
    "precise-extractor.yaml": [
        "plugins[0].parameters.backend: is deprecated",
        f"plugins[5].type: {NO_EVENTS}",
    ],
    "precise-extractor-0.8.yaml": [
        OLD_API,
        'plugins[4].type: "precise-prefix-cache-scorer" is deprecated: write "prefix-cache-scorer"',
        "plugins[4].parameters.indexerConfig.tokenProcessorConfig: is deprecated: write tokenProcessorConfig beside",
        "plugins[4].parameters.indexerConfig.speculativeIndexing: is deprecated: write speculativeIndexing beside",
        "plugins[4].parameters.indexerConfig.prefixStoreConfig: is deprecated, and has no effect: leave it out",
        "plugins[4].parameters.indexerConfig.tokenizersPoolConfig: is deprecated, and has no effect",
        'plugins[0].type: "tokenizer" is deprecated: write "token-producer"',
        'plugins[0].parameters.udsTokenizerConfig: is deprecated: write "vllm"',
        "plugins[0].parameters: a tokenizer at a socket isn't asked",
        f"plugins[4].type: {NO_EVENTS}",
        'dataLayer.sources[0].extractors[0].pluginRef: is deprecated, as "precise-prefix-cache-scorer" is: write',
        'schedulingProfiles[0].plugins[1]: "tokenizer" (plugins[0]) is none of filter, scorer and picker',
    ],
    "media-extractor.yaml": [f"plugins[4].type: {NO_EVENTS}"],
    "session-id.yaml": ['plugins[0].type: "session-affinity-filter" is alpha'],
    "session-token.yaml": ['plugins[0].type: "session-affinity-scorer" is alpha'],
    "utilization.yaml": ['plugins[0].type: "utilization-filter" is alpha'],
}
"""What the loader says of each file, by a part of each warning, in their order; nothing of the others."""


@pytest.mark.parametrize("file", FILES)
def test_warnings(file: str) -> None:
    """One warning for each old spelling and for what has no effect yet, and no other."""
    warnings = load(file, Pool()).warnings
    expected = WARNINGS.get(file, ())
    assert len(warnings) == len(expected), warnings
    assert [part for part, warning in zip(expected, warnings, strict=True) if part not in warning] == []


@pytest.mark.parametrize("file", FILES)
def test_shown(file: str) -> None:
    """What `epp config show` prints of it loads, and is shown in the same way."""
    path = CONFIGS / file

    def context(name: str) -> Context:
        return Context(name, FakeClock(), random.Random(0), Pool())

    shown = show.to_yaml(resolve(path.read_text(), path, REGISTRY, context))
    assert show.to_yaml(resolve(shown, "shown", REGISTRY, context)) == shown


@pytest.mark.parametrize(
    ("file", "page", "endpoints"),
    [
        ("kserve-default.yaml", Page(), None),
        ("kserve-metrics-source.yaml", Page(scheme="https"), None),
        ("data-layer.yaml", Page(port=9100, path="/stats", interval=0.25), None),
        ("multicluster.yaml", None, EndpointsFile(Path("/etc/epp/clusters.yaml"), watch=True, clusters=True)),
        ("gpu-and-burst.yaml", Page(), None),
        ("file-discovery.yaml", Page(), EndpointsFile(Path("/etc/epp/endpoints.yaml"), watch=True)),
    ],
)
def test_sources(file: str, page: Page | None, endpoints: EndpointsFile | None) -> None:
    """Where the metrics and the endpoints come from."""
    sources = load(file, Pool()).sources
    assert (sources.page, sources.file) == (page, endpoints)
