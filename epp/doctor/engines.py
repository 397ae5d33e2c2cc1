"""The model servers as a picker sees them: reachable, with the metrics that it reads, and alike."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from epp.data.kubernetes.pods import Pod, active_ports
from epp.data.report import Reader, Report
from epp.doctor import certificates
from epp.doctor.cluster import Cluster, Object, at, labels_of, name_of
from epp.doctor.findings import Findings
from epp.doctor.reach import Answer, Failed, Reach
from epp.doctor.target import Target
from epp.formats.exposition import ExpositionError
from epp.formats.openai import models
from epp.keys import CACHE_BLOCK_SIZE, KV_USAGE, MAX_LORAS, RUNNING, WAITING
from epp.kube.client import REWRITES

STALE = 2.0
"""Seconds after which llm-d's picker, and ours, count what a model server has said as stale."""

_AT_ONCE = 16
_WANTED = {WAITING: "queue", RUNNING: "running requests", KV_USAGE: "KV-cache usage"}
_RENAMED = {b"vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc"}


@dataclass(slots=True)
class _Engine:
    pod: Object
    port: int
    subject: str
    report: Report | None = None
    models: frozenset[str] = field(default_factory=frozenset)


async def check(cluster: Cluster, find: Findings, reach: Reach, target: Target, pods: Sequence[Object]) -> None:
    """Asks each of them for its metrics and models."""
    engines = [_Engine(pod, port, _subject(pod, port)) for pod in pods for port in _ports(pod, target.ports)]
    if not engines:
        return
    await reach.probe(str(at(engines[0].pod, "status", "podIP")), engines[0].port)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(engine: _Engine) -> None:
        async with gate:
            await _look(find, reach, engine)

    await asyncio.gather(*map(one, engines))
    reported = [engine for engine in engines if engine.report is not None]
    if len(reported) == len(engines):
        how = "directly" if reach.direct else "through the API server"
        find.ok("engine.reachable", str(target), f"all {len(engines)} endpoints answer ({how})")
    _check_blocks(find, target, reported)
    _check_loras(find, target, reported)
    await _check_models(cluster, find, target, engines)


def _ports(pod: Object, ports: Sequence[int]) -> list[int]:
    active = active_ports(msgspec.convert(pod, Pod))
    return [port for port in ports if active is None or port in active]


def _subject(pod: Object, port: int) -> str:
    return f"{name_of({'kind': 'Pod', **pod})} port {port}"


async def _look(find: Findings, reach: Reach, engine: _Engine) -> None:
    try:
        answer = await reach.page(engine.pod, engine.port, "/metrics")
    except Failed as error:
        _failed(find, engine, error)
        return
    if answer.status != 200:
        message = f"/metrics answers {answer.status}"
        remedy = "set path and port of metrics-data-source in the configuration, if they are others"
        find.broken("engine.metrics", engine.subject, message, remedy)
        return
    _read(find, engine, answer)
    if answer.scheme == "https" and reach.direct:
        shown = await reach.certificate(str(at(engine.pod, "status", "podIP")), engine.port)
        if shown is not None:
            certificates.check(find, engine.subject, shown, [str(at(engine.pod, "status", "podIP"))], datetime.now(UTC))
    engine.models = await _models(reach, engine)


def _failed(find: Findings, engine: _Engine, error: Failed) -> None:
    remedies = {
        "refused": "see which port the engine listens on (--port; behind a P/D sidecar 8001, and the sidecar on 8000)",
        "silent": "see network policies between here and the pod; a picker needs the same way",
        "other": "see the engine's log; something else may listen on this port",
    }
    find.broken("engine.reachable", engine.subject, str(error), remedies[error.why])


def _read(find: Findings, engine: _Engine, answer: Answer) -> None:
    try:
        engine.report = Reader().read(answer.body, labels_of(engine.pod))
    except ExpositionError as error:
        find.broken("engine.metrics", engine.subject, f"/metrics is no page of metrics: {error}", "see what serves it")
        return
    missing = [text for key, text in _WANTED.items() if key not in engine.report.values]
    if not engine.report.engine:
        remedy = "is the port an engine's? Other names are set in engineConfigs of core-metrics-extractor"
        find.broken("engine.metrics", engine.subject, "/metrics has none of the names of a known engine", remedy)
    elif missing:
        message = f"a {engine.report.engine} whose metrics don't say: {', '.join(missing)}"
        remedy = "scorers that need them give no points; name them in engineConfigs of core-metrics-extractor"
        find.warning("engine.metrics", engine.subject, message, remedy)
    else:
        find.ok("engine.metrics", engine.subject, f"{engine.report.engine}, {answer.seconds * 1e3:.0f} ms")
    if answer.seconds > STALE:
        message = f"/metrics took {answer.seconds:.1f} s; what is older than {STALE:g} s counts as stale"
        find.warning("engine.fresh", engine.subject, message, "the engine is overloaded, or its event loop is blocked")
    for old, new in _RENAMED.items():
        if old in answer.body and new.encode() not in answer.body:
            message = f"has {old.decode()}, which newer engines call {new}"
            find.warning(
                "engine.metrics", engine.subject, message, "both are read here; dashboards and alerts need both"
            )


async def _models(reach: Reach, engine: _Engine) -> frozenset[str]:
    try:
        answer = await reach.page(engine.pod, engine.port, "/v1/models")
        return frozenset(models(answer.body)) if answer.status == 200 else frozenset()
    except (Failed, ValueError):
        return frozenset()


def _check_blocks(find: Findings, target: Target, engines: Sequence[_Engine]) -> None:
    sizes = Counter(value for each in engines if (value := _value(each, CACHE_BLOCK_SIZE)))
    if len(sizes) > 1:
        told = ", ".join(f"{size:g} ({count})" for size, count in sizes.most_common())
        message = f"the engines' KV blocks have different sizes, in tokens: {told}"
        find.warning(
            "engine.blocks", str(target), message, "give all engines one --block-size: prefixes match by blocks"
        )
    elif sizes:
        find.ok("engine.blocks", str(target), f"KV blocks of {next(iter(sizes)):g} tokens")
    elif engines:
        remedy = "set blockSizeTokens of the prefix producer in the configuration to the engines' own"
        find.warning("engine.blocks", str(target), "no engine says how long its KV blocks are", remedy)


def _check_loras(find: Findings, target: Target, engines: Sequence[_Engine]) -> None:
    with_lora = [each for each in engines if _value(each, MAX_LORAS)]
    if with_lora and len(with_lora) < len(engines):
        message = f"{len(with_lora)} of {len(engines)} engines serve LoRA adapters"
        remedy = "start all with --enable-lora, or keep adapters' requests to those that do (lora-affinity-scorer)"
        find.warning("engine.lora", str(target), message, remedy)
    elif with_lora:
        limits = sorted({int(_value(each, MAX_LORAS) or 0) for each in with_lora})
        find.ok("engine.lora", str(target), f"all engines serve LoRA adapters, {'/'.join(map(str, limits))} at once")


def _value(engine: _Engine, key: object) -> float | None:
    value = engine.report.values.get(key) if engine.report else None  # type: ignore[call-overload]
    return None if value is None or math.isnan(value) else float(value)


async def _check_models(cluster: Cluster, find: Findings, target: Target, engines: Sequence[_Engine]) -> None:
    """Whether every rewrite leads to a model that somebody serves."""
    served = frozenset().union(*(each.models for each in engines))
    if not served:
        return
    find.ok("engine.models", str(target), f"the model servers have {', '.join(sorted(served))}")
    for resource in REWRITES:
        for rewrite in await cluster.list(resource, target.namespace) or ():
            if at(rewrite, "spec", "poolRef", "name") != target.pool_name:
                continue
            targets = {
                t.get("modelRewrite") for rule in at(rewrite, "spec", "rules") or () for t in rule.get("targets") or ()
            }
            lost = sorted(str(name) for name in targets - served)
            if lost:
                message = f"leads to {', '.join(lost)}, which no engine serves"
                remedy = "correct modelRewrite, or serve it (--served-model-name, --lora-modules)"
                find.broken("engine.models", name_of({"kind": "InferenceModelRewrite", **rewrite}), message, remedy)
