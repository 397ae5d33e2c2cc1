"""Finds plugin classes: through the entry-point group `epp.plugins`, or as a single Python file.

Nothing registers itself on import: the registry holds names, and imports a module when its type is asked for.
"""

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from epp.errors import ConfigError
from epp.files import Signature, signature

GROUP = "epp.plugins"

METHODS: Mapping[str, str] = {
    "keep": "filter",
    "score": "scorer",
    "pick": "picker",
    "decide": "profile handler",
    "disaggregate": "decider",
    "produce": "producer",
    "fetch": "fetcher",
    "parse": "parser",
    "saturation": "saturation detector",
    "extract": "extractor",
    "tokenize": "tokenizer",
    "screen": "screener",
    "deny": "admitter",
    "metrics_page": "data source",
    "polled_page": "data source",
    "models_page": "data source",
    "watched_kind": "data source",
    "engine_metrics": "extractor",
    "columns": "extractor",
    "served_models": "extractor",
    "notified": "extractor",
    "forget": "extractor",
    "endpoints_file": "discovery",
    "attributes": "header reader",
    "request_headers": "observer",
    "destination": "observer",
    "picked": "observer",
    "response_headers": "observer",
    "response_metadata": "observer",
    "first_byte": "observer",
    "done": "observer",
}
"""Which method makes a plugin what."""

_SOURCE = "__epp_source__"
"""Where a module from a file keeps what it was read from."""

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<name>\w+))?")


def kinds(cls: type) -> tuple[str, ...]:
    """What a class is by the methods it has, in the order of `METHODS`: ("filter", "scorer"); else what it says."""
    found = tuple(dict.fromkeys(kind for method, kind in METHODS.items() if callable(getattr(cls, method, None))))
    said = getattr(cls, "kind", None)
    return found or ((said,) if isinstance(said, str) else ())


def is_file(type_name: str) -> bool:
    """Whether a type names a Python file: `./my_scorer.py` or `./my_scorer.py:MyScorer`."""
    return _FILE.fullmatch(type_name) is not None


@dataclass(frozen=True, slots=True, eq=False)
class PluginClass:
    """A plugin's class under its type.

    Attributes:
        type: the name of its entry point, or the file as the configuration names it.
        name: what an instance is called unless the configuration says otherwise.
    """

    type: str
    name: str
    cls: Any

    @property
    def kinds(self) -> tuple[str, ...]:
        """See `kinds`."""
        return kinds(self.cls)

    @property
    def stability(self) -> str:
        """The marker that the class carries; "stable" without one."""
        return str(getattr(self.cls, "stability", "stable"))

    @property
    def deprecated(self) -> str:
        """What to write instead; "" for a type that is not deprecated."""
        return str(getattr(self.cls, "deprecated", ""))

    @property
    def loads_only(self) -> str:
        """Of a type that is accepted without all of its effect, what is missing; "" for others."""
        said = getattr(self.cls, "loads_only", False)
        return said if isinstance(said, str) else "has no effect yet" if said else ""

    @property
    def status(self) -> str:
        """Whether the type has its effect: "implemented" or "loads-only"."""
        return "loads-only" if self.loads_only else "implemented"

    @property
    def summary(self) -> str:
        """The first line of the class's docstring."""
        return (self.cls.__doc__ or "").strip().partition("\n")[0]

    @property
    def manual(self) -> str:
        """The docstring of the module."""
        return (sys.modules[self.cls.__module__].__doc__ or "").strip()


class Registry:
    """Types and how to get their classes; `Registry.installed()` for what is installed.

    Attributes:
        files: the Python files that were asked for, those that could not be used included, as they were then.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Any]]) -> None:
        self._loaders = dict(loaders)
        self.files: dict[Path, Signature | None] = {}

    def __repr__(self) -> str:
        return f"<Registry: {len(self._loaders)} types>"

    def __contains__(self, type_name: str) -> bool:
        return type_name in self._loaders

    @classmethod
    def installed(cls) -> "Registry":
        """The plugins of every installed distribution, ours and anybody's alike."""
        by_name: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=GROUP):
            by_name.setdefault(entry.name, []).append(entry)
        return cls({name: _loader(entries) for name, entries in by_name.items()})

    @property
    def types(self) -> tuple[str, ...]:
        """All registered types, sorted."""
        return tuple(sorted(self._loaders))

    def find(self, type_name: str, folder: Path | None = None) -> PluginClass:
        """The class of a registered type, or the one in a file.

        Args:
            type_name: the type as the configuration has it.
            folder: what a relative file is relative to; None allows absolute ones only.

        Raises:
            ConfigError: there is none, it can't be imported, or it is no plugin.
            KeyError: the type is not registered.
        """
        if is_file(type_name):
            path, name = _file_of(type_name, folder)
            self.files.setdefault(path, signature(path))
            cls = _class_in_file(path, name)
            return PluginClass(type_name, kebab(cls.__name__), cls)
        loader = self._loaders[type_name]
        try:
            cls = loader()
        except ConfigError:
            raise
        except Exception as error:  # somebody else's module may raise anything
            raise ConfigError(f"can't be imported: {type(error).__name__}: {error}") from error
        if not isinstance(cls, type) or not kinds(cls):
            raise ConfigError(f"{cls!r} is no plugin: a class with one of the methods {', '.join(METHODS)}")
        return PluginClass(type_name, type_name, cls)


def _loader(entries: list[EntryPoint]) -> Callable[[], Any]:
    """How to load a type; one that several distributions claim for different classes is refused when it is used."""
    if len({entry.value for entry in entries}) == 1:
        return entries[0].load
    claims = " and ".join(sorted(f"{entry.value} ({entry.dist.name if entry.dist else '?'})" for entry in entries))

    def refuse() -> Any:
        raise ConfigError(f"several packages have a plugin of this type: {claims}; uninstall one of them")

    return refuse


def kebab(name: str) -> str:
    """`MyLoRAScorer` as `my-lo-ra-scorer`: a class's name in the style of type names."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _file_of(type_name: str, folder: Path | None) -> tuple[Path, str | None]:
    """The file, and the class that is named in it."""
    match = _FILE.fullmatch(type_name)
    assert match is not None  # noqa: S101 (is_file has said so)
    path = Path(match["file"])
    if not path.is_absolute():
        if folder is None:
            raise ConfigError("a relative file needs a configuration file that it is relative to; write the whole path")
        path = folder / path
    return path, match["name"]


def names_in_file(type_name: str, folder: Path | None) -> set[str] | None:
    """What instances of the classes in a file that can't be imported may be called; None if that can't be told.

    A file in which no class can be made out may be about to have any.
    """
    try:
        path, name = _file_of(type_name, folder)
        source = path.read_text("utf-8")
    except (ConfigError, OSError, UnicodeDecodeError):
        return None
    return {kebab(found) for found in ([name] if name else _CLASS.findall(source))} or None


def types_in_file(type_name: str, folder: Path) -> list[str]:
    """The types of a file's plugins, each with its class's name where there are several; those of no file as they are.

    Raises:
        ConfigError: it can't be imported.
    """
    path, name = _file_of(type_name, folder) if is_file(type_name) else (None, None)
    found = _plugins_in_file(path) if path is not None and name is None else {}
    return [f"{type_name}:{each}" for each in found] if len(found) > 1 else [type_name]


def _plugins_in_file(path: Path) -> dict[str, type]:
    module = _import_file(path)
    own = {n: c for n, c in vars(module).items() if isinstance(c, type) and c.__module__ == module.__name__}
    return {name: cls for name, cls in own.items() if kinds(cls) and not name.startswith("_")}


def _class_in_file(path: Path, name: str | None) -> type:
    return _choose(path, name, _plugins_in_file(path))


def _choose(path: Path, name: str | None, found: Mapping[str, type]) -> type:
    names = ", ".join(found) or "none"
    if name is not None:
        if name not in found:
            raise ConfigError(f"{path.name} has no plugin class {name}; it has: {names}")
        return found[name]
    if len(found) != 1:
        raise ConfigError(f"name one class, as in {path.name}:MyScorer, unless there is exactly one; it has: {names}")
    return next(iter(found.values()))


class _Uncached(SourceFileLoader):
    """Compiles the file each time: bytecode caches tell versions apart by the second only."""

    def path_stats(self, path: Any) -> Any:
        raise OSError(f"{path}: not to be cached")


def _import_file(path: Path) -> ModuleType:
    """Runs the file as a module of its own; again when it has changed, so that a new configuration gets it as it is."""
    resolved = path.resolve()
    if not resolved.is_file():
        raise ConfigError(f"there is no file {resolved}")
    name = f"epp_plugin_file_{path.stem}_{hashlib.blake2b(bytes(path.absolute()), digest_size=4).hexdigest()}"
    source, before = _read(resolved), sys.modules.get(name)
    if before is not None and vars(before).get(_SOURCE) == source:
        return before
    spec = importlib.util.spec_from_file_location(name, resolved, loader=_Uncached(name, str(resolved)))
    assert spec is not None  # noqa: S101 (the suffix is .py)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look annotations up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody else's module may raise anything
        _put_back(name, before)
        raise ConfigError(f"{path.name} can't be imported: {type(error).__name__}: {error}") from error
    setattr(module, _SOURCE, source)
    return module


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path.name} can't be read: {error.strerror or error}") from error


def _put_back(name: str, before: ModuleType | None) -> None:
    del sys.modules[name]
    if before is not None:
        sys.modules[name] = before
