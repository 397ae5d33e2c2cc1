"""`shadow`: a second set of profiles, which decides beside the first without effect.

Its plugins are instances of its own, so that nothing that they do or keep reaches those in force. They are made of the
entries of `shadow.plugins`, and of those of the file's `plugins` that something in the shadow refers to.
"""

from collections.abc import Sequence

from epp.plugin import Router
from epp.settings.dependencies import resolve_producers
from epp.settings.instances import Instances
from epp.settings.migrations import migrated
from epp.settings.models import Shadow
from epp.settings.problems import Path, Report
from epp.settings.profiles import profile_names, resolve_handler, resolve_profiles

AT: Path = ("shadow",)
LABEL = "shadow/"
_NO_EFFECT = ("screener", "admitter", "header reader", "parser", "data source", "extractor", "discovery")


def resolve_shadow(
    section: Shadow, instances: Instances, profiles: Sequence[str], report: Report
) -> tuple[Router | None, Instances]:
    """The shadow's router, None if the report has errors; and its instances.

    Args:
        section: the section.
        instances: those in force.
        profiles: the names of the profiles in force: if the shadow's have the same names and it names no profile
            handler of its own, it takes the same one.
        report: takes what is wrong.
    """
    if not section.scheduling_profiles:
        report.error((*AT, "schedulingProfiles"), "is empty: a shadow needs a profile")
    own = instances.beside(LABEL, profile_names(section.scheduling_profiles))
    own.configure(migrated(section.plugins, report, AT))
    found, members = resolve_profiles(section.scheduling_profiles, own, report, AT)
    if set(found) == set(profiles) and not own.of("profile handler"):
        for theirs in instances.of("profile handler"):
            own.inject(theirs.name, AT)
    handler = resolve_handler(tuple(found), own, report, AT)
    hooked = [i for i in own.by_name.values() if i.hooked or i in members or i.name in own.asked_for]
    fetchers, producers = resolve_producers(own, hooked, report)
    for fetcher in fetchers:
        report.error(fetcher.path or AT, f"{fetcher.title} is a fetcher, and the shadow waits for nobody: leave it out")
    for kind in _NO_EFFECT:
        for instance in own.of(kind):
            if kind == "extractor" and instance.is_a("producer"):
                continue  # hears of endpoints there, too
            report.warning(instance.path, f"{instance.title} is a {kind}: in the shadow it has no effect")
    if handler is None or report.errors:
        return None, own
    router = Router(
        profiles=found,
        handler=handler.plugged(),
        parsers=(),
        producers=tuple(producer.plugged() for producer in producers),
        observers=tuple(observer.plugged() for observer in own.of("observer")),
    )
    return router, own
