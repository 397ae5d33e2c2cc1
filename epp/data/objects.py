"""Kubernetes' objects as documents of the endpoints file: what they would do in a cluster they do here.

    endpoints: [...]
    ---
    apiVersion: llm-d.ai/v1alpha2           # or inference.networking.x-k8s.io/v1alpha2
    kind: InferenceObjective
    metadata: {name: batch}
    spec: {priority: -1, poolRef: {name: llama}}
    ---
    apiVersion: llm-d.ai/v1alpha2
    kind: InferenceModelRewrite
    metadata: {name: canary}
    spec:
      poolRef: {name: llama}
      rules:
        - matches: [{model: {type: Exact, value: chat}}]
          targets: [{modelRewrite: llama-3, weight: 9}, {modelRewrite: llama-4, weight: 1}]
    ---
    apiVersion: inference.networking.k8s.io/v1
    kind: InferencePool
    metadata: {name: llama}
    spec: {selector: {matchLabels: {app: llama}}, targetPorts: [{number: 8000}]}

An InferencePool names the pool, keeps the endpoints whose labels its selector asks for, and has the ports of those that
name none. Objects that refer to another pool are left out. The order of the file takes the place of ages: the first
counts as the oldest. `metadata` and `status` may hold whatever Kubernetes writes there; everything else is strict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from epp.errors import ConfigError
from epp.objects import Objects, Rule

POOL_GROUP = "inference.networking.k8s.io"
VERSIONS = ("llm-d.ai/v1alpha2", "inference.networking.x-k8s.io/v1alpha2")
POOL_VERSIONS = (f"{POOL_GROUP}/v1",)

Text = Annotated[str, Field(min_length=1, max_length=253)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=False)


class _Metadata(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: Text


class _Ref(_Model):
    name: Text
    group: str = POOL_GROUP
    kind: str = "InferencePool"


class _ObjectiveSpec(_Model):
    pool_ref: _Ref | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None


class _ModelMatch(_Model):
    value: Annotated[str, Field(min_length=1)]
    type: Literal["Exact"] = "Exact"


class _Match(_Model):
    model: _ModelMatch


class _Target(_Model):
    model_rewrite: Annotated[str, Field(min_length=1)]
    weight: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class _Rule(_Model):
    matches: list[_Match] = []
    targets: Annotated[list[_Target], Field(min_length=1)]


class _RewriteSpec(_Model):
    pool_ref: _Ref | None = None
    rules: list[_Rule]


class _Selector(_Model):
    match_labels: dict[str, str] = {}


class _Port(_Model):
    number: Annotated[int, Field(ge=1, le=65535)]


class _PoolSpec(_Model):
    selector: _Selector = _Selector()
    target_ports: Annotated[list[_Port], Field(max_length=8)] = []
    app_protocol: Literal["http", "kubernetes.io/h2c"] | None = None
    endpoint_picker_ref: dict[str, Any] | None = None


class _Object(_Model):
    api_version: str
    kind: str
    metadata: _Metadata
    status: Any = None


class _Objective(_Object):
    spec: _ObjectiveSpec


class _Rewrite(_Object):
    spec: _RewriteSpec


class _Pool(_Object):
    spec: _PoolSpec


_KINDS: Mapping[str, tuple[type[_Objective | _Rewrite | _Pool], tuple[str, ...]]] = {
    "InferenceObjective": (_Objective, VERSIONS),
    "InferenceModelRewrite": (_Rewrite, VERSIONS),
    "InferencePool": (_Pool, POOL_VERSIONS),
}


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What an InferencePool says of its endpoints: the labels that they must have, and their ports.

    `app_protocol` is what they speak: "http", "kubernetes.io/h2c", or "" where it isn't said.
    """

    labels: Mapping[str, str]
    ports: tuple[int, ...]
    app_protocol: str = ""


def read_objects(
    documents: Sequence[tuple[str, Any]], pool_name: str, file: str
) -> tuple[Objects, PoolSpec | None, tuple[str, ...]]:
    """Reads documents of these kinds; those of other kinds are nobody's and left out.

    Args:
        documents: each with its place, for messages.
        pool_name: of the pool that this picker is for; "" for that of the file's InferencePool, or any.
        file: for messages.

    Returns:
        The objects, the pool if it is declared, and warnings.

    Raises:
        ConfigError: one of them can't be used.
    """
    found = [(place, _read(document, place)) for place, document in documents if _known(document)]
    pools = {each.metadata.name: each for _, each in found if isinstance(each, _Pool)}
    if not pool_name and len(pools) > 1:
        raise ConfigError(f"{file}: several InferencePools ({', '.join(pools)}); say which is yours with --pool-name")
    name = pool_name or next(iter(pools), "")
    ours = [
        (place, each) for place, each in found if not isinstance(each, _Pool) and _belongs(each.spec.pool_ref, name)
    ]
    priorities: dict[str, int] = {}
    rules: list[Rule] = []
    warnings: list[str] = []
    for place, each in ours:
        if isinstance(each, _Objective):
            if each.metadata.name in priorities:
                raise ConfigError(f"{place}: there is an InferenceObjective {each.metadata.name!r} above already")
            priorities[each.metadata.name] = each.spec.priority or 0
        elif isinstance(each, _Rewrite):
            rules += [_rule(each.metadata.name, rule) for rule in each.spec.rules]
            warnings += _mixed(each, place)
    mine = pools.get(name)
    return Objects.of(priorities, rules), None if mine is None else _declared(mine), tuple(warnings)


def _known(document: Any) -> bool:
    return isinstance(document, dict) and document.get("kind") in _KINDS


def _read(document: Any, place: str) -> _Objective | _Rewrite | _Pool:
    model, versions = _KINDS[document["kind"]]
    if document.get("apiVersion") not in versions:
        wanted = " or ".join(versions)
        raise ConfigError(f"{place}: apiVersion: {document.get('apiVersion')!r} is not {wanted}")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        text = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"{place} ({document['kind']}): {path}: {text}") from None


def _belongs(ref: _Ref | None, name: str) -> bool:
    if ref is None or not name:
        return True
    return (ref.name, ref.group, ref.kind) == (name, POOL_GROUP, "InferencePool")


def _rule(name: str, rule: _Rule) -> Rule:
    models = tuple(match.model.value for match in rule.matches)
    targets = tuple(target.model_rewrite for target in rule.targets)
    return Rule(name, models, targets, tuple(target.weight for target in rule.targets))


def _mixed(rewrite: _Rewrite, place: str) -> list[str]:
    """Warnings of targets that are never taken."""
    weights = [{target.weight is None for target in rule.targets} for rule in rewrite.spec.rules]
    text = "targets without a weight beside others with one are never taken"
    return [f"{place}: spec.rules[{index}]: {text}" for index, kinds in enumerate(weights) if len(kinds) > 1]


def _declared(pool: _Pool) -> PoolSpec:
    return PoolSpec(pool.spec.selector.match_labels, tuple(port.number for port in pool.spec.target_ports))
