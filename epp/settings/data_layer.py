"""`dataLayer`: which plugins say where the endpoints and the numbers about them come from."""

from collections.abc import Iterator, Sequence
from typing import Any

from epp.settings.instances import Instance, Instances
from epp.settings.migrations import extracting
from epp.settings.models import DataLayer, EndpointPickerConfig
from epp.settings.problems import BROKEN, Path, Report
from epp.settings.sections import Reference, check
from epp.sources import ObjectReader, ObjectWatch, PageReader, Poll, Sources

DEFAULT_SOURCE = "metrics-data-source"
DEFAULT_EXTRACTOR = "core-metrics-extractor"
_NO_EFFECT = "is accepted, has no effect yet"
_READ_BY = {
    "metrics_page": "engine_metrics",
    "polled_page": "columns",
    "models_page": "served_models",
    "watched_kind": "notified",
}
"""What a source gives, and by which method an extractor takes it; a source of none of these tells of endpoints."""
_OF_ENDPOINTS = frozenset({"forget", "extract"})


def resolve_sources(
    config: EndpointPickerConfig, instances: Instances, report: Report
) -> tuple[Sources, list[Instance]]:
    """What the section and the plugins amount to, and the plugins that it takes."""
    key, written = config.data_section
    section = extracting(written, key, config.plugins, report)
    references = list(_references(key, section))
    for path, name, _ in references:
        if instances.known(name):
            instances.inject(name, path)
    check(references, instances, report)
    _check_pairs(key, section, instances, report)
    _warn_of_twice(key, written, report)
    _warn(key, section, report)
    layer = _Layer(section, instances, report)
    return layer.sources(), layer.taken


def _references(key: str, section: DataLayer) -> Iterator[Reference]:
    for index, source in enumerate(section.sources):
        path: Path = (key, "sources", index)
        yield (*path, "pluginRef"), source.plugin_ref, "data source"
        for number, extractor in enumerate(source.extractors):
            yield (*path, "extractors", number, "pluginRef"), extractor.plugin_ref, "extractor"
    reference = section.discovery.reference if section.discovery else None
    if reference is not None:
        steps, name = reference
        yield (key, "discovery", *steps), name, "discovery"


def _warn_of_twice(key: str, section: DataLayer, report: Report) -> None:
    """Of sources that stand twice, whose extractors are taken together, and of extractors twice below one source."""
    merged: dict[str, set[str]] = {}
    for index, source in enumerate(section.sources):
        path: Path = (key, "sources", index)
        if source.plugin_ref in merged and source.plugin_ref != BROKEN:
            message = f'"{source.plugin_ref}" stands above already: its extractors are taken together'
            report.warning((*path, "pluginRef"), message)
        extractors = merged.setdefault(source.plugin_ref, set())
        for number, extractor in enumerate(source.extractors):
            if extractor.plugin_ref in extractors and extractor.plugin_ref != BROKEN:
                message = f'"{extractor.plugin_ref}" reads {source.plugin_ref} already: it counts once'
                report.warning((*path, "extractors", number, "pluginRef"), message)
            extractors.add(extractor.plugin_ref)


def _check_pairs(key: str, section: DataLayer, instances: Instances, report: Report) -> None:
    """Whether each extractor can read what its source gives."""
    for index, source in enumerate(section.sources):
        giving = instances.by_name.get(source.plugin_ref)
        if giving is None or giving.plugin is None or "data source" not in giving.kinds:
            continue
        methods = {reader for method, reader in _READ_BY.items() if callable(getattr(giving.plugin, method, None))}
        for number, extractor in enumerate(source.extractors):
            reading = instances.by_name.get(extractor.plugin_ref)
            if reading is None or reading.plugin is None or "extractor" not in reading.kinds:
                continue
            if not any(callable(getattr(reading.plugin, method, None)) for method in methods or _OF_ENDPOINTS):
                message = f'"{extractor.plugin_ref}" reads nothing that {source.plugin_ref} gives'
                report.error((key, "sources", index, "extractors", number, "pluginRef"), message)


def _warn(key: str, section: DataLayer, report: Report) -> None:
    if section.peer_discovery:
        report.warning((key, "peerDiscovery"), _NO_EFFECT)
    if section.discovery and section.discovery.peers:
        report.warning((key, "discovery", "peers"), _NO_EFFECT)
    if section.cross_replica_syncer_plugin_ref:
        report.warning((key, "crossReplicaSyncerPluginRef"), _NO_EFFECT)
    if section.cross_replica:
        report.warning((key, "crossReplica"), _NO_EFFECT)


def _merged(section: DataLayer) -> dict[str, list[str]]:
    """The names of each source's extractors, each once; those of a source that stands twice together."""
    named: dict[str, list[str]] = {}
    for source in section.sources:
        above = named.get(source.plugin_ref, [])
        named[source.plugin_ref] = list(dict.fromkeys([*above, *(each.plugin_ref for each in source.extractors)]))
    return named


class _Layer:
    """The section against the plugins. KServe appends a source to `plugins` and refers to it nowhere: it is meant, too.

    Attributes:
        taken: the plugins that are in force.
    """

    def __init__(self, section: DataLayer, instances: Instances, report: Report) -> None:
        self._section = section
        self._instances = instances
        self._report = report
        self._named = _merged(section)
        self._wiring: dict[str, tuple[str, ...]] = {}
        self.taken: list[Instance] = []

    def sources(self) -> Sources:
        """All that is said."""
        polled = self._all("data source", "polled_page", self._named)
        metrics, extractor = self._metrics(polled)
        page, extraction = self._said(metrics, "metrics_page"), self._said(extractor, "engine_metrics")
        models, reader = self._pair("models_page", "served_models")
        polls = tuple(poll for poll in map(self._poll, polled) if poll is not None)
        watching = self._all("data source", "watched_kind", self._named)
        watches = tuple(watch for watch in map(self._watch, watching) if watch is not None)
        section = self._section
        reference = section.discovery.reference if section.discovery else None
        discovery = self._instances.by_name.get(reference[1]) if reference else None
        self._take(discovery)
        for name, extractors in self._named.items():  # such as those that hear of changes instead of polling
            self._take(*[self._instances.by_name.get(each) for each in (name, *extractors)])
            self._wiring.setdefault(name, tuple(extractors))
        return Sources(
            page=page,
            extraction=extraction,
            file=self._said(discovery, "endpoints_file"),
            scraped=page is not None,
            models=self._said(models, "models_page"),
            read_models=reader.plugin.served_models if reader is not None else None,
            polls=polls,
            watches=watches,
            wiring=tuple(self._wiring.items()),
        )

    def _metrics(self, polled: Sequence[Instance]) -> tuple[Instance | None, Instance | None]:
        """The source and the extractor of the engines' metrics; none where another source stands in their place."""
        source, extractor = self._pair("metrics_page", "engine_metrics")
        section, instead = self._section, any(getattr(each.plugin, "replaces_metrics", False) for each in polled)
        if source is None and (instead or not section.inject_defaults):
            if not section.sources and not instead:
                self._report.error(
                    ("dataLayer", "injectDefaults"),
                    "without the defaults there must be a source: list a metrics-data-source in dataLayer.sources",
                )
            return None, None
        source, extractor = source or self._default(DEFAULT_SOURCE), extractor or self._default(DEFAULT_EXTRACTOR)
        if source is not None and extractor is not None:
            mine = {source.name: (extractor.name,)}
            self._wiring = mine | self._wiring | mine
        self._take(source, extractor)
        return source, extractor

    def _pair(self, source_method: str, extractor_method: str) -> tuple[Instance | None, Instance | None]:
        """The source that can be asked for that, and the extractor of what it gives: listed ones before others."""
        source = next(iter(self._all("data source", source_method, self._named)), None)
        named = self._named.get(source.name, []) if source is not None else []
        extractor = next(iter(self._all("extractor", extractor_method, named)), None)
        if source is not None:
            self._wiring[source.name] = (extractor.name,) if extractor is not None else ()
        self._take(source, extractor)
        return source, extractor

    def _poll(self, source: Instance) -> Poll | None:
        """A page that is fetched beside the metrics."""
        page = self._said(source, "polled_page")
        if page is None:
            return None
        readers = self._readers(source, "columns")
        return Poll(
            source.name,
            source.type,
            page,
            tuple(PageReader(each.name, each.type, each.plugin.columns) for each in readers),
        )

    def _watch(self, source: Instance) -> ObjectWatch | None:
        """The objects that a source follows; None for nobody who hears of them."""
        kind = self._said(source, "watched_kind")
        if kind is None:
            return None
        readers = self._readers(source, "notified")
        if not readers:
            message = f"{source.title} is accepted, and watches nothing: no extractor hears of what it would see"
            self._report.warning(source.path, message)
            return None
        hearing = [ObjectReader(each.name, each.type, each.plugin.notified) for each in readers]
        return ObjectWatch(source.name, source.type, kind, tuple(hearing))

    def _readers(self, source: Instance, method: str) -> list[Instance]:
        """The extractors that read of the source; those that no source names read of every one that they can."""
        elsewhere = {name for names in self._named.values() for name in names}
        named = self._named.get(source.name, [])
        able = self._all("extractor", method, named)
        readers = [each for each in able if each.name in named or (not named and each.name not in elsewhere)]
        self._wiring[source.name] = tuple(each.name for each in readers)
        self._take(source, *readers)
        return readers

    def _all(self, kind: str, method: str, first: "Sequence[str] | dict[str, Any]") -> list[Instance]:
        """Those that have the method, the ones of these names first."""
        by_name = self._instances.by_name
        found = [*[by_name[name] for name in first if name in by_name], *self._instances.of(kind)]
        able = [instance for instance in found if callable(getattr(instance.plugin, method, None))]
        return list(dict.fromkeys(able))

    def _default(self, type_name: str) -> Instance | None:
        return self._instances.inject(type_name, ()) if self._instances.known(type_name) else None

    def _take(self, *instances: Instance | None) -> None:
        self.taken += [instance for instance in instances if instance is not None]

    def _said(self, instance: Instance | None, method: str) -> Any:
        ask = getattr(instance.plugin, method, None) if instance else None
        if instance is None or ask is None:
            return None
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 (somebody else's plugin may raise anything)
            self._report.error(instance.path, f"{instance.title}: {method} fails: {type(error).__name__}: {error}")
            return None
