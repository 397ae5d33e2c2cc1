"""The effective configuration: what the file says with everything that it leaves out filled in, loadable again."""

from typing import Any

import yaml

from epp.plugin import Profile
from epp.settings.instances import Instance
from epp.settings.loader import Resolved
from epp.settings.models import API_VERSION, KIND, DataLayer
from epp.settings.shadow import LABEL


def effective(resolved: Resolved) -> dict[str, Any]:
    """As mappings and lists, under the canonical keys and names."""
    sections = {
        "featureGates": [name if on else f"{name}=false" for name, on in resolved.gates.items()],
        "plugins": [_plugin(instance) for instance in resolved.instances.values()],
        "schedulingProfiles": [_profile(profile) for profile in resolved.router.profiles.values()],
        "requestHandler": {"parsers": [{"pluginRef": parser.name} for parser in resolved.router.parsers]},
        "dataLayer": _data_layer(resolved),
        "flowControl": _flow_control(resolved),
        "shadow": _shadow(resolved),
    }
    return {"apiVersion": API_VERSION, "kind": KIND, **{key: value for key, value in sections.items() if value}}


def to_yaml(resolved: Resolved) -> str:
    """The same as YAML."""
    return yaml.safe_dump(effective(resolved), sort_keys=False, allow_unicode=True, width=120)


def _data_layer(resolved: Resolved) -> dict[str, Any]:
    """With the sources that are in force, each with what reads it."""
    section = DataLayer.model_validate(resolved.value.get("dataLayer") or resolved.value.get("data") or {})
    shown = section.model_dump(mode="json", by_alias=True, exclude_none=True)
    wiring = resolved.router.sources.wiring
    sources = [{"pluginRef": name, "extractors": [{"pluginRef": each} for each in own]} for name, own in wiring]
    return {**shown, "sources": sources}


def _flow_control(resolved: Resolved) -> dict[str, Any]:
    """As it counts, where it is switched on or written; or else what is written beside it."""
    section = resolved.flow_control
    return section.model_dump(mode="json", by_alias=True, exclude_none=True) if section is not None else {}


def _shadow(resolved: Resolved) -> dict[str, Any]:
    router = resolved.router.shadow
    if router is None:
        return {}
    profiles = [_profile(profile, LABEL) for profile in router.profiles.values()]
    return {"plugins": [_plugin(each) for each in resolved.beside.values()], "schedulingProfiles": profiles}


def _plugin(instance: Instance) -> dict[str, Any]:
    parameters = instance.raw
    found = instance.effective
    if found is not None:
        fields, given = type(found).model_fields, found.model_fields_set
        old = {name for name, info in fields.items() if info.deprecated and name not in given}
        parameters = found.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=old)
    shown: dict[str, Any] = {"name": instance.name, "type": instance.type}
    return {**shown, "parameters": parameters} if parameters else shown


def _profile(profile: Profile, label: str = "") -> dict[str, Any]:
    weights = [(plugged.name.removeprefix(label), weight) for plugged, weight in profile.scorers]
    scorers = {name for name, _ in weights}
    filters = [plugged.name.removeprefix(label) for plugged in profile.filters]
    scored = [{"pluginRef": name, "weight": weight} for name, weight in weights]
    picker = profile.picker.name.removeprefix(label)
    kept = [{"pluginRef": name} for name in filters if name not in scorers]
    members: list[dict[str, Any]] = [*kept, *scored, {"pluginRef": picker}]
    # A plugin with several parts in the profile is listed once.
    return {"name": profile.name, "plugins": members[: len(members) - (picker in scorers)]}
