"""The sections that are read and checked, but have no effect yet: feature gates and flow control."""

from collections.abc import Iterable, Iterator, Mapping

from epp.settings.instances import Instances
from epp.settings.models import EndpointPickerConfig, FlowControl, PriorityBand
from epp.settings.problems import BROKEN, Path, Report, listed, suggestion

_GATES: Mapping[str, bool] = {"flowControl": False, "haPopulateNonLeaderDatastore": True}
RETIRED_GATES = frozenset({"dataLayer", "experimentalDatalayer", "prepareDataPlugins"})
"""Gates of llm-d's releases up to v0.8: what they switched on is always on."""

_TRUE, _FALSE = {"1", "t", "true"}, {"0", "f", "false"}
_NO_EFFECT = "is accepted, has no effect yet"

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


def gate_name(entry: str) -> str:
    """The gate of an entry such as `flowControl=true`."""
    return entry.partition("=")[0].strip()


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
    if config.saturation_detector is not None:
        path = ("saturationDetector", "pluginRef")
        check([(path, config.saturation_detector.plugin_ref, "saturation detector")], instances, report)


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
