"""InferencePools, and the objects beside them, as the API server has them; what they mean is in `epp.objects`.

The API server has checked them against their schemas, so fields that aren't wanted here are passed over; an
InferencePool's fields are read in the shape of v1 and in that of v1alpha2, whatever its version.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from epp.data.objects import PoolSpec
from epp.kube.client import POOL_GROUP
from epp.kube.watch import Object
from epp.objects import CRITICALITIES, Objects, Rule

_KIND = "InferencePool"


class _Port(msgspec.Struct, frozen=True):
    number: int


class _PoolSpec(msgspec.Struct, rename="camel", frozen=True):
    selector: dict[str, Any] = {}
    target_ports: list[_Port] = []
    target_port_number: int = 0
    app_protocol: str = ""


class InferencePool(Object, frozen=True):
    """An InferencePool of either version."""

    spec: _PoolSpec = _PoolSpec()

    @property
    def declared(self) -> PoolSpec:
        """What it says of its endpoints."""
        nested = self.spec.selector.get("matchLabels")
        labels = nested if isinstance(nested, dict) else self.spec.selector
        ports = tuple(port.number for port in self.spec.target_ports)
        if not ports and self.spec.target_port_number:
            ports = (self.spec.target_port_number,)
        return PoolSpec({str(k): str(v) for k, v in labels.items()}, ports, self.spec.app_protocol)


class _Ref(msgspec.Struct, frozen=True):
    name: str = ""
    group: str | None = None
    kind: str | None = None


class _ObjectiveSpec(msgspec.Struct, rename="camel", frozen=True):
    pool_ref: _Ref = _Ref()
    priority: int | None = None


class InferenceObjective(Object, frozen=True):
    """Gives requests that name it a priority."""

    spec: _ObjectiveSpec = _ObjectiveSpec()


class _ModelMatch(msgspec.Struct, frozen=True):
    value: str


class _Match(msgspec.Struct, frozen=True):
    model: _ModelMatch


class _Target(msgspec.Struct, rename="camel", frozen=True):
    model_rewrite: str
    weight: int | None = None


class _Rule(msgspec.Struct, frozen=True):
    targets: list[_Target] = []
    matches: list[_Match] = []


class _RewriteSpec(msgspec.Struct, rename="camel", frozen=True):
    pool_ref: _Ref = _Ref()
    rules: list[_Rule] = []


class InferenceModelRewrite(Object, frozen=True):
    """Gives requests for a model another one."""

    spec: _RewriteSpec = _RewriteSpec()


class _TargetModel(msgspec.Struct, frozen=True):
    name: str
    weight: int | None = None


class _ModelSpec(msgspec.Struct, rename="camel", frozen=True):
    model_name: str = ""
    pool_ref: _Ref = _Ref()
    criticality: str | None = None
    target_models: list[_TargetModel] = []


class InferenceModel(Object, frozen=True):
    """What objectives and rewrites have replaced: gives requests for a model a criticality, and other models."""

    spec: _ModelSpec = _ModelSpec()


def objects_of(
    objectives: Iterable[InferenceObjective],
    rewrites: Iterable[InferenceModelRewrite],
    models: Iterable[InferenceModel],
    pool: str,
    group: str = POOL_GROUP,
) -> Objects:
    """What those of one pool amount to. The oldest object counts; a rewrite beats an InferenceModel.

    Args:
        objectives: of the pool's namespace.
        rewrites: of the same.
        models: of the same.
        pool: its name.
        group: its API group. An InferenceModel, which knew only the old group, counts for either.
    """
    mine = [each for each in objectives if _refers(each.spec.pool_ref, pool, group)]
    rules = [
        _rewrite(each.metadata.name, rule)
        for each in sorted(rewrites, key=_age)
        if _refers(each.spec.pool_ref, pool, group)
        for rule in each.spec.rules
        if rule.targets
    ]
    old = [each for each in sorted(models, key=_age) if each.spec.pool_ref.name == pool and each.spec.model_name]
    rules += [_old_rule(each) for each in old if each.spec.target_models]
    by_model = {each.spec.model_name: CRITICALITIES.get(each.spec.criticality or "", 0) for each in reversed(old)}
    return Objects.of({each.metadata.name: each.spec.priority or 0 for each in mine}, rules, by_model)


def mixed_weights(rewrites: Iterable[InferenceModelRewrite]) -> Sequence[str]:
    """Warnings of targets that are never taken."""
    text = "targets without a weight beside others with one are never taken"
    return [
        f"InferenceModelRewrite {each.metadata.name}: spec.rules[{index}]: {text}"
        for each in rewrites
        for index, rule in enumerate(each.spec.rules)
        if len({target.weight is None for target in rule.targets}) > 1
    ]


def _age(each: Object) -> tuple[str, str]:
    return each.metadata.creation_timestamp or "", each.metadata.name


def _refers(ref: _Ref, pool: str, group: str) -> bool:
    return (ref.name, ref.group or POOL_GROUP, ref.kind or _KIND) == (pool, group, _KIND)


def _rewrite(name: str, rule: _Rule) -> Rule:
    weights = tuple(target.weight for target in rule.targets)
    models = tuple(match.model.value for match in rule.matches)
    return Rule(name, models, tuple(target.model_rewrite for target in rule.targets), weights)


def _old_rule(model: InferenceModel) -> Rule:
    targets: Mapping[str, int | None] = {each.name: each.weight for each in model.spec.target_models}
    return Rule(model.metadata.name, (model.spec.model_name,), tuple(targets), tuple(targets.values()))
