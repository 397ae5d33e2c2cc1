"""Who reads what from whom: adds the producers that are missing and puts all of them in order.

A plugin's `reads` are the keys that it reads, a producer's or fetcher's `writes` those that it writes. A key names its
producer, which is the name of a plugin instance; a key without one belongs to the mechanism.
"""

from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from pydantic import BaseModel

from epp.keys import Key
from epp.settings.instances import Instance, Instances
from epp.settings.problems import Path, Report, listed, suggestion
from epp.settings.repair import stands_at

_GIVING = ("producer", "fetcher", "extractor")
"""Kinds of plugins that are added where something that they give is read."""


def resolve_producers(
    instances: Instances, used: Iterable[Instance], report: Report
) -> tuple[list[Instance], list[Instance]]:
    """The fetchers, and the producers in the order of their dependencies; missing ones are added, transitively.

    Args:
        instances: all there are; grows by what is added.
        used: those whose `reads` must be met.
        report: takes unknown producers, keys that are not written, and cycles.
    """
    graph: dict[Instance, list[Instance]] = {}
    pending = list(used)
    while pending:
        reader = pending.pop(0)
        if reader in graph:
            continue
        reads = _by_producer(_keys(reader, "reads", report))
        writers = [_writer(producer, keys, reader, instances, report) for producer, keys in reads.items()]
        graph[reader] = [writer for writer in writers if writer]
        pending.extend(graph[reader])
    for fetcher in instances.of("fetcher"):
        if graph.get(fetcher):
            report.error(fetcher.path, f"{fetcher.title} is a fetcher, which run first: it can read nobody's keys")
    for unused in [instance for instance in instances.by_name.values() if instance not in graph]:
        for producer, keys in _by_producer(_keys(unused, "reads", report)).items():
            _given(producer, keys, unused, instances, report)  # it may only lack a reference that is spelt rightly
    return instances.of("fetcher"), _ordered(instances.of("producer"), graph, report)


def check_named(instances: Instances, report: Report) -> None:
    """Whether each producer that a parameter such as `inFlightLoadProducerName` names is there.

    Those whose keys are read are `resolve_producers`' business; what they write may be the mechanism's own here.
    """
    for instance in list(instances.by_name.values()):
        read = {key.producer for key in _keys(instance, "reads", report)}
        for place, name in _producers_in(instance.effective):
            if name in {"", *read} or place in instance.built.left_out:
                continue
            if not instances.obtainable(name, *_GIVING):
                what = "not configured" if instances.known(name) else "neither configured nor a known type"
                hint = suggestion(name, instances.able(*_GIVING))
                message = f'{instance.title} names the producer "{name}", which is {what}{hint}'
                written = stands_at(instance.raw, place) == name
                report.error((*instance.path, "parameters", *place) if written else instance.place_of(name), message)


def _producers_in(parameters: BaseModel | None) -> Iterator[tuple[Path, str]]:
    """The names of producers, by the names of the fields, with their places."""
    if parameters is None:
        return
    for field, value in parameters:
        key = type(parameters).model_fields[field].alias or field
        if isinstance(value, str) and (field == "producer" or field.endswith("producer_name")):
            yield (key,), value
        several = isinstance(value, tuple)
        for index, inner in enumerate(value if several else (value,)):
            if isinstance(inner, BaseModel):
                above = (key, index) if several else (key,)
                yield from (((*above, *place), name) for place, name in _producers_in(inner))


def _ordered(producers: list[Instance], graph: dict[Instance, list[Instance]], report: Report) -> list[Instance]:
    among = set(producers)
    edges = {p: [w for w in graph.get(p, ()) if w in among and not (w.is_a("fetcher") and w is p)] for p in producers}
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        names = " -> ".join(instance.name for instance in error.args[1])
        report.error((), f"producers read from each other in a circle: {names}")
        return []


def _writer(
    producer: str, keys: Sequence[Key], reader: Instance, instances: Instances, report: Report
) -> Instance | None:
    """Who writes the keys of one producer; None for errors."""
    if not _given(producer, keys, reader, instances, report):
        return None
    writer = instances.inject(producer, reader.place_of(producer))
    if writer is None or writer.plugin is None:
        return None
    return writer if _given(producer, keys, reader, instances, report) else None


def _given(producer: str, keys: Sequence[Key], reader: Instance, instances: Instances, report: Report) -> bool:
    """Whether somebody writes the keys, as far as can be seen without adding him; tells what is wrong."""
    path, writer = reader.place_of(producer), instances.by_name.get(producer)
    if not instances.known(producer):
        report.error(path, _unknown(producer, keys, reader, instances))
    elif writer and writer.inert:
        report.error(path, f"{reader.title} reads {_named(keys)} from {writer.title}, which has no effect yet")
    elif writer and writer.plugin is not None:
        written = _keys(writer, "writes", report)
        unwritten = [key for key in keys if key not in written]
        names = listed(sorted({key.name for key in written}))
        if not unwritten:
            return True
        report.error(path, f"{reader.title} reads {_named(unwritten)} from {writer.title}, which writes: {names}")
    elif writer or instances.obtainable(producer, *_GIVING):
        return True
    else:
        report.error(path, f'{reader.title} reads {_named(keys)} from "{producer}", which writes: none')
    return False


def _by_producer(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """The keys by who writes them, without the mechanism's own."""
    found: dict[str, list[Key]] = {}
    for key in keys:
        if key.producer:
            found.setdefault(key.producer, []).append(key)
    return found


def _named(keys: Iterable[Key]) -> str:
    return " and ".join(dict.fromkeys(key.name for key in keys))


def _unknown(producer: str, keys: Sequence[Key], reader: Instance, instances: Instances) -> str:
    hint = suggestion(producer, instances.able("producer", "fetcher"))
    return (
        f'{reader.title} reads {_named(keys)} from the producer "{producer}", '
        f"which is neither configured nor a known type{hint}"
    )


def _keys(instance: Instance, attribute: str, report: Report) -> tuple[Key, ...]:
    declared = getattr(instance.plugin, attribute, ())
    if isinstance(declared, tuple | list | frozenset | set) and all(isinstance(key, Key) for key in declared):
        return tuple(declared)
    report.error(instance.path, f"{instance.title}: its `{attribute}` must be a tuple of keys, not {declared!r}")
    return ()
