"""Each plugin of the catalogue changes where a request goes: with it here, without it there."""

from dataclasses import dataclass, field
from typing import Any

import pytest

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

ROWS = {
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
        pipeline = pipeline_of([*plugins, *row.beside], pool(**row.pool))
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
