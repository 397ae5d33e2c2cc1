"""Who reads what from whom: adds the producers that are missing and puts all of them in order.

A plugin's `reads` are the keys that it reads, a producer's or fetcher's `writes` those that it writes. A key names its
producer, which is the name of a plugin instance; a key without one belongs to the mechanism.
"""

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from epp.keys import Key
from epp.settings.instances import Instance, Instances
from epp.settings.problems import Report, listed, suggestion


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
        writers = [_writer(key, reader, instances, report) for key in _keys(reader, "reads", report)]
        graph[reader] = [writer for writer in writers if writer]
        pending.extend(graph[reader])
    for fetcher in instances.of("fetcher"):
        if graph.get(fetcher):
            report.error(fetcher.path, f"{fetcher.title} is a fetcher, which run first: it can read nobody's keys")
    return instances.of("fetcher"), _ordered(instances.of("producer"), graph, report)


def _ordered(producers: list[Instance], graph: dict[Instance, list[Instance]], report: Report) -> list[Instance]:
    among = set(producers)
    edges = {p: [w for w in graph.get(p, ()) if w in among and not (w.is_a("fetcher") and w is p)] for p in producers}
    try:
        return list(TopologicalSorter(edges).static_order())
    except CycleError as error:
        names = " -> ".join(instance.name for instance in error.args[1])
        report.error((), f"producers read from each other in a circle: {names}")
        return []


def _writer(key: Key, reader: Instance, instances: Instances, report: Report) -> Instance | None:
    """Who writes the key; None for the mechanism and for errors."""
    if not key.producer:
        return None
    if not instances.known(key.producer):
        report.error(reader.path, _unknown(key, reader, instances))
        return None
    writer = instances.inject(key.producer, reader.path)
    if writer is None:
        return None
    if writer.plugin is None or writer.inert:
        if writer.inert:
            report.error(reader.path, f"{reader.title} reads {key.name} from {writer.title}, which has no effect yet")
        return None
    written = _keys(writer, "writes", report)
    if key not in written:
        names = listed(sorted({key.name for key in written}))
        report.error(reader.path, f"{reader.title} reads {key.name} from {writer.title}, which writes: {names}")
        return None
    return writer


def _unknown(key: Key, reader: Instance, instances: Instances) -> str:
    writers = [instance.name for kind in ("producer", "fetcher") for instance in instances.of(kind)]
    why = f"which is neither configured nor a known type{suggestion(key.producer, writers)}"
    return f'{reader.title} reads {key.name} from the producer "{key.producer}", {why}'


def _keys(instance: Instance, attribute: str, report: Report) -> tuple[Key, ...]:
    declared = getattr(instance.plugin, attribute, ())
    if isinstance(declared, tuple | list | frozenset | set) and all(isinstance(key, Key) for key in declared):
        return tuple(declared)
    report.error(instance.path, f"{instance.title}: its `{attribute}` must be a tuple of keys, not {declared!r}")
    return ()
