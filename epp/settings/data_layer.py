"""`dataLayer`: which plugins say where the endpoints and their metrics come from."""

from collections.abc import Iterator, Sequence
from typing import Any

from epp.settings.instances import Instance, Instances
from epp.settings.models import DataLayer, EndpointPickerConfig
from epp.settings.problems import Path, Report
from epp.settings.sections import Reference, check
from epp.sources import Sources

DEFAULT_SOURCE = "metrics-data-source"
DEFAULT_EXTRACTOR = "core-metrics-extractor"
_NO_EFFECT = "is accepted, has no effect yet"


def resolve_sources(
    config: EndpointPickerConfig, instances: Instances, report: Report
) -> tuple[Sources, list[Instance]]:
    """What the section and the plugins amount to, and the plugins that it takes."""
    section = config.data_layer or DataLayer()
    references = list(_references(section))
    for path, name, _ in references:
        if instances.known(name):
            instances.inject(name, path)
    check(references, instances, report)
    _warn(section, report)
    source, extractor, discovery = _plugins(section, instances, report)
    sources = Sources(
        page=_said(source, "metrics_page", report),
        extraction=_said(extractor, "engine_metrics", report),
        file=_said(discovery, "endpoints_file", report),
    )
    return sources, [instance for instance in (source, extractor, discovery) if instance is not None]


def _plugins(section: DataLayer, instances: Instances, report: Report) -> tuple[Instance | None, ...]:
    """The source, the extractor and the discovery that are in force."""
    source = _chosen("data source", "metrics_page", [s.plugin_ref for s in section.sources], instances)
    named = [e.plugin_ref for s in section.sources if source and s.plugin_ref == source.name for e in s.extractors]
    extractor = _chosen("extractor", "engine_metrics", named, instances)
    if not section.inject_defaults and not section.sources and source is None:
        report.error(
            ("dataLayer", "injectDefaults"),
            "without the defaults there must be a source: list a metrics-data-source in dataLayer.sources",
        )
    discovery = instances.by_name.get(section.discovery.plugin_ref) if section.discovery else None
    return source or _default(DEFAULT_SOURCE, instances), extractor or _default(DEFAULT_EXTRACTOR, instances), discovery


def _references(section: DataLayer) -> Iterator[Reference]:
    for index, source in enumerate(section.sources):
        path: Path = ("dataLayer", "sources", index)
        yield (*path, "pluginRef"), source.plugin_ref, "data source"
        for number, extractor in enumerate(source.extractors):
            yield (*path, "extractors", number, "pluginRef"), extractor.plugin_ref, "extractor"
    if section.discovery:
        yield ("dataLayer", "discovery", "pluginRef"), section.discovery.plugin_ref, "discovery"


def _warn(section: DataLayer, report: Report) -> None:
    if section.peer_discovery:
        report.warning(("dataLayer", "peerDiscovery"), _NO_EFFECT)
    if section.cross_replica_syncer_plugin_ref:
        report.warning(("dataLayer", "crossReplicaSyncerPluginRef"), _NO_EFFECT)


def _chosen(kind: str, method: str, names: Sequence[str], instances: Instances) -> Instance | None:
    """Of the plugins that are named the first that can be asked; else the first that is configured at all.

    KServe appends the source to `plugins` and refers to it nowhere: it is meant all the same.
    """
    named = [instances.by_name[name] for name in names if name in instances.by_name]
    able = [instance for instance in (*named, *instances.of(kind)) if callable(getattr(instance.plugin, method, None))]
    return able[0] if able else None


def _default(type_name: str, instances: Instances) -> Instance | None:
    return instances.inject(type_name, ()) if instances.known(type_name) else None


def _said(instance: Instance | None, method: str, report: Report) -> Any:
    ask = getattr(instance.plugin, method, None) if instance else None
    if instance is None or ask is None:
        return None
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 (somebody else's plugin may raise anything)
        report.error(instance.path, f"{instance.title}: {method} fails: {type(error).__name__}: {error}")
        return None
