"""What the tests of observability are made of: a real decision, its record, and metrics as a scraper reads them."""

import json
import math
from functools import cache
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from epp.observe.metrics import Metrics
from epp.observe.record import Record
from epp.plugin import Candidates, Request, Router
from epp.schedule import Decision, Unguarded, decide, produce
from epp.settings import Registry, load
from epp.testing import candidates, context, request

CONFIG = {
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [
        {"type": "decode-filter"},
        {"type": "queue-scorer"},
        {"type": "active-request-scorer"},
        {"type": "max-score-picker"},
    ],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": "decode-filter"},
                {"pluginRef": "queue-scorer", "weight": 2},
                {"pluginRef": "active-request-scorer", "weight": 1},
                {"pluginRef": "max-score-picker"},
            ],
        }
    ],
}

ROLES = [{"llm-d.ai/role": role} for role in ("decode", "prefill", "decode")]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def endpoints(**changes: Any) -> Candidates:
    """Three endpoints: an idle one that decodes, one that prefills, one that decodes and has some load."""
    columns = {"waiting": [0, 0, 4], "inflight_requests": [0, 0, 2], "labels": ROLES}
    return candidates(now=1000.0, **(columns | changes))


@cache
def router() -> Router:
    """Of real plugins, none of which keeps anything."""
    return load(json.dumps(CONFIG), "test", Registry.installed(), context)


def decided(c: Candidates | None = None, sent: Request | None = None) -> Decision:
    """What they decide for these candidates."""
    c, sent = c or endpoints(), sent or request("a prompt")
    produce(router(), sent, c, Unguarded())
    return decide(router(), sent, c, Unguarded())


def record(id_: str = "r-1", **fields: Any) -> Record:
    """A request that was routed; `decision=None` for one that wasn't."""
    given: dict[str, Any] = {"model": "m", "size": 100, "decided_in": 0.0002, "processed_in": 0.001}
    if "decision" not in fields:
        given["decision"] = decided()
    return Record(id_, 1.5e9, 1000.0, **(given | fields))


def samples(metrics: Metrics) -> Samples:
    """Every sample of the text exposition, as prometheus_client's parser reads it."""
    page = generate_latest(metrics.registry).decode()
    families = text_string_to_metric_families(page)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def one(found: Samples, sample: str, **labels: str) -> float:
    """The sample of that name with at least these labels; NaN if there is none."""
    fitting = [value for (n, ls), value in found.items() if n == sample and labels.items() <= dict(ls).items()]
    assert len(fitting) <= 1, f"{sample}{labels} is ambiguous"
    return fitting[0] if fitting else math.nan
