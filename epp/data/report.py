"""From the page of an endpoint to what it says: columns, adapters, and the marks by which a restart is seen."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from epp.data.engines import ENGINES, START_TIME, Combine, EngineSpec, Reading, engine_of
from epp.errors import ConfigError
from epp.formats.exposition import Exposition, Sample
from epp.keys import ACTIVE_LORAS, MAX_LORAS, WAITING_LORAS, Key
from epp.sources import ENGINE_LABELS

Marks = Mapping[tuple[str, bytes], float]
"""The counters that never fall while an engine lives, by metric and label block."""

Found = Mapping[str, Sequence[Sample]]

_SHARDS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank"})
"""Labels that tell apart the shards of one model replica, which all report the same requests: not to be added up."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one page says.

    Attributes:
        engine: the kind of engine whose metrics it has; "" if it has those of none.
        values: by pool key; a number that is not finite is NaN.
        active: models (adapters) of running requests.
        waiting: models (adapters) of waiting requests.
        marks: see `restarted`.
    """

    engine: str
    values: Mapping[Key, float]
    active: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    marks: Marks = field(default_factory=dict)


def restarted(before: Marks, after: Marks) -> bool:
    """Whether the engine has started anew between two reports: a counter fell, or the process has another start time.

    A series that is missing from either says nothing.
    """
    for mark, value in after.items():
        old = before.get(mark, value)
        if value < old or (value != old and mark[0] == START_TIME):
            return True
    return False


class Reader:
    """Reads the pages of all known engines; `names` are those of the samples that it looks at.

    Args:
        engines: in the order in which a page is tried that doesn't fit its endpoint's engine.
        default: the engine of endpoints whose labels name none, or an unknown one.
        labels: of an endpoint, that name its engine.

    Raises:
        ConfigError: two engines have one name, or none has the default's.
    """

    def __init__(
        self,
        engines: Sequence[EngineSpec] = ENGINES,
        default: str = "vllm",
        labels: tuple[str, ...] = ENGINE_LABELS,
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        if len(self._engines) != len(engines):
            raise ConfigError(f"two engines have one name: {', '.join(engine.name for engine in engines)}")
        if default not in self._engines:
            raise ConfigError(f"the default engine {default!r} is none of {', '.join(self._engines)}")
        self._default = self._engines[default]
        self._own_names = {engine.name: engine.own_names for engine in engines}
        self._labels = labels
        self.names = frozenset({START_TIME}).union(*self._own_names.values(), *(engine.restarts for engine in engines))
        self._exposition = Exposition(self.names)

    def read(self, page: bytes, labels: Mapping[str, str]) -> Report:
        """What the page of an endpoint with these labels says.

        Raises:
            ExpositionError: see `Exposition.read`.
        """
        return self.report(self._exposition.read(page), labels)

    def report(self, found: Found, labels: Mapping[str, str]) -> Report:
        """What the samples of a page, by metric, say; those that nobody reads may be left out."""
        engine = self._engine(found, labels)
        if engine is None:
            return Report("", {})
        values: dict[Key, float] = {}
        for reading in engine.readings:
            if reading.key not in values and (value := _value(reading, found)) is not None:
                values[reading.key] = value
        active, waiting = _loras(found.get(engine.lora, ()), values)
        return Report(engine.name, values, active, waiting, _marks(engine, found))

    def _engine(self, found: Found, labels: Mapping[str, str]) -> EngineSpec | None:
        named = self._engines.get(engine_of(labels, self._labels), self._default)
        for engine in (named, *self._engines.values()):
            if not self._own_names[engine.name].isdisjoint(found):
                return engine
        return None


def _value(reading: Reading, found: Found) -> float | None:
    samples = found.get(reading.selector.name, ())
    if len(samples) == 1 and not reading.label and not reading.selector.labels:  # nearly always
        value = samples[0].value
        return value if math.isfinite(value) else math.nan
    samples = [sample for sample in samples if reading.selector.matches(sample)]
    if reading.label:
        numbers = [(sample, _number(sample.labels.get(reading.label, ""))) for sample in samples]
        known = [(sample, number) for sample, number in numbers if not math.isnan(number)]
    else:
        known = [(sample, sample.value) for sample in samples]
    if not known:
        return None
    value = known[0][1] if len(known) == 1 else _combined(known, reading.combine)
    return value if math.isfinite(value) else math.nan


def _combined(parts: Sequence[tuple[Sample, float]], combine: Combine) -> float:
    """The parts of one engine as one number; if one of them is unknown, so is the whole."""
    if any(math.isnan(value) for _, value in parts):
        return math.nan
    if combine == "max":
        return max(value for _, value in parts)
    replicas: dict[frozenset[tuple[str, str]], float] = {}
    for sample, value in parts:
        replica = frozenset((name, text) for name, text in sample.labels.items() if name not in _SHARDS)
        replicas[replica] = max(value, replicas.get(replica, -math.inf))
    return sum(replicas.values())


def _loras(samples: Iterable[Sample], values: dict[Key, float]) -> tuple[frozenset[str], frozenset[str]]:
    """Enters the counts, and returns the names of active and waiting adapters.

    A change of the set makes a new series, and the old ones stay on the page: of each engine the newest counts. Ranks
    load their adapters each for itself, so that counts and limits are added like queues.
    """
    newest: dict[str, Sample] = {}
    for sample in samples:
        rank = sample.labels.get("engine", "")
        if rank not in newest or sample.value > newest[rank].value:
            newest[rank] = sample
    if not newest:
        return frozenset(), frozenset()
    active = [_names(sample, "running_lora_adapters") for sample in newest.values()]
    waiting = [_names(sample, "waiting_lora_adapters") for sample in newest.values()]
    values[ACTIVE_LORAS] = sum(map(len, active))
    values[WAITING_LORAS] = sum(map(len, waiting))
    values[MAX_LORAS] = sum(_number(sample.labels.get("max_lora", "")) for sample in newest.values())
    return frozenset().union(*active), frozenset().union(*waiting)


def _names(sample: Sample, label: str) -> frozenset[str]:
    return frozenset(name.strip() for name in sample.labels.get(label, "").split(",")) - {""}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _marks(engine: EngineSpec, found: Found) -> Marks:
    names = (*engine.restarts, START_TIME)
    return {(name, sample.block): sample.value for name in names for sample in found.get(name, ())}
