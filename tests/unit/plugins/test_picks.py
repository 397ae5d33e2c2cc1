"""Each plugin of the catalogue changes where a request goes: with it here, without it there."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from epp.testing import pool
from tests.unit.plugins.picking import pipeline_of, routed

QUEUE = {"type": "queue-scorer", "weight": 0.1}
"""The baseline: 0.1 for the shortest queue, 0 for the longest, in between linear."""

TWO: dict[str, Any] = {"waiting": [0, 4]}


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
        before: prompts of requests that come first and stay in flight.
    """

    plugin: dict[str, Any]
    goes: str
    otherwise: str
    pool: dict[str, Any] = field(default_factory=lambda: TWO)
    beside: tuple[dict[str, Any], ...] = (QUEUE,)
    prompt: str = "prompt"
    headers: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()


def threshold(operator: str, value: float) -> dict[str, Any]:
    return {"type": "threshold", "threshold": {"operator": operator, "value": value}}


PREFIX = {"type": "prefix-cache-scorer", "weight": 3}
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
        pool=TWO | {"labels": [{"zone": "a"}, {"zone": "b"}]},
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
}


async def goes(row: Row, *plugins: dict[str, Any]) -> str:
    pipeline = pipeline_of([*plugins, *row.beside], pool(**row.pool))
    sent = [await routed(pipeline, prompt) for prompt in row.before]
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
