"""``epp config``: checks configurations and shows them.

``check FILE`` prints every error at once, ``show [FILE]`` what a configuration amounts to, ``schema`` a JSON Schema for
editors.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from epp.errors import ConfigError
from epp.plugin import Context
from epp.pool import Pool
from epp.settings import Registry, Resolved, defaults, read_file, resolve, show
from epp.settings.schema import schema


def main(arguments: Sequence[str]) -> int:
    """The exit status is 0 for a configuration that loads, 1 for one that doesn't, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    if options.action == "schema":
        registry = Registry.installed()
        print(json.dumps(schema(map(registry.find, registry.types)), indent=2))
        return 0
    try:
        resolved = _resolve(options.file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    for warning in resolved.router.warnings:
        print(f"{resolved.router.origin}: warning: {warning}", file=sys.stderr)
    if options.action == "show":
        print(show.to_yaml(resolved), end="")
    else:
        print(f"{resolved.router.origin}: ok")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epp config", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="print every error of a configuration file")
    check.add_argument("file", metavar="FILE", help="an EndpointPickerConfig")
    shown = actions.add_parser("show", help="print the effective configuration with defaults filled in")
    shown.add_argument("file", metavar="FILE", nargs="?", help="an EndpointPickerConfig; without, the built-in default")
    actions.add_parser("schema", help="print the JSON Schema of configurations, for editors")
    return parser


def _resolve(file: str | None) -> Resolved:
    pool = Pool()
    source = random.Random()

    def context(name: str) -> Context:
        return Context(name, time.monotonic, source, pool)

    if file is None:
        return resolve(defaults.TEXT, defaults.ORIGIN, Registry.installed(), context)
    path = Path(file)
    return resolve(read_file(path), path, Registry.installed(), context)
