"""``epp plugins``: lists the plugins; ``epp plugins TYPE`` prints one's manual.

``epp plugins new NAME`` writes a plugin with its test, ``epp plugins test FILE`` checks one.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Any

from epp.errors import ConfigError
from epp.settings import PluginClass, Registry
from epp.settings.catalogue import ALIASES
from epp.settings.migrations import DIVIDED
from epp.settings.problems import suggestion


def main(arguments: Sequence[str]) -> int:
    """The exit status is 0, 1 if a plugin can't be had, 2 for wrong usage."""
    if arguments and arguments[0] in {"new", "test"}:
        status: int = import_module(f"epp.cli.plugin_{arguments[0]}").main(arguments[1:])
        return status
    options = _parser().parse_args(arguments)
    registry = Registry.installed()
    return _one(registry, options) if options.type else _all(registry, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epp plugins", description=__doc__)
    parser.add_argument("type", nargs="?", metavar="TYPE", help="a type, or a file such as ./my_scorer.py")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


_OLD: Mapping[str, tuple[str, ...]] = {old: (new,) for old, new in ALIASES.items()} | dict(DIVIDED)


def _one(registry: Registry, options: argparse.Namespace) -> int:
    instead = _OLD.get(options.type)
    if instead:
        print(f'epp plugins: "{options.type}" is deprecated: {_write(instead)}', file=sys.stderr)
    try:
        found = registry.find(instead[0] if instead else options.type, Path.cwd())
    except KeyError:
        hint = suggestion(options.type, {*registry.types, *_OLD})
        print(f'epp plugins: "{options.type}" is no known type{hint}', file=sys.stderr)
        return 1
    except ConfigError as error:
        print(f"epp plugins: {options.type}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(_described(found) | {"manual": found.manual}, indent=2) if options.json else found.manual)
    return 0


def _all(registry: Registry, options: argparse.Namespace) -> int:
    found: list[PluginClass] = []
    failed: dict[str, str] = {}
    for name in registry.types:
        try:
            found.append(registry.find(name))
        except ConfigError as error:
            failed[name] = str(error)
    if options.json:
        entries = [_described(plugin) for plugin in found] + _others({plugin.type: plugin for plugin in found})
        print(json.dumps(sorted(entries, key=itemgetter("type")), indent=2))
    else:
        _table([(plugin.type, ", ".join(plugin.kinds), plugin.summary) for plugin in found])
    for name, reason in failed.items():
        print(f"epp plugins: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _described(plugin: PluginClass) -> dict[str, Any]:
    return {
        "type": plugin.type,
        "kind": ", ".join(plugin.kinds),
        "status": plugin.status,
        "missing": plugin.loads_only or None,
        "kinds": plugin.kinds,
        "stability": plugin.stability,
        "deprecated": plugin.deprecated or None,
        "summary": plugin.summary,
        "module": plugin.cls.__module__,
    }


def _others(found: Mapping[str, PluginClass]) -> list[dict[str, Any]]:
    """The old names of types."""
    return [
        {**_described(found[new[0]]), "type": old, "deprecated": _write(new)}
        for old, new in _OLD.items()
        if new[0] in found
    ]


def _write(instead: Sequence[str]) -> str:
    return "write " + " with ".join(f'"{name}"' for name in instead)


def _table(rows: Sequence[tuple[str, str, str]]) -> None:
    rows = [("TYPE", "KIND", "SUMMARY"), *rows]
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, kinds, summary in rows:
        print(f"{name:{first}}  {kinds:{second}}  {summary}".rstrip())
