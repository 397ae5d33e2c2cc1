"""Each plugin of the catalogue changes where a request goes: with it here, without it there."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from epp.keys import CLUSTER_KV_USAGE, CLUSTER_QUEUE
from epp.objects import Objects
from epp.settings import InvalidConfig
from epp.testing import pool
from tests.unit.plugins.picking import PREDICTIONS, picture, pipeline_of, routed

QUEUE = {"type": "queue-scorer", "weight": 0.1}
"""The baseline: 0.1 for the shortest queue, 0 for the longest, in between linear."""

INVALID = "the configuration is invalid"

TWO: dict[str, Any] = {"waiting": [0, 4]}
ZONES = TWO | {"labels": [{"zone": "a"}, {"zone": "b"}]}


@dataclass(frozen=True)
class Row:
    """A plugin's effect.

    Attributes:
        plugin: its entry; `weight` is the one in the profile.
        goes: where the request goes with it.
        otherwise: where it goes without it.
        pool: the pool; see `epp.testing.pool`.
        beside: entries that are there in either case.
        prompt, headers: of the request.
        before, before_headers: prompts of requests that come first and stay in flight, and their headers.
        seed: of what is random.
    """

    plugin: dict[str, Any]
    goes: str
    otherwise: str
    pool: dict[str, Any] = field(default_factory=lambda: TWO)
    beside: tuple[dict[str, Any], ...] = (QUEUE,)
    prompt: str | list[dict[str, Any]] = "prompt"
    headers: dict[str, str] = field(default_factory=dict)
    before: tuple[str | list[dict[str, Any]], ...] = ()
    before_headers: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def threshold(operator: str, value: float) -> dict[str, Any]:
    return {"type": "threshold", "threshold": {"operator": operator, "value": value}}


def by_session(attribute: str, producer: str) -> dict[str, Any]:
    sources = [{"attribute": attribute, "producer": producer}]
    return {"strategy": "session_id", "sessionIdConfig": {"sources": sources}}


def predictions(**given: list[float | None]) -> dict[str, Any]:
    """A producer that predicts 100 ms for the first token and 10 for each other one, in time, where it isn't told."""
    default: dict[str, list[float]] = {"ttft": [100.0], "tpot": [10.0], "ttft_headroom": [1.0], "tpot_headroom": [1.0]}
    columns = {name: values * 2 for name, values in (default | {"dispatched": [1.0]}).items()} | given
    camel = {"ttft_headroom": "ttftHeadroom", "tpot_headroom": "tpotHeadroom"}
    parameters = {camel.get(name, name): [float(value) for value in values] for name, values in columns.items()}
    return {"type": PREDICTIONS, "name": "predicted-latency-producer", "parameters": parameters}


ZONE = {
    "type": "header-label-affinity-scorer",
    "weight": 10,
    "parameters": {"headerName": "x-zone", "labelKey": "zone"},
}
CONTEXT = "llm-d.ai/context-length-range"
SHEDDABLE = {"x-llm-d-inference-objective": "sheddable"}
KV: dict[str, Any] = {"type": "kv-cache-utilization-scorer", "weight": 0.1}
"""Another baseline: 0.1 for an empty cache, 0 for a full one."""


def roles(*names: str) -> list[dict[str, str]]:
    return [{"llm-d.ai/role": name} for name in names]


def on_pod_1(plugin: str, *beside: dict[str, Any], **row: Any) -> Row:
    """A prompt that was sent to pod-1 by its zone is sought there again."""
    shared: dict[str, Any] = {"prompt": "x" * 256, "before": ("x" * 256,), "before_headers": {"x-zone": "b"}}
    return Row({"type": plugin}, "pod-1", "pod-0", pool=ZONES, beside=(QUEUE, ZONE, *beside), **(shared | row))


def forgetful(plugin: str, scorer: str) -> Row:
    """With room for one block the second prompt takes the place of the first: pod-0 by its queue, else pod-1."""
    parameters = {"autoTune": False, "lruCapacityPerServer": 1}
    beside = (QUEUE, ZONE, {"type": scorer})
    before = {"before": ("x" * 256, "y" * 256), "before_headers": {"x-zone": "b"}}
    return Row({"type": plugin, "parameters": parameters}, "pod-0", "pod-1", ZONES, beside, prompt="x" * 256, **before)


POD_1 = "ZGVmYXVsdC9wb2QtMQ=="  # default/pod-1
SESSION = {"pool": TWO, "headers": {"x-session-token": POD_1}}

ROWS = {
    # pod-0 has one request in flight, the most: 0 + 0.1 against 1.
    "active-request-scorer": Row({"type": "active-request-scorer"}, "pod-1", "pod-0", before=("another",)),
    # 1 - 0.9 + 0.1 is 0.2, 1 - 0.1 is 0.9.
    "kv-cache-utilization-scorer": Row(
        {"type": "kv-cache-utilization-scorer"}, "pod-1", "pod-0", pool=TWO | {"kv_usage": [0.9, 0.1]}
    ),
    # 0.5 * (1 - 64 / 128) + 0.1 is 0.35, 0.5 + 0 is 0.5.
    "load-aware-scorer": Row(
        {"type": "load-aware-scorer"},
        "pod-1",
        "pod-0",
        pool={"waiting": [64, 0], "kv_usage": [0.0, 1.0]},
        beside=(KV,),
    ),
    # 0 + 0.1 against 1 + 0.
    "queue-scorer": Row(
        {"type": "queue-scorer"}, "pod-1", "pod-0", pool={"waiting": [4, 0], "kv_usage": [0.0, 1.0]}, beside=(KV,)
    ),
    # The same, by running requests.
    "running-requests-size-scorer": Row(
        {"type": "running-requests-size-scorer"}, "pod-1", "pod-0", pool=TWO | {"running": [3, 0]}
    ),
    # pod-0 has room for the adapter, 0.8 + 0.1; pod-1 runs it, 1.
    "lora-affinity-scorer": Row(
        {"type": "lora-affinity-scorer"},
        "pod-1",
        "pod-0",
        pool=TWO
        | {
            "active_models": [[], ["model"]],
            "active_loras": [0, 1],
            "waiting_loras": [0, 0],
            "max_loras": [1, 1],
        },
    ),
    # pod-0 has the first prompt's 200 tokens before it.
    "work-ahead-scorer": Row(
        {"type": "work-ahead-scorer"},
        "pod-1",
        "pod-0",
        pool={"waiting": [0, 0], "running": [0, 0], "kv_usage": [0.5, 0.6]},
        beside=(KV,),
        before=("x" * 800,),
    ),
    "prefix-cache-scorer": on_pod_1("prefix-cache-scorer"),
    "multicluster-prefix-cache-scorer": on_pod_1("multicluster-prefix-cache-scorer"),
    "approx-prefix-cache-producer": forgetful("approx-prefix-cache-producer", "prefix-cache-scorer"),
    "multicluster-approx-prefix-cache-producer": forgetful(
        "multicluster-approx-prefix-cache-producer", "multicluster-prefix-cache-scorer"
    ),
    # 0 + 0.1 against 1.
    "multicluster-queue-scorer": Row(
        {"type": "multicluster-queue-scorer"}, "pod-1", "pod-0", pool=TWO | {"columns": {CLUSTER_QUEUE: [5, 1]}}
    ),
    # 0.1 + 0.1 against 0.9.
    "multicluster-kv-cache-utilization-scorer": Row(
        {"type": "multicluster-kv-cache-utilization-scorer"},
        "pod-1",
        "pod-0",
        pool=TWO | {"columns": {CLUSTER_KV_USAGE: [0.9, 0.1]}},
    ),
    "session-affinity-scorer": Row({"type": "session-affinity-scorer"}, "pod-1", "pod-0", **SESSION),
    "session-affinity-filter": Row({"type": "session-affinity-filter"}, "pod-1", "pod-0", **SESSION),
    "multicluster-session-affinity-filter": Row(
        {"type": "multicluster-session-affinity-filter"}, "pod-1", "pod-0", **SESSION
    ),
    "by-label": Row(
        {"type": "by-label", "parameters": {"label": "zone", "validValues": ["b"]}}, "pod-1", "pod-0", pool=ZONES
    ),
    "label-selector-filter": Row(
        {"type": "label-selector-filter", "parameters": {"matchLabels": {"zone": "b"}}}, "pod-1", "pod-0", pool=ZONES
    ),
    "decode-filter": Row(
        {"type": "decode-filter"}, "pod-1", "pod-0", pool=TWO | {"labels": roles("prefill", "decode")}
    ),
    "prefill-filter": Row(
        {"type": "prefill-filter"}, "pod-1", "pod-0", pool=TWO | {"labels": roles("decode", "prefill")}
    ),
    # It is there unasked, and knows that pod-1 alone serves the model; switched off, the queue decides.
    "served-model-filter": Row(
        {"type": "served-model-filter", "parameters": {"enabled": False}},
        "pod-0",
        "pod-1",
        pool=TWO | {"models": [["other"], ["model"]]},
    ),
    # The seed's first shuffle puts pod-1 in front.
    "random-picker": Row({"type": "random-picker"}, "pod-1", "pod-0", seed=0),
    # max(U^(1/0.25), V^(1/0.75)) with the seed's U and V: the less likely pod-1 has it.
    "weighted-random-picker": Row(
        {"type": "weighted-random-picker"},
        "pod-1",
        "pod-0",
        pool={"kv_usage": [0.25, 0.75]},
        beside=({"type": "kv-cache-utilization-scorer"},),
        seed=4,
    ),
    # A mean of 50 / 5 is far above 1, and so is its fifth power times 300: certain.
    "probabilistic-admitter": Row(
        {"type": "probabilistic-admitter"}, "429", "pod-0", pool={"waiting": [50, 60]}, headers=SHEDDABLE
    ),
    # Nobody keeps the time that is asked for, nobody is idle, nobody is cold.
    "latency-slo-admitter": Row(
        {"type": "latency-slo-admitter"},
        "429",
        "pod-0",
        pool=TWO | {"running": [1, 1], "kv_usage": [0.5, 0.5]},
        beside=(QUEUE, predictions(ttft_headroom=[-5, -5])),
        headers=SHEDDABLE | {"x-slo-ttft-ms": "1"},
    ),
    # Cold: pod-0 got the first prompt, so it scores 0 and pod-1 1, which outweighs the queue's 0.1.
    "no-hit-lru-scorer": Row({"type": "no-hit-lru-scorer"}, "pod-1", "pod-0", before=("another",)),
    # In flight at pod-0: 800 bytes, 200 tokens; 1 - (200 + 1.5) / 1000 is 0.7985, 1 - 1.5 / 1000 is 0.9985.
    "token-load-scorer": Row(
        {"type": "token-load-scorer", "parameters": {"queueThresholdTokens": 1000}},
        "pod-1",
        "pod-0",
        prompt="prompt",
        before=("x" * 800,),
    ),
    # pod-0 has 5 waiting, more than 4.
    "utilization-filter": Row(
        {
            "type": "utilization-filter",
            "parameters": {"conditions": [{"metric": "waiting-queue", "maxValue": 4}]},
        },
        "pod-1",
        "pod-0",
        pool={"waiting": [5, 3], "kv_usage": [0.0, 0.9]},
        beside=({"type": "kv-cache-utilization-scorer"},),
    ),
    # 400 bytes are 100 tokens: pod-0 is 900 away, 0.3 / 1.9; pod-1 has it in [0, 200].
    "context-length-aware": Row(
        {"type": "context-length-aware"},
        "pod-1",
        "pod-0",
        pool=TWO | {"labels": [{CONTEXT: "1000-2000"}, {CONTEXT: "0-200"}]},
        prompt="x" * 400,
    ),
    "endpoint-attribute-filter": Row(
        {
            "type": "endpoint-attribute-filter",
            "parameters": {"attribute": "KVCacheUsagePercent", "algorithm": threshold("LessThan", 0.5)},
        },
        "pod-1",
        "pod-0",
        pool=TWO | {"kv_usage": [0.5, 0.4]},
    ),
    # (0.9 - 0) / 1 is 0.9 and (0.4 - 0) / 1 is 0.4: 0.5 more for pod-0, against 0.1.
    "endpoint-attribute-scorer": Row(
        {
            "type": "endpoint-attribute-scorer",
            "parameters": {
                "attributeKey": "KVCacheUsagePercent",
                "algorithm": {
                    "type": "linear_higher_is_better",
                    "normalization": {"fixedRange": {"min": 0, "max": 1}},
                },
            },
        },
        "pod-0",
        "pod-1",
        pool={"waiting": [4, 0], "kv_usage": [0.9, 0.4]},
    ),
    "header-label-affinity-scorer": Row(
        {"type": "header-label-affinity-scorer", "parameters": {"headerName": "X-Zone", "labelKey": "zone"}},
        "pod-1",
        "pod-0",
        pool=ZONES,
        headers={"x-zone": "b"},
    ),
    "encode-filter": Row(
        {"type": "encode-filter"},
        "pod-1",
        "pod-0",
        pool=TWO | {"labels": [{"llm-d.ai/role": "decode"}, {"llm-d.ai/role": "encode-prefill"}]},
    ),
    # The first prompt of 40 bytes goes to pod-0 by its queue, and is charged with 10 + 10,000 tokens, else with 10:
    # pod-0 then has 0.4 + 1 - 10,010 / 20,000 in the one case, which is less than 1, and 0.4 + 1 - 10 / 20,000 else.
    "inflight-load-producer": Row(
        {
            "type": "inflight-load-producer",
            "parameters": {"addEstimatedOutputTokens": True, "outputRatio": 1000},
        },
        "pod-1",
        "pod-0",
        beside=(QUEUE | {"weight": 0.4}, {"type": "token-load-scorer", "parameters": {"queueThresholdTokens": 20000}}),
        before=("x" * 40,),
    ),
    # The session of the cookie was sent to pod-1 by its zone; without the plugin there is no such source.
    "session-id-producer": Row(
        {"type": "session-id-producer", "name": "cookie", "parameters": {"cookieName": "session"}},
        "pod-1",
        INVALID,
        pool=ZONES,
        beside=(
            {"type": "session-affinity-scorer", "parameters": by_session("SessionID", "cookie")},
            QUEUE,
            ZONE,
        ),
        headers={"cookie": "a=b; session=s"},
        before_headers={"cookie": "session=s", "x-zone": "b"},
        before=("first",),
    ),
    "agent-identity": Row(
        {"type": "agent-identity"},
        "pod-1",
        INVALID,
        pool=ZONES,
        beside=(
            {"type": "session-affinity-scorer", "parameters": by_session("agent-identity", "agent-identity")},
            QUEUE,
            ZONE,
        ),
        headers={"session-id": "s"},
        before_headers={"session-id": "s", "x-zone": "b"},
        before=("first",),
    ),
    # pod-1 has all 64 tokens cached: the share of 1 is at least 0.8. The queue prefers pod-0.
    "prefix-cache-affinity-filter": Row(
        {"type": "prefix-cache-affinity-filter"},
        "pod-1",
        "pod-0",
        pool=ZONES,
        beside=(QUEUE, ZONE, {"type": "approx-prefix-cache-producer"}),
        prompt="x" * 256,
        before=("x" * 256,),
        before_headers={"x-zone": "b"},
    ),
    # pod-0 would be 5 ms late, pod-1 keeps its time.
    "slo-headroom-tier-filter": Row(
        {"type": "slo-headroom-tier-filter", "parameters": {"epsilonExploreNeg": 0}},
        "pod-1",
        "pod-0",
        beside=(QUEUE, predictions(ttft_headroom=[-5, 5])),
    ),
    # Headrooms of 100 and 10 ms; the further tokens' are equal, so x is 1 and 0. least: (0 + 1) / 100 and 1.
    "latency-scorer": Row(
        {"type": "latency-scorer"}, "pod-1", "pod-0", beside=(QUEUE, predictions(ttft_headroom=[100, 10]))
    ),
    # Without predictions (0.5 + 1 + 0) / 3 against (1 + 0 + 0) / 3: 0.5 against 0.33 and 0.1 for the zone.
    "latency-scorer without predictions": Row(
        {"type": "latency-scorer"},
        "pod-1",
        "pod-0",
        pool={"waiting": [4, 0], "kv_usage": [0.0, 0.5], "labels": [{"zone": "a"}, {"zone": "b"}]},
        beside=(ZONE | {"weight": 0.1},),
        headers={"x-zone": "a"},
    ),
    # pod-0 has 5 waiting, which is not less than 5.
    "utilization-detector": Row(
        {"type": "utilization-detector"},
        "pod-1",
        "pod-0",
        pool={"waiting": [5, 4], "kv_usage": [0.1, 0.7]},
        beside=({"type": "kv-cache-utilization-scorer"},),
    ),
    # pod-0 has one request in flight already.
    "concurrency-detector": Row(
        {"type": "concurrency-detector", "parameters": {"maxConcurrency": 1}}, "pod-1", "pod-0", before=("first",)
    ),
    # One request in flight at either: nobody has room.
    "concurrency-detector of all": Row(
        {"type": "concurrency-detector", "parameters": {"maxConcurrency": 1}},
        "429",
        "pod-0",
        before=("first", "second"),
    ),
    "header-based-testing-filter": Row(
        {"type": "header-based-testing-filter"},
        "pod-1",
        "pod-0",
        headers={"test-epp-endpoint-selection": "10.0.0.9, 10.0.0.2:8000"},
    ),
    "header-based-testing-filter without the header": Row({"type": "header-based-testing-filter"}, "503", "pod-0"),
    # pod-1, which the picture was sent to by its zone, has 1 of 1.
    "mm-embeddings-cache-scorer": Row(
        {"type": "mm-embeddings-cache-scorer"},
        "pod-1",
        "pod-0",
        pool=ZONES,
        beside=(QUEUE, ZONE),
        prompt=picture("a"),
        before=(picture("a"),),
        before_headers={"x-zone": "b"},
    ),
    # With room for one the second picture takes the place of the first.
    "mm-embeddings-cache-producer": Row(
        {"type": "mm-embeddings-cache-producer", "parameters": {"cacheSizeInMBPerServer": 2}},
        "pod-0",
        "pod-1",
        pool=ZONES,
        beside=(QUEUE, ZONE, {"type": "mm-embeddings-cache-scorer"}),
        prompt=picture("a"),
        before=(picture("a"), picture("b")),
        before_headers={"x-zone": "b"},
    ),
    # The zone a has no decoder.
    "disaggregatedset-rollout-screener": Row(
        {
            "type": "disaggregatedset-rollout-screener",
            "parameters": {
                "scope": {"labelSelector": "zone"},
                "revisionGating": {
                    "mode": "sum",
                    "revisionLabelKey": "zone",
                    "roleLabelKey": "role",
                    "requireRoles": {"values": ["prefill", "decode"]},
                },
            },
        },
        "pod-1",
        "pod-0",
        pool={
            "waiting": [0, 4, 9],
            "labels": [
                {"zone": "a", "role": "prefill"},
                {"zone": "b", "role": "prefill"},
                {"zone": "b", "role": "decode"},
            ],
        },
    ),
}


async def goes(row: Row, *plugins: dict[str, Any]) -> str:
    """Where the row's request goes, or that the configuration doesn't load."""
    try:
        own = pool(**row.pool)
        own.objects = Objects(priorities={"sheddable": -1})
        pipeline = pipeline_of([*plugins, *row.beside], own, row.seed)
    except InvalidConfig:
        return INVALID
    sent = [await routed(pipeline, prompt, **row.before_headers) for prompt in row.before]
    destination, exchange = await routed(pipeline, row.prompt, **row.headers)
    for _, open_exchange in [*sent, ("", exchange)]:
        open_exchange.close("ended", complete=True)
    return destination


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_changes_the_pick(row):
    """The request goes elsewhere than it would without the plugin, as the formula says."""
    assert await goes(row, row.plugin) == row.goes
    assert await goes(row) == row.otherwise
    assert row.goes != row.otherwise
