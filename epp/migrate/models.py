"""InferenceModel to InferenceObjective and InferenceModelRewrite of llm-d.ai/v1alpha2."""

from collections.abc import Iterator

from epp.migrate.documents import Mapping, Scalar, Sequence, number, text
from epp.migrate.fields import Fields
from epp.migrate.names import NEW_GROUP, OBJECT_GROUP, OLD_GROUP, metadata
from epp.objects import CRITICALITIES

NOTE = (
    "InferenceModel gave its criticality to every request for its modelName; an InferenceObjective counts for requests"
    " that name it: let clients, or a filter of the route, send x-llm-d-inference-objective: NAME"
)

_HEAVIEST = 1_000_000


def convert(fields: Fields, document: Mapping) -> Iterator[Mapping]:
    """An InferenceObjective with the criticality as priority and, if there are target models, an InferenceModelRewrite.

    A criticality that isn't given stays ungiven, which is priority 0 as Standard is. Both objects have the model's
    metadata.
    """
    fields.skip("apiVersion", "kind", "status")
    meta = metadata(fields)
    old = document["apiVersion"].endswith("/v1alpha1")
    with fields.mapping("spec", required=True) as spec:
        if spec is not None:
            model = spec.text("modelName", required=True)
            criticality = spec.choice("criticality", CRITICALITIES)
            pool = _pool(spec)
            targets = _targets(spec, defaults=old)
            objective = Mapping([("poolRef", pool)])
            if criticality is not None:
                objective["priority"] = number(CRITICALITIES[criticality])
            yield _object("InferenceObjective", meta, objective)
            if targets:
                match = Mapping([("model", Mapping([("type", text("Exact")), ("value", model)]))])
                rule = Mapping([("matches", Sequence([match])), ("targets", targets)])
                yield _object("InferenceModelRewrite", meta, Mapping([("poolRef", pool), ("rules", Sequence([rule]))]))
    fields.finish()


def _object(kind: str, meta: Mapping, spec: Mapping) -> Mapping:
    head = Mapping([("apiVersion", text(f"{OBJECT_GROUP}/v1alpha2")), ("kind", text(kind))])
    return Mapping([*head.items(), ("metadata", meta), ("spec", spec)])


def _pool(spec: Fields) -> Mapping:
    with spec.mapping("poolRef", required=True) as ref:
        if ref is None:
            return Mapping()
        group, kind, name = ref.text("group"), ref.text("kind"), ref.text("name", required=True)
        if group not in {None, OLD_GROUP, NEW_GROUP} or kind not in {None, "InferencePool"}:
            ref.problem("", f"refers to no InferencePool of {OLD_GROUP}; only those can be followed to their new group")
    made = Mapping([("group", text(NEW_GROUP)), ("kind", text("InferencePool"))])
    if name is not None:
        made["name"] = name
    return made


def _targets(spec: Fields, *, defaults: bool) -> Sequence:
    """The targets of the rewrite's one rule.

    Args:
        spec: of the model.
        defaults: whether a target without a weight has weight 1, as in v1alpha1.
    """
    made: list[Mapping] = []
    unweighted = 0
    found = list(_each(spec))
    for target, name, weight in found:
        if weight is None:
            weight = number(1) if defaults else None
            unweighted += 1
        if weight is not None and int(weight) == 0:
            target.note("weight", "0: gets no request, and an InferenceModelRewrite has no such target; left out")
            continue
        pairs = [("modelRewrite", name), ("weight", weight)]
        made.append(Mapping((key, value) for key, value in pairs if value is not None))
    if found and not made:
        spec.problem("targetModels", "no target gets a request, which only reserved the name; leave the object out")
    if not defaults and 0 < unweighted < len(found):
        spec.problem("targetModels", "some have a weight and some have none: give all of them one, or none")
    return Sequence(made)


def _each(spec: Fields) -> Iterator[tuple[Fields, Scalar | None, Scalar | None]]:
    for target in spec.items("targetModels"):
        yield target, target.text("name", required=True), target.number("weight", 0, _HEAVIEST)
