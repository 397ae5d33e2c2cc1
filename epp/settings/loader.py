"""`load`: a configuration's text to a `Router`, or every error in it at once.

The steps and rules are those of llm-d's loader (its `EndpointPickerConfig`), so that a file written for it runs here.
Where it leaves the order to chance, file order decides.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from epp.errors import ConfigError
from epp.plugin import Context, Router
from epp.settings.data_layer import resolve_sources
from epp.settings.decode import decode_config
from epp.settings.dependencies import check_named, resolve_producers
from epp.settings.document import Document, read
from epp.settings.instances import Instance, Instances
from epp.settings.migrations import migrated
from epp.settings.models import API_VERSION, DEPRECATED_API_VERSION, EndpointPickerConfig, FlowControl
from epp.settings.problems import InvalidConfig, Path, Problem, Report, listed, place
from epp.settings.profiles import profile_names, resolve_handler, resolve_profiles
from epp.settings.registry import Registry
from epp.settings.sections import check_feature_gates, check_flow_control, complete_flow_control
from epp.settings.shadow import resolve_shadow

DEFAULT_PARSERS = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
"""llm-d's list; those that are not registered are left out."""


DEFAULT_SCREENERS = ("served-model-filter",)
"""Ours, where they are registered and the file doesn't list them."""


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A configuration with everything that was left out filled in.

    Attributes:
        value: the file as it was read.
        instances: every plugin, the injected ones too, by name.
        router: what they make together.
        beside: the shadow's plugins, by name.
        gates: every feature gate with its value.
        flow_control: the section with its defaults; None where it is neither written nor switched on.
    """

    value: Mapping[str, Any]
    instances: dict[str, Instance]
    router: Router
    beside: dict[str, Instance]
    gates: Mapping[str, bool]
    flow_control: FlowControl | None


def load(text: str, origin: str | FilePath, registry: Registry, context: Callable[[str], Context]) -> Router:
    """Reads a configuration and builds what it says.

    Args:
        text: YAML or JSON.
        origin: the file it was read from, as a path; or a few words about where else it came from. Files that the
            configuration names are relative to that file's folder.
        registry: where types are looked up.
        context: makes the context of a plugin instance from its name.

    Raises:
        InvalidConfig: with every error that could be found.
    """
    return resolve(text, origin, registry, context).router


def resolve(text: str, origin: str | FilePath, registry: Registry, context: Callable[[str], Context]) -> Resolved:
    """The same as `load`, for those who want to see what was filled in."""
    return build(prepare(text, origin, registry), origin, registry, context)


def prepare(text: str, origin: str | FilePath, registry: Registry) -> Document:
    """The first half of `resolve`, which takes longer and may run in any thread: reads, and imports what is named.

    Raises:
        InvalidConfig: the text is no YAML mapping. What else is wrong, `build` tells.
    """
    document = read(text, str(origin))
    shadow = document.value.get("shadow")
    for section in (document.value, shadow if isinstance(shadow, dict) else {}):
        entries = section.get("plugins")
        for entry in entries if isinstance(entries, list) else ():
            with suppress(ConfigError, KeyError, TypeError):
                registry.find(entry["type"], _folder(origin))
    return document


def build(
    document: Document, origin: str | FilePath, registry: Registry, context: Callable[[str], Context]
) -> Resolved:
    """The second half of `resolve`: builds the plugins.

    Raises:
        InvalidConfig: with every error that could be found.
    """
    folder = _folder(origin)
    report = Report(errors=list(document.twice))
    config = decode_config(document.value, report)
    resolved = None
    if config is not None:
        _warn_of_deprecated(config, report)
        profiles = profile_names(config.scheduling_profiles)
        resolved = _resolve(config, Instances(registry, folder, context, report, profiles), document, report)
    if report.errors or resolved is None:
        raise InvalidConfig(document.origin, [_problem(document, report, *error) for error in report.errors])
    return resolved


def _folder(origin: str | FilePath) -> FilePath | None:
    return origin.parent if isinstance(origin, FilePath) else None


def _problem(document: Document, report: Report, path: Path, message: str) -> Problem:
    return Problem(place(path), message, document.line(report.written(path)))


def _warn_of_deprecated(config: EndpointPickerConfig, report: Report) -> None:
    if config.api_version == DEPRECATED_API_VERSION:
        report.warning(("apiVersion",), f'"{DEPRECATED_API_VERSION}" is deprecated: write "{API_VERSION}"')
    if config.parser:
        ignored = ", and ignored beside it" if config.request_handler.parsers else ""
        report.warning(("parser",), f"is deprecated{ignored}: write requestHandler.parsers, a list of pluginRef")
    if config.request_handler.propagate_priority:
        report.warning(("requestHandler", "propagatePriority"), "is accepted, has no effect yet")
    if config.data is not None:
        ignored = ", and ignored beside it" if config.data_layer else ""
        report.warning(("data",), f"is deprecated{ignored}: write dataLayer")
    old = config.saturation_detector
    if old is not None:
        for key in old.model_dump(by_alias=True, exclude_none=True, exclude={"plugin_ref"}):
            ignored = ", and ignored beside pluginRef" if old.plugin_ref else ""
            remedy = 'write it at a "utilization-detector", and that in flowControl.saturationDetector'
            report.warning(("saturationDetector", key), f"is deprecated{ignored}: {remedy}")
        if old.plugin_ref or not old.model_fields_set:
            report.warning(("saturationDetector",), "is deprecated: write flowControl.saturationDetector")


def _resolve(config: EndpointPickerConfig, instances: Instances, document: Document, report: Report) -> Resolved | None:
    gates = check_feature_gates(config, report)
    instances.configure(migrated(config.plugins, report))
    sources, taken = resolve_sources(config, instances, report)
    check_flow_control(config, gates, instances, report)
    for name in DEFAULT_SCREENERS:
        if instances.known(name) and not any(instance.type == name for instance in instances.by_name.values()):
            instances.inject(name, ())
    profiles, members = resolve_profiles(config.scheduling_profiles, instances, report)
    handler = resolve_handler(tuple(profiles), instances, report)
    parsers = _parsers(config, instances, report)
    asked_for = instances.asked_for.values()
    hooked = [i for i in instances.by_name.values() if i.hooked or i in members or i in asked_for]
    check_named(instances, report)
    fetchers, producers = resolve_producers(instances, hooked, report)
    shadow, beside = None, dict[str, Instance]()
    if config.shadow is not None:
        shadow, others = resolve_shadow(config.shadow, instances, tuple(profiles), report)
        beside = others.by_name
    referred = [instance for instance in instances.by_name.values() if instance.name in beside]
    _warn_of_unused(instances, {*members, *parsers, *asked_for, *taken, *referred}, report)
    flow_control = complete_flow_control(config, gates, instances)
    if handler is None or report.errors:
        return None
    router = Router(
        profiles=profiles,
        handler=handler.plugged(),
        parsers=tuple(parser.plugged() for parser in parsers),
        fetchers=tuple(fetcher.plugged() for fetcher in fetchers),
        producers=tuple(producer.plugged() for producer in producers),
        observers=tuple(observer.plugged() for observer in instances.of("observer")),
        screeners=tuple(screener.plugged() for screener in instances.of("screener")),
        admitters=tuple(admitter.plugged() for admitter in instances.of("admitter")),
        header_readers=tuple(reader.plugged() for reader in instances.of("header reader")),
        tokenizer=next((tokenizer.plugged() for tokenizer in instances.of("tokenizer")), None),
        sources=sources,
        warnings=tuple(str(_problem(document, report, *warning)) for warning in report.warnings),
        origin=document.origin,
        shadow=shadow,
    )
    return Resolved(document.value, instances.by_name, router, beside, gates, flow_control)


def _parsers(config: EndpointPickerConfig, instances: Instances, report: Report) -> list[Instance]:
    """The parsers in order; a reference that no plugin is called by is taken as a type."""
    refs = _parser_refs(config) or [((), name) for name in DEFAULT_PARSERS if instances.known(name)]
    found: dict[str, Instance] = {}
    for path, name in refs:
        parser = instances.inject(name, path)
        if parser is None:
            continue
        if not parser.is_a("parser"):
            report.error(path, f"{parser.title} is no parser, it is: {listed(parser.kinds)}")
        elif parser.type in found:
            report.warning(path, f"a parser of the type {parser.type} stands above already: this one has no effect")
        else:
            found[parser.type] = parser
    return list(found.values())


def _parser_refs(config: EndpointPickerConfig) -> list[tuple[Path, str]]:
    """The references with their places: those of `requestHandler`, or else the one under the deprecated `parser`."""
    refs = config.request_handler.parsers
    found: list[tuple[Path, str]] = [
        (("requestHandler", "parsers", index, "pluginRef"), ref.plugin_ref) for index, ref in enumerate(refs)
    ]
    if not found and config.parser:
        return [(("parser", "pluginRef"), config.parser.plugin_ref)]
    return found


def _warn_of_unused(instances: Instances, used: Iterable[Instance], report: Report) -> None:
    used = set(used)
    for instance in instances.by_name.values():
        if instance.path and instance.plugin and instance not in used and not (instance.hooked or instance.inert):
            report.warning(instance.path, f"{instance.title} is referred to by nothing, so it has no effect")
