"""The effective configuration: what the file says with everything that it leaves out filled in, loadable again."""

from typing import Any

import yaml

from epp.plugin import Profile
from epp.settings.instances import Instance
from epp.settings.loader import Resolved
from epp.settings.models import API_VERSION, KIND
from epp.settings.sections import RETIRED_GATES, gate_name


def effective(resolved: Resolved) -> dict[str, Any]:
    """As mappings and lists, under the canonical keys and names."""
    written = resolved.value
    flow = dict(written.get("flowControl", {}))
    if "saturationDetector" in written:
        flow.setdefault("saturationDetector", written["saturationDetector"])
    sections = {
        "featureGates": [gate for gate in written.get("featureGates", ()) if gate_name(gate) not in RETIRED_GATES],
        "plugins": [_plugin(instance) for instance in resolved.instances.values()],
        "schedulingProfiles": [_profile(profile) for profile in resolved.router.profiles.values()],
        "requestHandler": {"parsers": [{"pluginRef": parser.name} for parser in resolved.router.parsers]},
        "dataLayer": written.get("dataLayer"),
        "flowControl": flow,
    }
    return {"apiVersion": API_VERSION, "kind": KIND, **{key: value for key, value in sections.items() if value}}


def to_yaml(resolved: Resolved) -> str:
    """The same as YAML."""
    return yaml.safe_dump(effective(resolved), sort_keys=False, allow_unicode=True, width=120)


def _plugin(instance: Instance) -> dict[str, Any]:
    parameters = instance.raw
    if instance.parameters is not None:
        fields, given = type(instance.parameters).model_fields, instance.parameters.model_fields_set
        old = {name for name, info in fields.items() if info.deprecated and name not in given}
        parameters = instance.parameters.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=old)
    shown: dict[str, Any] = {"name": instance.name, "type": instance.type}
    return {**shown, "parameters": parameters} if parameters else shown


def _profile(profile: Profile) -> dict[str, Any]:
    weights = [(plugged.name, weight) for plugged, weight in profile.scorers]
    scorers = {name for name, _ in weights}
    filters = [{"pluginRef": plugged.name} for plugged in profile.filters if plugged.name not in scorers]
    scored = [{"pluginRef": name, "weight": weight} for name, weight in weights]
    members: list[dict[str, Any]] = [*filters, *scored, {"pluginRef": profile.picker.name}]
    # A plugin with several parts in the profile is listed once.
    return {"name": profile.name, "plugins": members[: len(members) - (profile.picker.name in scorers)]}
