"""The keys of the columns that plugins share: typed, one object per (scope, producer, name), compared by identity.

A pool key names a column of the pool, one value an endpoint. A request key names a column that a producer or a fetcher
computes for one request. `request_key` and `pool_key` give equal names the same object, so a key is a cheap index.
"""

from dataclasses import dataclass
from functools import cache
from math import isnan
from typing import Literal, NamedTuple

Scope = Literal["pool", "request"]
Source = Literal["metrics", "info"]


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """The name of a column; made by `pool_key` and `request_key` only.

    Attributes:
        name: what the column holds, in snake case.
        scope: "pool" for a column of the pool, "request" for one computed for a request.
        missing: the value of an endpoint that nobody wrote to; NaN for anything reported by the engine.
        source: "metrics" for what a scrape reports and what turns NaN when the endpoint missed its own scheduled
            scrape; "info" for what a scrape reports once and for all, such as the cache's size; None for our own.
        unit: of the values, for the explanation of a decision.
        producer: the name of the plugin instance that writes it; "" for the mechanism.
    """

    name: str
    scope: Scope
    missing: float
    source: Source | None
    unit: str
    producer: str = ""

    def __repr__(self) -> str:
        return f"<{self.scope} key {self.producer + '/' if self.producer else ''}{self.name}>"


_NAN = float("nan")


def pool_key(
    name: str, *, missing: float = 0.0, source: Source | None = None, unit: str = "", producer: str = ""
) -> Key:
    """The key of a column of the pool; equal arguments give the same object."""
    # No NaN equals another one: with one object for all of them, the cache finds it.
    return _pool_key(name, _NAN if isnan(missing) else missing, source, unit, producer)


@cache
def _pool_key(name: str, missing: float, source: Source | None, unit: str, producer: str) -> Key:
    return Key(name, "pool", missing, source, unit, producer)


@cache
def request_key(name: str, producer: str, *, unit: str = "") -> Key:
    """The key of a column that `producer`, the name of a plugin instance, computes for each request."""
    return Key(name, "request", _NAN, None, unit, producer)


WAITING = pool_key("waiting", missing=_NAN, source="metrics", unit="requests")
RUNNING = pool_key("running", missing=_NAN, source="metrics", unit="requests")
KV_USAGE = pool_key("kv_usage", missing=_NAN, source="metrics", unit="fraction")
FIRST_TOKENS = pool_key("first_tokens", missing=_NAN, source="metrics", unit="requests")
"""Requests that have had their first token, since the engine's start."""
FIRST_TOKEN_SECONDS = pool_key("first_token_seconds", missing=_NAN, source="metrics", unit="s")
"""The seconds that these waited for it, added up."""
TOKEN_GAPS = pool_key("token_gaps", missing=_NAN, source="metrics", unit="tokens")
"""Tokens that have followed another one of their answer, since the engine's start."""
TOKEN_GAP_SECONDS = pool_key("token_gap_seconds", missing=_NAN, source="metrics", unit="s")
"""The seconds between these and the ones before, added up."""
ACTIVE_LORAS = pool_key("active_loras", missing=_NAN, source="metrics", unit="adapters")
WAITING_LORAS = pool_key("waiting_loras", missing=_NAN, source="metrics", unit="adapters")
MAX_LORAS = pool_key("max_loras", missing=_NAN, source="metrics", unit="adapters")
CACHE_BLOCK_SIZE = pool_key("cache_block_size", missing=_NAN, source="info", unit="tokens")
CACHE_BLOCKS = pool_key("cache_blocks", missing=_NAN, source="info", unit="blocks")
INFLIGHT_REQUESTS = pool_key("inflight_requests", unit="requests")
INFLIGHT_TOKENS = pool_key("inflight_tokens", unit="tokens")

# The names of the sets an engine reports, for Candidates.has.
ACTIVE_MODELS = "active_models"
WAITING_MODELS = "waiting_models"
SERVED_MODELS = "models"
"""The models that an engine serves, adapters included."""
REPORTED = ""
"""A member of `SERVED_MODELS` wherever the engine says what it serves."""

APPROX_PREFIX_PRODUCER = "approx-prefix-cache-producer"


def matched_tokens(producer: str = APPROX_PREFIX_PRODUCER) -> Key:
    """Prompt tokens at the start of the prompt that the endpoint is believed to hold, by that producer."""
    return request_key("matched_tokens", producer, unit="tokens")


def matchable_tokens(producer: str = APPROX_PREFIX_PRODUCER) -> Key:
    """Prompt tokens that could match, the same for every endpoint with equal block size, by that producer."""
    return request_key("matchable_tokens", producer, unit="tokens")


INFLIGHT_LOAD_PRODUCER = "inflight-load-producer"
LATENCY_PRODUCER = "predicted-latency-producer"


def uncached_tokens(producer: str = INFLIGHT_LOAD_PRODUCER) -> Key:
    """Prompt tokens that the endpoint would have to compute, since it is not known to hold them, by that producer."""
    return request_key("uncached_tokens", producer, unit="tokens")


class Latency(NamedTuple):
    """The columns of a latency prediction, all NaN where there is none.

    `dispatched` counts the endpoint's own requests in flight, `*_headroom` is what the request asks for less what is
    predicted: negative where the endpoint would miss it.
    """

    ttft: Key
    tpot: Key
    ttft_headroom: Key
    tpot_headroom: Key
    dispatched: Key


@cache
def latency(producer: str = LATENCY_PRODUCER) -> Latency:
    """The columns that a producer of latency predictions writes: milliseconds, and requests."""
    names = ("ttft", "tpot", "ttft_headroom", "tpot_headroom")
    ttft, tpot, ttft_headroom, tpot_headroom = (request_key(name, producer, unit="ms") for name in names)
    return Latency(ttft, tpot, ttft_headroom, tpot_headroom, request_key("dispatched", producer, unit="requests"))


CORE_METRICS_EXTRACTOR = "core-metrics-extractor"
GPU_UTILIZATION = pool_key("GPUUtilization", missing=_NAN, source="metrics", unit="fraction", producer="dcgm-extractor")
CLUSTER_QUEUE = pool_key("llm-d.ai/multicluster-queue-size", missing=_NAN, source="metrics", unit="requests")
CLUSTER_KV_USAGE = pool_key(
    "llm-d.ai/multicluster-kv-cache-utilization", missing=_NAN, source="metrics", unit="fraction"
)

_NAMED = {
    "WaitingQueueSize": WAITING,
    "RunningRequestsSize": RUNNING,
    "KVCacheUsagePercent": KV_USAGE,
    "GPUUtilization": GPU_UTILIZATION,
}

_OF_NOBODY = {key.name: key for key in (CLUSTER_QUEUE, CLUSTER_KV_USAGE)}
"""Attributes that llm-d addresses without a producer: whoever supplies them."""


def attribute(name: str, producer: str = CORE_METRICS_EXTRACTOR) -> Key:
    """The column of a number that llm-d calls an attribute of an endpoint, such as `WaitingQueueSize`.

    Args:
        name: one of llm-d's names, or one that an extractor gives to a metric of its own.
        producer: the name of the extractor; "" for any, which means the one that llm-d's name belongs to.
    """
    known = _NAMED.get(name)
    if known is not None and producer in {"", known.producer or CORE_METRICS_EXTRACTOR}:
        return known
    if not producer and name in _OF_NOBODY:
        return _OF_NOBODY[name]
    return pool_key(name, missing=_NAN, source="metrics", producer=producer or CORE_METRICS_EXTRACTOR)


MEDIA_PRODUCER = "mm-embeddings-cache-producer"


def matched_media(producer: str = MEDIA_PRODUCER) -> Key:
    """Pictures and other media of the request whose embeddings the endpoint is believed to hold, by that producer."""
    return request_key("matched_media", producer, unit="items")
