"""A KServe LLMInferenceService: what it says of itself."""

from epp.doctor.cluster import Object, at, conditions, name_of, why
from epp.doctor.findings import Findings

_REMEDIES = {
    "PresetsCombined": "a base configuration can't be merged: see spec.baseRefs; each is here, or in kserve",
    "WorkloadsReady": "see the model servers' pods, below",
    "MainWorkloadReady": "see the model servers' pods, below",
    "PrefillWorkloadReady": "see the pods with llm-d.ai/role=prefill",
    "GatewaysReady": "see the Gateway that spec.router.gateway.refs names, or KServe's own",
    "HTTPRoutesReady": "see the HTTPRoute, below",
    "InferencePoolReady": "see the pool's conditions, below; with Istio a DestinationRule is needed",
    "SchedulerWorkloadReady": "see the picker's pods, below",
    "TokenizerReady": "see the pods of the tokenizer: they load the model's tokenizer first",
}


def check(find: Findings, service: Object) -> None:
    """Its conditions, but for Ready where another one says why."""
    subject = name_of(service)
    if (at(service, "metadata", "annotations") or {}).get("serving.kserve.io/stop") == "true":
        remedy = "take away the annotation serving.kserve.io/stop"
        find.broken("kserve.ready", subject, "is stopped: KServe has removed its picker", remedy)
        return
    found = conditions(at(service, "status", "conditions"))
    bad = {kind: each for kind, each in found.items() if each.get("status") == "False" and kind != "Ready"}
    if not found:
        remedy = "see that KServe's controller for LLMInferenceServices runs"
        find.warning("kserve.ready", subject, "KServe has said nothing of it yet", remedy)
    for kind, each in bad.items():
        message = f"{kind} is False: {why(each)}"
        find.broken("kserve.ready", subject, message, _REMEDIES.get(kind, "see KServe's controller's log"))
    if found.get("Ready", {}).get("status") == "True":
        find.ok("kserve.ready", subject, "is ready, KServe says")
    elif found and not bad:
        find.warning("kserve.ready", subject, "is not ready yet, KServe says", "wait; see the pods, below")
