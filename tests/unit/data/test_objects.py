"""Objectives, model rewrites and the pool as documents of the endpoints file: what they say, and what is refused."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.data.declared import Contents, parse_file
from epp.data.discovery import Discovery, DiscoveryOptions
from epp.errors import ConfigError
from epp.pool import Pool


async def until(condition: Callable[[], bool]) -> None:
    """Waits until the condition holds; AssertionError if it doesn't in time."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


ENDPOINTS = {"endpoints": [{"name": "a", "address": "10.0.0.1", "port": 8000, "labels": {"app": "x"}}]}
ELSEWHERE = "none of the 1 endpoints has the labels that the InferencePool's selector asks for (app=y)"
CANARY = [{"modelRewrite": "stable", "weight": 3}, {"modelRewrite": "canary", "weight": 1}]


def document(kind: str, name: str, *, version: str = "llm-d.ai/v1alpha2", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def objective(name: str, priority: int | None, **spec: Any) -> dict[str, Any]:
    return document("InferenceObjective", name, **({} if priority is None else {"priority": priority}), **spec)


def rewrite(name: str, *rules: Any, **spec: Any) -> dict[str, Any]:
    return document("InferenceModelRewrite", name, rules=list(rules), **spec)


def rule(*targets: Any, models: tuple[str, ...] = ()) -> dict[str, Any]:
    made = [{"modelRewrite": target} if isinstance(target, str) else target for target in targets]
    return {"targets": made, **({"matches": [{"model": {"value": model}} for model in models]} if models else {})}


def pool(name: str = "llama", **spec: Any) -> dict[str, Any]:
    return document("InferencePool", name, version="inference.networking.k8s.io/v1", **spec)


def read(*documents: Any, pool_name: str = "") -> Contents:
    return parse_file(yaml.safe_dump_all([ENDPOINTS, *documents]).encode(), "f", pool_name)


def target(contents: Contents, model: str) -> tuple[str, str] | None:
    found = contents.objects.rule(model)
    return None if found is None else (found.name, found.target(random.Random(0)))


def test_priorities() -> None:
    """By the objective's name; without one it is 0, as in Kubernetes."""
    said = read(objective("batch", -1), objective("chat", 10), objective("plain", None))
    assert said.objects.priorities == {"batch": -1, "chat": 10, "plain": 0}
    assert [entry.name for entry in said.declared] == ["a"]


RULES = {
    "exact": ([rewrite("r", rule("b", models=("a",)))], ("r", "b"), None),
    "generic": ([rewrite("r", rule("b"))], ("r", "b"), ("r", "b")),
    "exact beats generic": ([rewrite("g", rule("c")), rewrite("r", rule("b", models=("a",)))], ("r", "b"), ("g", "c")),
    "first of two": (
        [rewrite("r", rule("b", models=("a",))), rewrite("s", rule("c", models=("a",)))],
        ("r", "b"),
        None,
    ),
    "first generic": ([rewrite("r", rule("b")), rewrite("s", rule("c"))], ("r", "b"), ("r", "b")),
    "several rules": ([rewrite("r", rule("c"), rule("b", models=("x", "a")))], ("r", "b"), ("r", "c")),
    "none": ([], None, None),
    "old group": (
        [rewrite("r", rule("b")) | {"apiVersion": "inference.networking.x-k8s.io/v1alpha2"}],
        ("r", "b"),
        ("r", "b"),
    ),
    "as exported": (
        [rewrite("r", rule("b")) | {"status": {"parents": []}, "metadata": {"name": "r", "uid": "1", "labels": {}}}],
        ("r", "b"),
        ("r", "b"),
    ),
}


@pytest.mark.parametrize(("documents", "for_a", "for_other"), RULES.values(), ids=RULES)
def test_which_rule_counts(documents: list[Any], for_a: Any, for_other: Any) -> None:
    """A rule for the model beats one for all; of equals the first in the file, which stands for the oldest."""
    said = read(*documents)
    assert (target(said, "a"), target(said, "other")) == (for_a, for_other)
    assert said.objects.rewrites == bool(documents)


@pytest.mark.parametrize(
    ("targets", "shares"),
    [
        (CANARY, {"stable": 0.75, "canary": 0.25}),
        (["x", "y"], {"x": 0.5, "y": 0.5}),
        ([{"modelRewrite": "x", "weight": 1}, "y"], {"x": 1.0}),
        (["x"], {"x": 1.0}),
    ],
    ids=["weights", "no weights", "mixed", "one"],
)
def test_weights(targets: list[Any], shares: dict[str, float]) -> None:
    """Targets are taken by their weights, equally often without any; one without beside others with one, never."""
    said, source = read(rewrite("r", rule(*targets))), random.Random(1)
    found = said.objects.rule("m")
    assert found is not None
    counts = Counter(found.target(source) for _ in range(4000))
    assert set(counts) == set(shares)
    assert all(abs(counts[name] / 4000 - share) < 0.03 for name, share in shares.items())
    assert bool(said.warnings) == (len({isinstance(each, str) for each in targets}) > 1)


OURS, OTHERS = {"poolRef": {"name": "llama"}}, {"poolRef": {"name": "other"}}


@pytest.mark.parametrize(
    ("documents", "pool_name", "kept"),
    [
        ([objective("a", 1, **OURS), objective("b", 1, **OTHERS), objective("c", 1)], "llama", "ac"),
        ([objective("a", 1, **OURS), objective("b", 1, **OTHERS)], "", "ab"),
        ([pool(), objective("a", 1, **OURS), objective("b", 1, **OTHERS)], "", "a"),
        ([pool(), pool("other"), objective("a", 1, **OURS), objective("b", 1, **OTHERS)], "other", "b"),
        ([objective("a", 1, poolRef={"name": "llama", "group": "x.y"})], "llama", ""),
    ],
    ids=["by flag", "no name", "by the file's pool", "two pools", "another group"],
)
def test_objects_of_other_pools_are_left_out(documents: list[Any], pool_name: str, kept: str) -> None:
    assert "".join(read(*documents, pool_name=pool_name).objects.priorities) == kept


def test_the_pool_selects_endpoints_and_has_their_ports() -> None:
    """Entries without a port get one endpoint for each of the pool's."""
    selecting = pool(selector={"matchLabels": {"app": "x"}}, targetPorts=[{"number": 8000}, {"number": 8001}])
    entries = [
        {"name": "b", "address": "10.0.0.2", "labels": {"app": "x", "zone": "1"}},
        {"name": "c", "address": "10.0.0.3", "port": 9000},
    ]
    said = read(selecting, {"endpoints": entries})
    assert [(entry.name, entry.ports, entry.ranked) for entry in said.declared] == [
        ("a", (8000,), False),
        ("b", (8000, 8001), True),
    ]


def test_a_pool_that_selects_nobody() -> None:
    """It is told which labels are asked for; nothing is of a pool that is meant to be empty."""
    nobody = pool(selector={"matchLabels": {"app": "y"}})
    said = read(nobody)
    (warning,) = said.warnings
    assert said.declared == ()
    assert ELSEWHERE in warning
    assert read(pool(selector={"matchLabels": {"app": "x"}})).warnings == ()
    assert parse_file(yaml.safe_dump_all([nobody, {"endpoints": []}]).encode(), "f").warnings == ()


REFUSED = {
    "unknown field": (objective("a", 1, prio=2), "document 2 (InferenceObjective): spec.prio: unknown field"),
    "priority of text": (objective("a", "1"), "spec.priority: "),
    "no rules": (document("InferenceModelRewrite", "a"), "spec.rules: Field required"),
    "no targets": (rewrite("a", {"targets": []}), "spec.rules[0].targets: "),
    "weight 0": (rewrite("a", rule({"modelRewrite": "b", "weight": 0})), "spec.rules[0].targets[0].weight: "),
    "pattern": (
        rewrite("a", {"matches": [{"model": {"type": "Regex", "value": "b"}}], "targets": [{"modelRewrite": "b"}]}),
        "spec.rules[0].matches[0].model.type: ",
    ),
    "no name": (objective("a", 1) | {"metadata": {}}, "metadata.name: Field required"),
    "version": (
        objective("a", 1) | {"apiVersion": "llm-d.ai/v1"},
        "apiVersion: 'llm-d.ai/v1' is not llm-d.ai/v1alpha2",
    ),
    "port": (pool(targetPorts=[{"number": 70000}]), "spec.targetPorts[0].number: "),
}


@pytest.mark.parametrize(("bad", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(bad: Any, message: str) -> None:
    """The message names the document, the field, and what is wrong with it."""
    with pytest.raises(ConfigError) as raised:
        read(bad)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([objective("a", 1), objective("a", 2)], "document 3: there is an InferenceObjective 'a' above already"),
        ([pool("x"), pool("y")], "several InferencePools (x, y); say which is yours with --pool-name"),
    ],
    ids=["twice", "two pools"],
)
def test_what_can_not_stand_together(documents: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(*documents)
    assert message in str(raised.value)


def test_a_file_of_objects_alone() -> None:
    """It stands beside --endpoints."""
    said = parse_file(yaml.safe_dump(objective("a", 1)).encode(), "f")
    assert (said.declared, said.objects.priorities) == ((), {"a": 1})


async def test_a_changed_file_replaces_the_objects(tmp_path: Path) -> None:
    """As a whole, with the endpoints; one that can't be used leaves them as they are."""
    file, made, errors = tmp_path / "endpoints.yaml", Pool(), []
    file.write_text(yaml.safe_dump_all([ENDPOINTS, objective("a", 1)]))
    options = DiscoveryOptions(poll=0.01, settle=0.01)
    discovery = Discovery(made, file=file, options=options, on_error=errors.append)
    await discovery.start()
    try:
        assert made.objects.priorities == {"a": 1}
        file.write_text(yaml.safe_dump_all([ENDPOINTS, objective("b", 2), rewrite("r", rule("x", {**CANARY[0]}))]))
        await until(lambda: made.objects.priorities == {"b": 2})
        assert "never taken" in errors[0]
        file.write_text(yaml.safe_dump_all([ENDPOINTS, objective("c", "no")]))
        await until(lambda: len(errors) == 2)
        assert made.objects.priorities == {"b": 2}
        assert "spec.priority" in errors[1]
    finally:
        await discovery.stop()
