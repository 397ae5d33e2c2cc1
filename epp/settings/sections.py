"""The sections that are read and checked, but have no effect yet: feature gates and flow control."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from epp.settings.instances import Instances
from epp.settings.models import EndpointPickerConfig, FlowControl, PluginRef, PriorityBand
from epp.settings.problems import BROKEN, Path, Report, listed, suggestion

_GATES: Mapping[str, bool] = {"flowControl": False, "haPopulateNonLeaderDatastore": True}
RETIRED_GATES = frozenset({"dataLayer", "experimentalDatalayer", "prepareDataPlugins"})
"""Gates of llm-d's releases up to v0.8: what they switched on is always on."""

_BAND: Mapping[str, Any] = {
    "max_bytes": 1_000_000_000,
    "max_requests": 5000,
    "fairness_policy_ref": "global-strict-fairness-policy",
    "ordering_policy_ref": "fcfs-ordering-policy",
}
_USAGE_LIMIT, _DETECTOR = "static-usage-limit-policy", "utilization-detector"
"""llm-d's defaults."""

_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_NO_EFFECT = "is accepted, has no effect yet"

Band = TypeVar("Band", bound=PriorityBand)

Reference = tuple[Path, str, str]
"""Where a reference stands, the name, and the kind of plugin that it must name."""


def check_feature_gates(config: EndpointPickerConfig, report: Report) -> dict[str, bool]:
    """Every gate with its value; `name` alone switches it on."""
    gates = dict(_GATES)
    for index, entry in enumerate(config.feature_gates):
        if entry == BROKEN:
            continue
        path = ("featureGates", index)
        name, equals, text = (part.strip() for part in entry.partition("="))
        value = text.lower() if equals else "true"
        if name in RETIRED_GATES:
            report.warning(path, f"{name} is no gate any more: leave it out")
        elif name not in _GATES:
            hint = suggestion(name, _GATES)
            report.error(path, f'"{name}" is unknown or unregistered; there are: {listed(_GATES)}{hint}')
        elif value not in _TRUE | _FALSE:
            report.error(path, f'"{text}" is neither true nor false')
        else:
            gates[name] = value in _TRUE
    return gates


def check_flow_control(
    config: EndpointPickerConfig, gates: Mapping[str, bool], instances: Instances, report: Report
) -> None:
    """Whether everything that `flowControl` refers to is there."""
    if gates["flowControl"]:
        report.warning(("featureGates",), f"flowControl {_NO_EFFECT}")
    if config.flow_control is not None:
        off = "" if gates["flowControl"] else "; in llm-d, too, it needs the feature gate flowControl"
        report.warning(("flowControl",), f"{_NO_EFFECT}{off}")
        _check_priorities(config.flow_control, report)
        check(_flow_references(config.flow_control), instances, report)
    if config.saturation_detector is not None and config.saturation_detector.plugin_ref:
        path = ("saturationDetector", "pluginRef")
        check([(path, config.saturation_detector.plugin_ref, "saturation detector")], instances, report)


def complete_flow_control(
    config: EndpointPickerConfig, gates: Mapping[str, bool], instances: Instances
) -> FlowControl | None:
    """The section with llm-d's defaults, None where it is neither written nor switched on.

    The policies and the detector that it comes to refer to are added, where it is switched on; a detector whose
    thresholds stand under the old key in any case, so that they are checked.
    """
    written, old = config.flow_control, config.saturation_detector
    if written is None and old is None and not gates["flowControl"]:
        return None
    if old is not None and not old.plugin_ref and instances.known(_DETECTOR):
        instances.inject(_DETECTOR, ("saturationDetector",), old.parameters)
    section = written or FlowControl()
    name = old.plugin_ref if old is not None and old.plugin_ref else _DETECTOR
    detector = section.saturation_detector or PluginRef.model_validate({"pluginRef": name})
    found = section.model_copy(
        update={
            "no_endpoint_request_ttl": _first(section.no_endpoint_request_ttl, section.default_request_ttl),
            "priority_bands": tuple(_completed(band) for band in section.priority_bands),
            "default_priority_band": (common := _completed(section.default_priority_band or PriorityBand())),
            "default_negative_priority_band": _completed(section.default_negative_priority_band or common),
            "usage_limit_policy_plugin_ref": section.usage_limit_policy_plugin_ref or _USAGE_LIMIT,
            "saturation_detector": detector,
        }
    )
    for _, name, _ in _flow_references(found) if gates["flowControl"] else ():
        if instances.known(name):
            instances.inject(name, ())
    return found


def _first(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _completed(band: Band) -> Band:
    """The band with its defaults in place of what is 0 or left out."""
    return band.model_copy(update={name: value for name, value in _BAND.items() if not getattr(band, name)})


def _check_priorities(section: FlowControl, report: Report) -> None:
    seen: set[int] = set()
    for index, band in enumerate(section.priority_bands):
        if band.priority in seen:
            report.error(("flowControl", "priorityBands", index, "priority"), f"{band.priority} has a band already")
        seen.add(band.priority)


def check(references: Iterable[Reference], instances: Instances, report: Report) -> None:
    """Whether each reference leads to a plugin of its kind."""
    for path, name, kind in references:
        if name in instances.by_name:
            instance = instances.by_name[name]
            instances.asked_for.setdefault(name, instance)
            kinds = instance.kinds
        elif instances.kinds_of(name):
            kinds = instances.kinds_of(name)
        else:
            instances.refer(name, path)
            continue
        if kind not in kinds:
            report.error(path, f'"{name}" is no {kind}, it is: {listed(kinds)}')


def _flow_references(section: FlowControl) -> Iterator[Reference]:
    bands: list[tuple[Path, PriorityBand | None]] = [
        (("defaultPriorityBand",), section.default_priority_band),
        (("defaultNegativePriorityBand",), section.default_negative_priority_band),
        *((("priorityBands", index), band) for index, band in enumerate(section.priority_bands)),
    ]
    for steps, band in bands:
        path = ("flowControl", *steps)
        if band and band.fairness_policy_ref:
            yield (*path, "fairnessPolicyRef"), band.fairness_policy_ref, "fairness policy"
        if band and band.ordering_policy_ref:
            yield (*path, "orderingPolicyRef"), band.ordering_policy_ref, "ordering policy"
    if section.usage_limit_policy_plugin_ref:
        yield ("flowControl", "usageLimitPolicyPluginRef"), section.usage_limit_policy_plugin_ref, "usage limit policy"
    if section.saturation_detector:
        detector = section.saturation_detector.plugin_ref
        yield ("flowControl", "saturationDetector", "pluginRef"), detector, "saturation detector"
