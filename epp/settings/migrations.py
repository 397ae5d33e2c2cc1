"""Entries of `plugins` from before a release moved something, as they are written now; one warning for each key.

Up to v0.8 `prefix-cache-scorer` kept the prefix index itself: its parameters about blocks and capacity belong to the
producer that it reads from. `precise-prefix-cache-scorer` brought a producer of its own. What reads of the prefix cache
named such a scorer (`prefixPluginName`), and names its producer now.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from epp.keys import APPROX_PREFIX_PRODUCER
from epp.settings.models import DataLayer, PluginRef, PluginSpec
from epp.settings.problems import Path, Report

Entry = tuple[PluginSpec, Path]

SCORER = "prefix-cache-scorer"
PRECISE_SCORER = "precise-prefix-cache-scorer"
PRECISE_PRODUCER = "precise-prefix-cache-producer"
_REFERENCE = "prefixMatchInfoProducerName"
DIVIDED: Mapping[str, tuple[str, ...]] = {PRECISE_SCORER: (SCORER, PRECISE_PRODUCER)}
"""Types that were, whose work several have now; the first is of their kind."""

_OWN_PLACE = {  # of `indexerConfig`, up to v0.8; None for what has no effect any more
    "tokenProcessorConfig": "tokenProcessorConfig",
    "speculativeIndexing": "speculativeIndexing",
    "prefixStoreConfig": None,
    "tokenizersPoolConfig": None,
}
_REMEDIES = {"tokenizersPoolConfig": 'write a "token-producer"', "prefixStoreConfig": "leave it out"}

_MOVED = (
    "autoTune",
    "blockSize",
    "blockSizeTokens",
    "hashBlockSize",
    "lruCapacityPerServer",
    "maxPrefixBlocksToMatch",
    "maxPrefixTokensToMatch",
)
_SCORERS_NAME = ("prefixPluginName", "prefixPluginType")
_READERS = frozenset({"no-hit-lru-scorer", "pd-profile-handler"})
OLD_PARAMETERS: Mapping[str, tuple[Path, ...]] = {
    SCORER: tuple((key,) for key in _MOVED),
    PRECISE_PRODUCER: (
        *(("indexerConfig", key) for key in _OWN_PLACE),
        ("indexerConfig", "kvBlockIndexConfig", "maxPrefixTokensToMatch"),
    ),
    **{reader: tuple((key,) for key in _SCORERS_NAME) for reader in _READERS},
}
"""By type, the places of parameters that aren't its own any more, and are read all the same."""

_CHARACTERS_PER_TOKEN = 4
_SMALLEST_BLOCK = 64


def migrated(specs: Sequence[PluginSpec], report: Report, at: Path = ()) -> list[Entry]:
    """The entries with their places, below `at`; what is added has the place of the entry that asks for it."""
    entries: list[Entry] = [(spec, (*at, "plugins", index)) for index, spec in enumerate(specs)]
    before = {spec.name or spec.type: spec.type for spec, _ in entries}
    entries = _with_indexers_parameters(_without_precise_scorers(entries, report), report)
    entries = _with_moved_parameters(entries, report)
    return [(_with_producer(spec, path, entries, before, report), path) for spec, path in entries]


def _without_precise_scorers(entries: Sequence[Entry], report: Report) -> list[Entry]:
    """Each as a `prefix-cache-scorer` of the one precise producer, which is added if there is none."""
    producers = [spec.name or spec.type for spec, _ in entries if spec.type == PRECISE_PRODUCER]
    found: list[Entry] = []
    for spec, path in entries:
        if spec.type != PRECISE_SCORER:
            found.append((spec, path))
            continue
        report.warning(
            (*path, "type"),
            f'"{PRECISE_SCORER}" is deprecated: write "{SCORER}" with {_REFERENCE}, and a "{PRECISE_PRODUCER}"',
        )
        if producers and spec.parameters:
            message = f'has no effect: the producer is there, "{producers[0]}"; write it there'
            for key in spec.parameters:
                report.warning((*path, "parameters", key), message)
        if len(producers) > 1:
            report.error((*path, "type"), f"several producers could be meant, name one: {', '.join(producers)}")
        if not producers:
            producers.append(PRECISE_PRODUCER)
            found.append((PluginSpec(type=PRECISE_PRODUCER, parameters=spec.parameters), path))
        parameters = {_REFERENCE: producers[0]}
        found.append((_changed(spec, type=SCORER, name=spec.name or spec.type, parameters=parameters), path))
    return found


def _with_indexers_parameters(entries: Sequence[Entry], report: Report) -> list[Entry]:
    """The precise producers with what stood in their `indexerConfig` in the place that it has now."""
    return [
        (_with_moved_indexer(spec, path, report), path) if spec.type == PRECISE_PRODUCER else (spec, path)
        for spec, path in entries
    ]


def _with_moved_indexer(spec: PluginSpec, path: Path, report: Report) -> PluginSpec:
    indexer = spec.parameters.get("indexerConfig")
    if not isinstance(indexer, dict):
        return spec
    parameters, kept = dict(spec.parameters), dict(indexer)
    at = (*path, "parameters", "indexerConfig")
    for key, now in _OWN_PLACE.items():
        if key not in kept:
            continue
        value = kept.pop(key)
        if now is None:
            report.warning((*at, key), f"is deprecated, and has no effect: {_REMEDIES[key]}")
            continue
        beside = ", and ignored there" if now in parameters else ""
        report.warning((*at, key), f"is deprecated{beside}: write {now} beside indexerConfig")
        parameters.setdefault(now, value)
    blocks = kept.get("kvBlockIndexConfig")
    if isinstance(blocks, dict) and "maxPrefixTokensToMatch" in blocks:
        kept["kvBlockIndexConfig"] = {key: value for key, value in blocks.items() if key != "maxPrefixTokensToMatch"}
        report.warning((*at, "kvBlockIndexConfig", "maxPrefixTokensToMatch"), "has no effect: leave it out")
    return _changed(spec, parameters=parameters | {"indexerConfig": kept})


def extracting(section: DataLayer, key: str, specs: Sequence[PluginSpec], report: Report) -> DataLayer:
    """`dataLayer` with the producer for each extractor that names an old precise scorer, which was one itself.

    Args:
        section: the section.
        key: its name.
        specs: the file's plugins, as they are written.
        report: takes a warning for each.
    """
    scorers = {spec.name or spec.type for spec in specs if spec.type == PRECISE_SCORER}
    written = (spec.name or spec.type for spec in specs if spec.type == PRECISE_PRODUCER)
    producer = next(written, PRECISE_PRODUCER)
    sources = []
    for index, source in enumerate(section.sources):
        for number, extractor in enumerate(source.extractors):
            if extractor.plugin_ref in scorers:
                path = (key, "sources", index, "extractors", number, "pluginRef")
                report.warning(path, f'is deprecated, as "{PRECISE_SCORER}" is: write "{producer}"')
        names = [producer if each.plugin_ref in scorers else each.plugin_ref for each in source.extractors]
        extractors = tuple(PluginRef.model_construct(plugin_ref=name) for name in dict.fromkeys(names))
        sources.append(source.model_copy(update={"extractors": extractors}))
    return section.model_copy(update={"sources": tuple(sources)})


def _with_moved_parameters(entries: Sequence[Entry], report: Report) -> list[Entry]:
    """Old scorers' parameters about the index given to the producer that they read from."""
    found = list(entries)
    for index, (spec, path) in enumerate(entries):
        moved = {key: spec.parameters[key] for key in _MOVED if key in spec.parameters}
        if spec.type != SCORER or not moved:
            continue
        kept = {key: value for key, value in spec.parameters.items() if key not in moved}
        name = kept.get(_REFERENCE) or APPROX_PREFIX_PRODUCER
        for key in moved:
            report.warning((*path, "parameters", key), f'is deprecated: write it at the producer, "{name}"')
        found[index] = (_changed(spec, parameters=kept), path)
        _give(_current(moved), str(name), path, found)
    return found


def _with_producer(
    spec: PluginSpec, path: Path, entries: Sequence[Entry], before: Mapping[str, str], report: Report
) -> PluginSpec:
    """A reader that names the scorer whose prefixes it goes by, with the producer that the scorer reads from."""
    old = {key: spec.parameters[key] for key in _SCORERS_NAME if key in spec.parameters}
    if spec.type not in _READERS or not old:
        return spec
    scorer = next((name for name in old.values() if isinstance(name, str) and name), "")
    producer = _producer_of(scorer, entries, before)
    meant = f'write {_REFERENCE}, "{producer}"' if producer else "leave it out, it names no plugin"
    for key in old:
        report.warning((*path, "parameters", key), f"is deprecated: {meant}")
    kept = {key: value for key, value in spec.parameters.items() if key not in old}
    return _changed(spec, parameters=({_REFERENCE: producer} if producer else {}) | kept)


def _producer_of(scorer: str, entries: Sequence[Entry], before: Mapping[str, str]) -> str | None:
    """The producer that the scorer of that name, or of that type, reads from; None for one that isn't there."""
    for spec, _ in entries:
        if (spec.name or spec.type) == scorer or before.get(spec.name or spec.type) == scorer:
            of_scorer = spec.parameters.get(_REFERENCE) or APPROX_PREFIX_PRODUCER
            return str(of_scorer) if spec.type == SCORER else spec.name or spec.type
    return {SCORER: APPROX_PREFIX_PRODUCER}.get(scorer)


def _give(parameters: Mapping[str, Any], name: str, path: Path, entries: list[Entry]) -> None:
    """Gives them to the producer of that name; what stands there already counts."""
    for index, (spec, at) in enumerate(entries):
        if (spec.name or spec.type) == name:
            if spec.type == APPROX_PREFIX_PRODUCER:
                own = {"blockSizeTokens"} if "blockSize" in spec.parameters else set()  # its own old spelling of it
                given = {key: value for key, value in parameters.items() if key not in own}
                entries[index] = (_changed(spec, parameters={**given, **spec.parameters}), at)
            return
    entries.append((PluginSpec(type=APPROX_PREFIX_PRODUCER, name=name, parameters=dict(parameters)), path))


def _current(moved: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the producer has them now: blocks in tokens, and the limit in tokens."""
    found = dict(moved)
    characters, size = found.pop("hashBlockSize", None), found.pop("blockSize", None)
    if isinstance(characters, int):
        size = size or -(-characters // _CHARACTERS_PER_TOKEN)
    if size:
        found.setdefault("blockSizeTokens", size)
    blocks = found.get("maxPrefixBlocksToMatch")
    if isinstance(blocks, int) and blocks > 0:
        del found["maxPrefixBlocksToMatch"]
        block = found.get("blockSizeTokens")
        tokens = blocks * max(block if isinstance(block, int) else 0, _SMALLEST_BLOCK)
        found.setdefault("maxPrefixTokensToMatch", tokens)
    elif blocks == 0:
        found.setdefault("maxPrefixTokensToMatch", 0)
    return found


def _changed(spec: PluginSpec, **changes: Any) -> PluginSpec:
    return spec.model_copy(update=changes)
