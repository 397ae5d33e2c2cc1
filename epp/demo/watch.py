"""What the engines' and the picker's pages say at one moment, read in the demo's own client."""

import asyncio
import math
import re
from dataclasses import dataclass
from typing import Any

import aiohttp

from epp.demo.stack import Stack

_SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_DECISIONS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One endpoint; NaN where its page or the picker's didn't answer.

    Attributes:
        inflight: requests that the picker has sent there and not seen end.
        hits: prompt tokens found in the prefix cache, of `queries` looked up.
        requests: ended so far.
    """

    address: str
    waiting: float
    running: float
    kv_usage: float
    inflight: float
    hits: float
    queries: float
    requests: float

    @property
    def hit_ratio(self) -> float:
        """The share of prompt tokens found in the cache."""
        return self.hits / self.queries if self.queries else math.nan


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision: where a request went, each candidate's total, and what made up the total of the one taken."""

    request_id: str
    destination: str
    totals: dict[str, float]
    parts: dict[str, float]
    error: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment."""

    rows: tuple[Row, ...]
    choices: tuple[Choice, ...]

    @property
    def hit_ratio(self) -> float:
        """Over all engines."""
        queries = sum(row.queries for row in self.rows)
        return sum(row.hits for row in self.rows) / queries if queries else math.nan


async def look(http: aiohttp.ClientSession, stack: Stack) -> Snapshot:
    """Reads all pages at the same time; one that doesn't answer leaves gaps."""
    pages = asyncio.gather(*(_text(http, f"http://{engine}/metrics") for engine in stack.engines))
    picker = _text(http, f"{stack.metrics}/metrics")
    decisions = _json(http, f"{stack.metrics}/debug/decisions?limit={_DECISIONS}")
    engines, own, latest = await asyncio.gather(pages, picker, decisions)
    inflight = _inflight(own)
    rows = [
        _row(address, page, inflight.get(address, math.nan))
        for address, page in zip(stack.engines, engines, strict=True)
    ]
    return Snapshot(tuple(rows), tuple(map(choice, latest)))


def _row(address: str, page: str, inflight: float) -> Row:
    found = samples(page)

    def read(name: str) -> float:
        values = [value for _, value in found.get(f"vllm:{name}", ())]
        return sum(values) if values else math.nan

    return Row(
        address,
        waiting=read("num_requests_waiting"),
        running=read("num_requests_running"),
        kv_usage=read("kv_cache_usage_perc"),
        inflight=inflight,
        hits=read("prefix_cache_hits_total"),
        queries=read("prefix_cache_queries_total"),
        requests=read("request_success_total"),
    )


def _inflight(page: str) -> dict[str, float]:
    """In-flight requests by the endpoint's name, which is its address where nothing else was given."""
    found = samples(page).get("llm_d_epp_inflight_requests", ())
    return {dict(_LABEL.findall(labels)).get("endpoint_name", ""): value for labels, value in found}


def samples(page: str) -> dict[str, list[tuple[str, float]]]:
    """A page of Prometheus' text format by name: the labels as they stand there, and the value."""
    found: dict[str, list[tuple[str, float]]] = {}
    for name, labels, value in _SAMPLE.findall(page):
        found.setdefault(name, []).append((labels, float(value)))
    return found


def choice(record: dict[str, Any]) -> Choice:
    """One entry of `/debug/decisions` as the table shows it."""
    addresses = {c["endpoint"]: c["address"] for c in record["candidates"]}
    destination = record["destination"] or ""
    totals: dict[str, float] = {}
    parts: dict[str, float] = {}
    for stage in record["profiles"]:
        if stage["profile"] != record["profile"]:
            continue
        totals = {addresses.get(name, name): total for name, total in stage["totals"].items()}
        for scorer in stage["scorers"]:
            scores = {addresses.get(name, name): score for name, score in scorer["scores"].items()}
            if destination in scores:
                parts[scorer["plugin"]] = scores[destination]["weighted"]
    error = record["error"]["message"] if record["error"] else ""
    return Choice(record["request_id"], destination, totals, parts, error)


async def _text(http: aiohttp.ClientSession, url: str) -> str:
    try:
        async with http.get(url) as response:
            return await response.text() if response.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def _json(http: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    try:
        async with http.get(url) as response:
            return list(await response.json()) if response.status == 200 else []
    except (aiohttp.ClientError, TimeoutError):
        return []
