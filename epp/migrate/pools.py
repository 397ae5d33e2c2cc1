"""InferencePool of inference.networking.x-k8s.io/v1alpha2 to inference.networking.k8s.io/v1."""

from collections.abc import Iterator

from epp.migrate.documents import Mapping, Sequence, number, text
from epp.migrate.fields import Fields
from epp.migrate.names import NEW_GROUP, metadata

PICKER_PORT = 9002
"""What v1alpha2 tells gateways to infer where a Service has no port; v1 wants it written down."""

_MOST_LABELS = 64
_MODES = {"FailOpen": "FailOpen", "FailClose": "FailClose", "FailClosed": "FailClose"}


def convert(fields: Fields, document: Mapping) -> Iterator[Mapping]:
    """The same pool as v1.

    The flat selector becomes `selector.matchLabels`, `targetPortNumber` one entry of `targetPorts`, `extensionRef`
    `endpointPickerRef`; its `portNumber` becomes `port.number`.
    """
    fields.skip("apiVersion", "kind", "status")
    made = Mapping([("apiVersion", text(f"{NEW_GROUP}/v1")), ("kind", document["kind"])])
    made["metadata"] = metadata(fields)
    with fields.mapping("spec", required=True) as spec:
        if spec is not None:
            made["spec"] = _spec(spec)
    fields.finish()
    yield made


def _spec(spec: Fields) -> Mapping:
    made = Mapping()
    with spec.mapping("selector", required=True) as selector:
        if selector is not None:
            made["selector"] = Mapping([("matchLabels", _labels(selector))])
    port = spec.number("targetPortNumber", 1, 65535, required=True)
    if port is not None:
        made["targetPorts"] = Sequence([Mapping([("number", port)])])
    with spec.mapping("extensionRef", required=True) as ref:
        if ref is not None:
            made["endpointPickerRef"] = _picker(ref)
    return made


def _labels(selector: Fields) -> Mapping:
    inner = selector.inner("matchLabels") if selector.keys() == ["matchLabels"] else None
    if inner is not None:
        selector.note("matchLabels", "v1alpha2's selector has the labels themselves; taken as v1 means it")
        return _labels(inner)
    labels = selector.labels()
    if not 1 <= len(selector.keys()) <= _MOST_LABELS:
        selector.problem("", f"v1 takes 1 to {_MOST_LABELS} labels; name one that the model servers' pods have")
    return labels


def _picker(ref: Fields) -> Mapping:
    made = Mapping()
    group, kind = ref.text("group"), ref.text("kind")
    name = ref.text("name", required=True)
    port = ref.number("portNumber", 1, 65535)
    mode = ref.choice("failureMode", _MODES)
    if port is None and not ref.has("portNumber") and (kind is None or kind == "Service"):
        port = number(PICKER_PORT)
        ref.note("portNumber", f"is left out, which means {PICKER_PORT}; v1 wants it written down, so it is now")
    if mode == "FailClosed":
        ref.note("failureMode", "FailClosed is spelt FailClose")
    fields = ("group", group), ("kind", kind), ("name", name)
    made.update((key, value) for key, value in fields if value is not None)
    if port is not None:
        made["port"] = Mapping([("number", port)])
    if mode is not None:
        made["failureMode"] = mode if mode != "FailClosed" else text(_MODES[mode])
    return made
