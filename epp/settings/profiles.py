"""Scheduling profiles and their handler: what the configuration says, and llm-d's defaults for what it leaves out."""

from collections.abc import Sequence

from epp.plugin import Profile
from epp.settings.instances import Instance, Instances
from epp.settings.models import ProfilePlugin, ProfileSpec
from epp.settings.problems import BROKEN, Path, Report, listed

DEFAULT_PICKER = "max-score-picker"
DEFAULT_HANDLER = "single-profile-handler"
DEFAULT_PROFILE = "default"
_HUGE = 1000.0
_ROLES = ("filter", "scorer", "picker")


def profile_names(specs: Sequence[ProfileSpec]) -> tuple[str, ...]:
    """What the profiles will be called."""
    return tuple(spec.name for spec in specs) or (DEFAULT_PROFILE,)


def resolve_profiles(
    specs: Sequence[ProfileSpec], instances: Instances, report: Report, at: Path = ()
) -> tuple[dict[str, Profile], set[Instance]]:
    """The profiles by name, and the instances that are in one; `at` is the section that `schedulingProfiles` is in."""
    profiles: dict[str, Profile] = {}
    used: set[Instance] = set()
    for index, spec in enumerate(specs or [_default(instances)]):
        path: Path = (*at, "schedulingProfiles", index) if specs else ()
        if spec.name in profiles and spec.name != BROKEN:
            report.error((*path, "name"), f'a profile "{spec.name}" stands above already; names are unique')
        profile, members = _profile(spec, path, instances, report)
        profiles[spec.name] = profile
        used |= members
    return profiles, used


def resolve_handler(profiles: Sequence[str], instances: Instances, report: Report, at: Path = ()) -> Instance | None:
    """The one profile handler, told the names of the profiles; `at` is the section that `plugins` is in."""
    found = instances.of("profile handler")
    if not found and len(profiles) == 1:
        found = [handler for handler in [instances.inject(DEFAULT_HANDLER, ())] if handler]
    if len(found) != 1:
        if found or not (instances.incomplete or BROKEN in profiles):  # a broken plugin may have been the handler
            report.error((*at, "plugins"), _not_one_handler(found, profiles))
        return None
    if BROKEN in profiles:
        return found[0]
    bind = getattr(found[0].plugin, "bind", None)
    if callable(bind):
        try:
            bind(tuple(profiles))
        except ValueError as error:
            for place, message in found[0].built.told(error):
                report.error((*found[0].path, "parameters", *place) if place else found[0].path, message)
        for remark in getattr(found[0].plugin, "remarks", ()):
            report.warning((*found[0].path, "parameters"), str(remark))
    return found[0]


def _not_one_handler(found: Sequence[Instance], profiles: Sequence[str]) -> str:
    if found:
        return f"multiple profile handlers found, exactly one is needed: {listed(h.title for h in found)}"
    return f"no profile handler configured, which several profiles need: {listed(profiles)}"


def _default(instances: Instances) -> ProfileSpec:
    """The profile without `schedulingProfiles`: every configured filter, scorer and picker in file order, weight 1."""
    members = [i for i in instances.by_name.values() if any(i.is_a(role) for role in _ROLES)]
    return ProfileSpec(
        name=DEFAULT_PROFILE, plugins=tuple(ProfilePlugin.model_validate({"pluginRef": i.name}) for i in members)
    )


def _profile(spec: ProfileSpec, path: Path, instances: Instances, report: Report) -> tuple[Profile, set[Instance]]:
    members: list[tuple[Instance, float]] = []
    for index, ref in enumerate(spec.plugins):
        at = (*path, "plugins", index) if path else ()
        instance = instances.refer(ref.plugin_ref, (*at, "pluginRef") if at else ())
        if instance is not None:
            _check_member(ref, instance, at, report)
            members.append((instance, 1.0 if ref.weight is None else ref.weight))
    picker = _picker(spec, [i for i, _ in members if i.is_a("picker")], path, instances, report)
    profile = Profile(
        spec.name,
        filters=tuple(i.plugged() for i, _ in members if i.is_a("filter")),
        scorers=tuple((i.plugged(), weight) for i, weight in members if i.is_a("scorer")),
        picker=picker.plugged(),
    )
    return profile, {*(i for i, _ in members), picker}


def _check_member(ref: ProfilePlugin, instance: Instance, at: Path, report: Report) -> None:
    if not any(instance.is_a(role) for role in _ROLES) and not instance.inert:
        report.warning(at, f"{instance.title} is none of filter, scorer and picker: it has no effect in a profile")
    if ref.weight is None:
        return
    if not instance.is_a("scorer"):
        report.warning((*at, "weight"), f"{instance.title} is no scorer: its weight has no effect")
    elif ref.weight < 0:
        report.warning((*at, "weight"), f"{ref.weight:g} is negative: what the scorer prefers will be avoided")
    elif ref.weight > _HUGE:
        report.warning((*at, "weight"), f"{ref.weight:g} is huge: beside it no other scorer counts")


def _picker(spec: ProfileSpec, own: Sequence[Instance], path: Path, instances: Instances, report: Report) -> Instance:
    """The profile's own picker, else the first configured one, else the default."""
    if len(own) > 1:
        names = listed(picker.title for picker in own)
        report.error((*path, "plugins"), f'profile "{spec.name}" has several pickers, one is allowed: {names}')
    candidates = [*own, *instances.of("picker")]
    picker = candidates[0] if candidates else instances.inject(DEFAULT_PICKER, ())
    if picker is None:  # the report says why
        return Instance(DEFAULT_PICKER, DEFAULT_PICKER, ("picker",))
    return picker
