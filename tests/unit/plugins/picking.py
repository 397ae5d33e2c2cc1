"""A whole configuration, asked where it sends requests: everything of the real path but gRPC."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from epp.errors import RequestError
from epp.exchange import Exchange
from epp.extproc.events import Arrival
from epp.hooks import Hooks
from epp.observe.decisions import Decisions
from epp.observe.guard import TimingGuard
from epp.observe.logs import RequestLog
from epp.observe.metrics import Metrics
from epp.observe.observability import Observability
from epp.pipeline import Pipeline
from epp.plugin import Context, Pool, Router
from epp.settings import Registry, load
from epp.testing import FakeClock

REGISTRY = Registry.installed()
PREDICTIONS = str(Path(__file__).parent / "predictions.py")
"""The type of a producer of predictions: its parameters are the columns, a value an endpoint."""


def router_of(plugins: Sequence[Mapping[str, Any]], pool: Pool, seed: int = 0) -> Router:
    """The configuration with these plugins; `weight` of an entry is its weight in the only profile, where it fits."""
    return loaded(one_profile(plugins), pool, seed)


def one_profile(plugins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same as mappings and lists."""
    entries = [{key: value for key, value in plugin.items() if key != "weight"} for plugin in plugins]
    roles = {"filter", "scorer", "picker"}  # a file, such as PREDICTIONS, is in no profile
    members = [
        {"pluginRef": p.get("name", p["type"])} | ({"weight": p["weight"]} if "weight" in p else {})
        for p in plugins
        if p["type"] in REGISTRY and roles & set(REGISTRY.find(p["type"]).kinds)
    ]
    return {"plugins": entries, "schedulingProfiles": [{"name": "default", "plugins": members}]}


def loaded(config: Mapping[str, Any], pool: Pool, seed: int = 0) -> Router:
    """The router of a configuration."""
    head = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    config = head | dict(config)
    clock, source = FakeClock(), random.Random(seed)
    return load(yaml.safe_dump(config), "test", REGISTRY, lambda name: Context(name, clock, source, pool))


def pipeline_of(plugins: Sequence[Mapping[str, Any]], pool: Pool, seed: int = 0) -> Pipeline:
    """The path with that configuration over the pool."""
    return pipeline_with(router_of(plugins, pool, seed), pool)


def pipeline_with(router: Router, pool: Pool) -> Pipeline:
    """The path with that router over the pool."""
    metrics = Metrics(pool, "test")
    durations, faults = (metrics.families[f"llm_d_epp_plugin_{name}"] for name in ("duration_seconds", "faults_total"))
    observe = Observability(metrics, Decisions(), RequestLog(None, lambda *_: None), TimingGuard(durations, faults))
    clock = FakeClock()
    return Pipeline(pool, Hooks.of(router), observe, clock, clock)


def picture(name: str) -> list[dict[str, Any]]:
    """A prompt with a picture."""
    return [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": f"http://{name}"}}]


async def routed(pipeline: Pipeline, prompt: str | list[dict[str, Any]] = "", **headers: str) -> tuple[str, Exchange]:
    """Where a request goes, by its endpoint's name, or the status that the client gets; and its open exchange.

    Headers are written with underscores for hyphens. A prompt of parts is a chat's.
    """
    chat = not isinstance(prompt, str)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
    body = json.dumps({"model": "model"} | content).encode()
    exchange = pipeline.open()
    try:
        answer = await exchange.route(Arrival({":path": path} | named, body, None))
    except RequestError as error:
        return str(error.status), exchange
    slot = pipeline.pool.slot_at(answer.destination.partition(",")[0])
    endpoint = pipeline.pool.endpoints[slot] if slot is not None else None
    return endpoint.name if endpoint is not None else answer.destination, exchange
