"""What every registered plugin keeps to: the sentences of the SDK and of the manuals, over whatever is installed."""

import textwrap
from functools import cache
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.plugin import BadRequest, Body, Candidates, Outcome, Request
from epp.schedule import produce
from epp.schedule.guard import Unguarded
from epp.settings import PluginClass, Registry, Resolved, resolve
from epp.testing import candidates, context, decided, pool, request

REGISTRY = Registry.installed()
SECTIONS = ("What it does", "Reads", "Writes", "Parameters", "Example", "Where it departs from llm-d, and why")
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
SHORTER = settings(max_examples=40, deadline=None)


def of_kind(*kinds: str) -> list[str]:
    return [name for name in REGISTRY.types if set(REGISTRY.find(name).kinds) & set(kinds)]


def sections(found: PluginClass) -> dict[str, str]:
    """The manual's sections by heading: a heading stands at the margin, what it is about is indented."""
    parts: dict[str, str] = {}
    heading = ""
    for line in found.manual.splitlines():
        if line and not line[0].isspace():
            heading = line.rstrip(":")
        else:
            parts[heading] = parts.get(heading, "") + line + "\n"
    return {heading: textwrap.dedent(text).strip() for heading, text in parts.items()}


def example(type_name: str) -> str:
    return sections(REGISTRY.find(type_name))["Example"]


@cache
def loaded(type_name: str) -> Resolved:
    """The plugin with the parameters of its manual's example, and the producers that it needs; a handler's example."""
    if "profile handler" in REGISTRY.find(type_name).kinds:  # which needs its profiles
        return resolve(HEAD + example(type_name), "contract", REGISTRY, context)
    entries = yaml.safe_load(example(type_name))["plugins"]
    parameters = next((entry.get("parameters", {}) for entry in entries if entry["type"] == type_name), {})
    return resolve(yaml.safe_dump(entry_alone(type_name, parameters)), "contract", REGISTRY, context)


def entry_alone(type_name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    plugins = [{"type": type_name, "parameters": parameters}]
    return {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins}


def plugin(type_name: str) -> Any:
    return loaded(type_name).instances[type_name].plugin


# --- random pools and requests

counts = st.one_of(st.just(float("nan")), st.integers(0, 300).map(float))
own_counts = st.integers(0, 300).map(float)
shares = st.one_of(st.just(float("nan")), st.floats(0.0, 1.0))
models = st.lists(st.sampled_from(["model", "other", "third"]), unique=True)
labels = st.dictionaries(
    st.sampled_from(["llm-d.ai/role", "llm-d.ai/engine-type", "llm-d.ai/context-length-range", "zone"]),
    st.sampled_from(["decode", "prefill", "both", "vllm", "a", "0-50", ""]),
)
columns = {
    "waiting": counts,
    "running": counts,
    "kv_usage": shares,
    "active_loras": counts,
    "waiting_loras": counts,
    "max_loras": counts,
    "cache_blocks": counts,
    "cache_block_size": st.sampled_from([float("nan"), 16.0, 64.0]),
    "inflight_requests": own_counts,
    "inflight_tokens": own_counts,
    "active_models": models,
    "waiting_models": models,
    "labels": labels,
    "stale": st.booleans(),
}


@st.composite
def pools(draw: st.DrawFn) -> Candidates:
    """Candidates of one to eight endpoints with anything that an engine may report, or leave out."""
    number = draw(st.integers(1, 8))
    own = pool(**{name: draw(st.lists(v, min_size=number, max_size=number)) for name, v in columns.items()})
    return candidates(of=own)


requests = st.builds(
    request,
    st.lists(st.binary(max_size=600), max_size=3),
    model=st.sampled_from(["model", "other", ""]),
    headers=st.dictionaries(
        st.sampled_from(["x-session-token", "x-session-id", "x-conversation-id"]),
        st.sampled_from(["", "one", "ZGVmYXVsdC9wb2QtMA==", "ZGVmYXVsdC9ub2JvZHk=", "%%%"]),
    ),
)


def produced(type_name: str, sent: Request, c: Candidates) -> Candidates:
    """The candidates with what the plugin's producers write."""
    produce(loaded(type_name).router, sent, c, Unguarded())
    return c


# --- manuals


@pytest.mark.parametrize("type_name", REGISTRY.types)
def test_manual(type_name):
    """The module's docstring is the manual: a first line that names the type, and all sections, in order."""
    found = REGISTRY.find(type_name)
    first, _, rest = found.manual.partition("\n")
    assert type_name in first or type_name in rest.partition("Reads")[0]
    assert first.endswith(".")
    parts = sections(found)
    assert [heading for heading in parts if heading in SECTIONS] == list(SECTIONS)
    assert all(parts[heading] for heading in SECTIONS)


@pytest.mark.parametrize("type_name", REGISTRY.types)
def test_summary(type_name):
    """The class's docstring begins with one sentence for the list of plugins."""
    assert REGISTRY.find(type_name).summary.endswith(".")


@pytest.mark.parametrize("type_name", REGISTRY.types)
def test_parameters_are_in_the_manual(type_name):
    """The manual names every parameter as the configuration writes it, and says None where there are none."""
    found = REGISTRY.find(type_name)
    written = sections(found)["Parameters"]
    model = getattr(found.cls, "Parameters", None)
    names = [info.alias or name for name, info in model.model_fields.items()] if model else []
    assert [name for name in names if f"`{name}`" not in written] == []
    assert names or "None." in written or found.deprecated or "by-label" in written


@pytest.mark.parametrize("type_name", REGISTRY.types)
def test_example_loads(type_name):
    """The manual's example is a configuration that loads, uses the plugin, and has no other warning than alpha ones."""
    router = resolve(HEAD + example(type_name), "example", REGISTRY, context).router
    known = ("is alpha", "is deprecated", "is accepted")
    assert [warning for warning in router.warnings if not any(words in warning for words in known)] == []
    used = [*router.parsers, *router.producers, *router.fetchers, router.handler]
    for profile in router.profiles.values():
        used += [*profile.filters, *(scorer for scorer, _ in profile.scorers), profile.picker]
    found = REGISTRY.find(type_name)
    first, _, rest = found.manual.partition("\n")  # a module's types share its manual and its example
    named = first.partition(":")[0].split(", ")
    shares = type_name in named or f"`{type_name}`" in rest.partition("Reads")[0]
    assert type_name in {plugged.type for plugged in used} or shares or found.status == "loads-only"


# --- pickers

totals_of = st.one_of(st.floats(-10, 10), st.sampled_from([float("nan"), 0.0, 1.0, 1e300, -1e300, 5e-324]))


@pytest.mark.parametrize("type_name", of_kind("picker"))
@pytest.mark.parametrize("count", [1, 2, 100])
@SHORTER
@given(sent=requests, c=pools(), data=st.data())
def test_picks(type_name, count, sent, c, data):
    """A pick is distinct indices of candidates, at least one and no more than asked for."""
    config = yaml.safe_dump(entry_alone(type_name, {"maxNumOfEndpoints": count}))
    picker = resolve(config, "contract", REGISTRY, context).router.profiles["default"].picker
    totals = np.array(data.draw(st.lists(totals_of, min_size=len(c), max_size=len(c))))
    before = totals.copy()
    order = [int(index) for index in picker.plugin.pick(sent, c, totals)]
    assert len(order) == min(count, len(c))
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(len(c)))
    np.testing.assert_array_equal(totals, before)


# --- the others


@pytest.mark.parametrize("type_name", of_kind("producer"))
@SHORTER
@given(sent=requests, c=pools())
def test_producers(type_name, sent, c):
    """A producer writes the keys that it says, one value for each candidate."""
    instance = plugin(type_name)
    columns = instance.produce(sent, produced(type_name, sent, c))
    assert set(columns) == set(instance.writes)
    assert all(np.shape(values) == (len(c),) for values in columns.values())
    assert all(key.producer == type_name for key in instance.writes)


@pytest.mark.parametrize("type_name", of_kind("profile handler"))
def test_handlers(type_name):
    """A profile handler names a profile that it ran."""
    resolved = resolve(HEAD + example(type_name), "example", REGISTRY, context)
    ran: list[str] = []
    handler = resolved.router.handler
    primary = handler.plugin.decide(request(), lambda profile, peer=None: ran.append(profile))
    assert primary in ran
    assert set(ran) <= set(resolved.router.profiles)


@pytest.mark.parametrize("type_name", of_kind("observer"))
@SHORTER
@given(sent=requests, c=pools(), data=st.data())
def test_observers(type_name, sent, c, data):
    """An observer takes any request, decision and outcome, and sets headers of text."""
    instance = plugin(type_name)
    produced(type_name, sent, c)
    decision = decided(c, data.draw(st.integers(0, len(c) - 1)))
    if hasattr(instance, "picked"):
        instance.picked(sent, decision, c)
    if hasattr(instance, "response_headers"):
        headers = instance.response_headers(sent, decision, decision.primary.endpoints[0])
        assert all(isinstance(text, str) for item in headers.items() for text in item)
    if hasattr(instance, "first_byte"):
        instance.first_byte(sent, decision, c.now)
    if hasattr(instance, "done"):
        instance.done(sent, decision, Outcome(), c.now)


@pytest.mark.parametrize("type_name", of_kind("screener"))
@SHORTER
@given(sent=requests, c=pools())
def test_screeners(type_name, sent, c):
    """A screener's mask is one bool for each candidate; it may be left out for all True."""
    mask = plugin(type_name).screen(sent, c)
    assert mask is None or (mask.shape, mask.dtype) == ((len(c),), np.bool_)


@pytest.mark.parametrize("type_name", of_kind("admitter"))
@pytest.mark.parametrize("priority", [-1, 0])
@SHORTER
@given(c=pools())
def test_admitters(type_name, priority, c):
    """An admitter says why, or None; a request that isn't sheddable passes ours."""
    sent = request("prompt", priority=priority, headers={"x-slo-ttft-ms": "1"})
    reason = plugin(type_name).deny(sent, produced(type_name, sent, c))
    assert reason is None or (isinstance(reason, str) and reason and priority < 0)


@pytest.mark.parametrize("type_name", of_kind("header reader"))
@SHORTER
@given(headers=st.dictionaries(st.sampled_from(["session-id", "cookie", "x-my-agent-session"]), st.text()))
def test_header_readers(type_name, headers):
    """Attributes are texts, under `name/producer`, and never empty."""
    found = plugin(type_name).attributes(headers)
    assert all(key.partition("/")[2] == type_name and value for key, value in found.items())


@pytest.mark.parametrize("type_name", of_kind("parser"))
@SHORTER
@given(path=st.sampled_from(["/v1/completions", "/v1/chat/completions", "/", ""]), body=st.binary(max_size=80))
def test_parsers(type_name, path, body):
    """A parser reads a body or says why it can't; nothing else may come of bytes that a client sends."""
    try:
        read = plugin(type_name).parse(path, {}, body)
    except BadRequest as error:
        read = error.message
    assert isinstance(read, Body) or read
