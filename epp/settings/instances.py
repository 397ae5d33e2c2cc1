"""Plugin instances: from the entries of `plugins`, and those that the loader adds by default."""

from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from random import Random
from typing import Any, Literal

from pydantic import BaseModel

from epp.errors import ConfigError, UnknownPlugin
from epp.plugin import Context, Parameters, Plugged
from epp.settings.building import Built, build, place_of
from epp.settings.catalogue import ALIASES
from epp.settings.migrations import DIVIDED
from epp.settings.models import PluginSpec
from epp.settings.problems import BROKEN, Path, Report, listed, nearest, place, suggestion
from epp.settings.registry import METHODS, PluginClass, Registry, is_file, names_in_file
from epp.states import Apart

_HOOKED = {"profile handler", "producer", "fetcher", "observer", "screener", "admitter", "header reader", "tokenizer"}
"""Kinds that work without being referred to."""


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A plugin under its name.

    Attributes:
        name: what references call it.
        type: as Router and show have it, a deprecated alias replaced.
        kinds: what it is, by its methods or, for types without any, by its own word.
        plugin: the object; None if it could not be made; without the parameters that have faults where some have.
        parameters: with their defaults, those that are right; None for a class without.
        raw: the parameters as they were written.
        path: where it stands; () for an injected one.
        label: stands before its name in the router, and so in metrics and explanations.
        built: how it was made, of which parameters.
    """

    name: str
    type: str
    kinds: tuple[str, ...]
    plugin: Any = None
    parameters: BaseModel | None = None
    raw: dict[str, Any] = field(default_factory=dict)
    path: Path = ()
    label: str = ""
    built: Built = field(default_factory=Built, repr=False)
    _plugged: Plugged = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_plugged", Plugged(self.label + self.name, self.type, self.plugin))

    def is_a(self, kind: str) -> bool:
        """Whether the plugin is of that kind."""
        return kind in self.kinds

    @property
    def hooked(self) -> bool:
        """Whether it works without being in a profile or a list."""
        return not _HOOKED.isdisjoint(self.kinds)

    @property
    def inert(self) -> bool:
        """Whether its type is accepted without an effect."""
        methods = any(callable(getattr(self.plugin, method, None)) for method in METHODS)
        return not methods and bool(getattr(self.plugin, "loads_only", False))

    @property
    def title(self) -> str:
        """How messages call it."""
        name = self.type if self.name == BROKEN else self.name
        return f'"{name}" ({place(self.path)})' if self.path else f'"{name}"'

    def place_of(self, name: str) -> Path:
        """Where its parameters say that name; its own place where they don't."""
        found = place_of(name, self.raw) if self.path else None
        return (*self.path, "parameters", *found) if found else self.path

    @property
    def effective(self) -> BaseModel | None:
        """The parameters as they count; without a plugin, those that are right."""
        with suppress(*(() if self.plugin else (AttributeError, KeyError))):
            if isinstance(self.parameters, Parameters):
                return self.parameters.effective()
        return self.parameters

    def plugged(self) -> Plugged:
        """For the router; the same one each time."""
        return self._plugged


class _Any:
    """Every name."""

    def __contains__(self, name: object) -> bool:
        return True


_ANY = _Any()


@dataclass(slots=True)
class _Entry:
    """One entry of `plugins`; its state is "", then "making", then "made"."""

    spec: PluginSpec
    path: Path
    state: Literal["", "making", "made"] = ""
    made: Instance | None = None


class Instances:
    """All instances of one load, by name; the mutable state of the loader.

    Attributes:
        by_name: all that could be made.
        broken: the names of those that could not.
        incomplete: whether there are such, or some whose name can't be told.
        asked_for: those that other plugins have asked for, by name.

    Args:
        registry: where types are looked up.
        folder: what files are relative to.
        context: makes the context of an instance from its name.
        report: takes what is wrong.
        profiles: the names of the scheduling profiles.
    """

    def __init__(
        self,
        registry: Registry,
        folder: FilePath | None,
        context: Callable[[str], Context],
        report: Report,
        profiles: Sequence[str],
    ) -> None:
        self.by_name: dict[str, Instance] = {}
        self.broken: set[str] = {BROKEN}
        self.incomplete = False
        self._nameless: list[Container[str]] = []  # what broken entries without a name may be called
        self.asked_for: dict[str, Instance] = {}
        self._entries: list[_Entry] = []
        self._named: dict[str, _Entry] = {}
        self._reserve: dict[str, _Entry] = {}  # made when they are asked for
        self._registry = registry
        self._folder = folder
        self._context = context
        self._report = report
        self._profiles = None if BROKEN in profiles else profiles
        self._label = ""

    def beside(self, label: str, profiles: Sequence[str]) -> "Instances":
        """Another set of instances, made as they are asked for by name, of the same entries as these.

        They are kept apart: they share no state, no randomness and no counters with these.

        Args:
            label: stands before their names in the router.
            profiles: the names of the profiles that they are for.
        """

        def context(name: str) -> Context:
            own = self._context(name)
            states = Apart(own.states, label)
            return Context(name, own.now, Random(own.random.getrandbits(64)), own.pool, states=states)

        other = Instances(self._registry, self._folder, context, self._report, profiles)
        other._reserve = {name: _Entry(entry.spec, entry.path) for name, entry in self._named.items()}
        other._label = label
        return other

    def configure(self, specs: Sequence[tuple[PluginSpec, Path]]) -> None:
        """Makes the entries of `plugins`, with their places; what is wrong with one goes to the report.

        An entry that others ask for (`Context.plugin`) is made before them; their order stays the file's.
        """
        self._entries = [_Entry(spec, path) for spec, path in specs]
        for entry in self._entries:
            self._named.setdefault(self._name(entry.spec), entry)
        self._reserve = {name: entry for name, entry in self._reserve.items() if name not in self._named}
        self._nameless += [
            names for names in map(self._possible_names, [entry.spec for entry in self._entries]) if names
        ]
        self.incomplete |= bool(self._nameless)
        for entry in self._entries:
            if entry.state == "":
                self._complete(entry)
        for entry in self._entries:
            self._enter_entry(entry)

    def _name(self, spec: PluginSpec) -> str:
        if spec.name or not is_file(spec.type):
            return spec.name or spec.type
        with suppress(ConfigError):
            return self._find(spec.type).name
        return spec.type

    def _complete(self, entry: "_Entry") -> None:
        entry.state = "making"
        entry.made = self._make(entry.spec, (*entry.path, "type"), (*entry.path, "parameters"), entry.path)
        entry.state = "made"

    def _enter_entry(self, entry: "_Entry") -> None:
        made, spec = entry.made, entry.spec
        name = made.name if made else spec.name or spec.type
        if (name in self.by_name or name in self.broken) and name != BROKEN:
            self._report.error((*entry.path, "name"), f'"{name}" is taken by an earlier plugin; names are unique')
        else:
            self._enter(name, made)

    def _possible_names(self, spec: PluginSpec) -> Container[str]:
        """What others may call an entry whose name can't be told: references to it are no errors of their own."""
        if spec.name is not None:
            return _ANY if spec.name == BROKEN else ()
        with suppress(ConfigError):
            self._find(ALIASES.get(spec.type, spec.type))
            return ()
        if is_file(spec.type):
            names = names_in_file(spec.type, self._folder)
            return _ANY if names is None else names
        types = {*self._registry.types, *ALIASES, *DIVIDED}
        found = nearest(spec.type, types)
        return {found} if found else types

    def _excused(self, name: str) -> bool:
        """Whether the name is that of something broken, or may be."""
        return name in self.broken or any(name in names for names in self._nameless)

    def look_up(self, name: str, kind: type) -> Any:
        """The plugin of that name, for another one: made now if it is not there yet.

        Where there is none, the error names those of the kind, a class or protocol.

        Raises:
            UnknownPlugin: there is none, or it waits for the one that asks.
        """
        self._take(name)
        entry = self._named.get(name)
        if entry is not None and entry.state == "making":
            raise UnknownPlugin(f'"{name}" asks for this plugin itself: they can\'t both be first', name)
        if entry is not None and entry.state == "":
            self._complete(entry)
        found = entry.made if entry is not None else self.by_name.get(name)
        if found is None and entry is None:
            raise UnknownPlugin("" if self._excused(name) else self._unknown(name, self._fitting(kind)), name)
        inert = found is not None and found.inert
        if found is None or found.plugin is None or inert:
            raise UnknownPlugin(f'"{name}" has no effect yet' if inert else "", name)  # broken: the report says why
        self.asked_for[found.name] = found
        return found.plugin

    def _fitting(self, kind: type) -> list[str]:
        """The names of the entries that are of a class or protocol, as far as can be seen before they are made."""

        def fits(entry: _Entry) -> bool:
            with suppress(ConfigError, TypeError):  # an unknown type; a protocol that has attributes
                return issubclass(self._find(ALIASES.get(entry.spec.type, entry.spec.type)).cls, kind)
            return True

        return [name for name, entry in self._named.items() if fits(entry)]

    def inject(self, name: str, path: Path, parameters: dict[str, Any] | None = None) -> Instance | None:
        """The instance of that name, or else a new one of the type of that name.

        Args:
            name: of an instance or a type.
            path: of what needs it, for the report when it can't be had; the result is None then.
            parameters: of a new one; None for the defaults.
        """
        self._take(name)
        if name not in self.by_name and not self._excused(name):
            self._enter(name, self._make(PluginSpec(type=name, parameters=parameters or {}), path, path, ()))
        return self.by_name.get(name)

    def known(self, name: str) -> bool:
        """Whether an instance or a registered type has that name."""
        return name in self.by_name or name in self._registry or name in self._reserve or self._excused(name)

    def obtainable(self, name: str, *kinds: str) -> bool:
        """Whether an instance has that name, or a registered type of one of the kinds."""
        if name in self.by_name or name in self._reserve or self._excused(name):
            return True
        try:
            return not set(kinds).isdisjoint(self.kinds_of(name))
        except ConfigError:  # who asks for it is told
            return True

    def kinds_of(self, type_name: str) -> tuple[str, ...]:
        """What a registered type is, without an instance of it; () for one that isn't registered."""
        return self._registry.find(type_name).kinds if type_name in self._registry else ()

    def able(self, *kinds: str) -> set[str]:
        """The names of the instances, and of the types, that are of one of the kinds."""
        types: set[str] = set()
        for name in self._registry.types:
            with suppress(ConfigError):
                if not set(kinds).isdisjoint(self.kinds_of(name)):
                    types.add(name)
        return types | {name for name, each in self.by_name.items() if any(map(each.is_a, kinds))}

    def _enter(self, name: str, made: Instance | None) -> None:
        if made:
            self.by_name[name] = made
        else:
            self.broken.add(name)
        self.incomplete |= made is None or made.plugin is None or bool(made.built.faults)

    def refer(self, name: str, path: Path) -> Instance | None:
        """What a reference means; an undefined one goes to the report, a broken one is there already."""
        self._take(name)
        found = self.by_name.get(name)
        if found is None and not self._excused(name):
            self._report.error(path, self._unknown(name, [*self.by_name, *self._reserve]))
        return found

    @staticmethod
    def _unknown(name: str, known: Iterable[str]) -> str:
        readable = [each for each in known if each != BROKEN]
        return f'no plugin is called "{name}"; there are: {listed(readable)}{suggestion(name, readable)}'

    def _take(self, name: str) -> None:
        entry = self._reserve.pop(name, None)
        if entry is not None and name not in self.broken:
            self._named[name] = entry
            self._complete(entry)
            self._enter_entry(entry)

    def of(self, kind: str) -> list[Instance]:
        """The instances of a kind, in file order."""
        return [instance for instance in self.by_name.values() if instance.is_a(kind)]

    def _make(self, spec: PluginSpec, type_path: Path, below: Path, path: Path) -> Instance | None:
        made = self._made(spec, type_path, below, path)
        return replace(made, label=self._label) if made is not None and self._label else made

    def _made(self, spec: PluginSpec, type_path: Path, below: Path, path: Path) -> Instance | None:
        if spec.type == BROKEN:
            return None
        type_name = self._current_type(spec.type, type_path)
        try:
            found = self._find(type_name)
        except ConfigError as error:
            self._report.error(type_path, f'"{type_name}": {error}')
            return None
        self._warn_of_class(found, type_path)
        return self._build(found, spec, below, path)

    def _current_type(self, type_name: str, path: Path) -> str:
        new = ALIASES.get(type_name)
        if new is None:
            return type_name
        self._report.warning(path, f'"{type_name}" is deprecated: write "{new}"')
        return new

    def _find(self, type_name: str) -> PluginClass:
        if type_name in self._registry or is_file(type_name):
            return self._registry.find(type_name, self._folder)
        hint = suggestion(type_name, {*self._registry.types, *ALIASES})
        raise ConfigError(f"unknown type{hint or '; `epp plugins` lists all, a file is written ./my_scorer.py'}")

    def _warn_of_class(self, found: PluginClass, path: Path) -> None:
        if not path:  # nobody has asked for it
            return
        if found.deprecated:
            self._report.warning(path, f'"{found.type}" is deprecated: {found.deprecated}')
        if found.stability != "stable":
            self._report.warning(path, f'"{found.type}" is {found.stability}: its parameters and effect may change')
        if found.loads_only:
            self._report.warning(path, f'"{found.type}" is accepted, {found.loads_only}')

    def _build(self, found: PluginClass, spec: PluginSpec, below: Path, path: Path) -> Instance:
        name = spec.name or (found.name if is_file(spec.type) else spec.type)
        built = build(found.cls, spec.parameters, self._context_of(name, found.type), name)
        self._report.respelt |= {(*below, *new): (*below, *old) for new, old in built.respelt.items()}
        for at, message in built.faults:
            self._report.error((*below, *at), message)
        if not built.faults and built.plugin is not None:
            self._warn_of_deprecated(built.parameters, below)
            for remark in getattr(built.plugin, "remarks", ()):
                self._report.warning(below, str(remark))
        return Instance(
            name, found.type, found.kinds, built.plugin, built.parameters, spec.parameters, path, built=built
        )

    def _context_of(self, name: str, type_name: str) -> Context:
        return replace(self._context(name), type=type_name, lookup=self.look_up, profiles=self._profiles)

    def _warn_of_deprecated(self, value: Any, below: Path) -> None:
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                self._warn_of_deprecated(item, (*below, index))
        if not isinstance(value, BaseModel):
            return
        for name, inner in value:
            info = type(value).model_fields.get(name)
            if info is None or name not in value.model_fields_set:
                continue
            path = (*below, info.alias or name)
            if info.deprecated:
                self._report.warning(path, f"is deprecated: {info.deprecation_message}")
            self._warn_of_deprecated(inner, path)
