"""``epp plugins test FILE``: checks a plugin, or all of a file, against what every plugin keeps to."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from epp.contract import check
from epp.errors import ConfigError
from epp.settings.registry import types_in_file


def main(arguments: Sequence[str]) -> int:
    """The exit status is 0 if the contract is kept, 1 if it isn't, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    reports = [check(each, options.parameters, count=options.cases, seed=options.seed) for each in _types(options.type)]
    print("\n\n".join(map(str, reports)))
    return 1 if any(report.broken for report in reports) else 0


def _types(type_name: str) -> list[str]:
    """All plugins of a file; one that can't be imported as it is, which its report says."""
    try:
        return types_in_file(type_name, Path.cwd())
    except ConfigError:
        return [type_name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epp plugins test", description=__doc__)
    parser.add_argument("type", metavar="FILE", help="such as my_scorer.py or my_scorer.py:MyScorer; or a type")
    help_text = "as JSON, in the configuration's spelling (those of the manual's example)"
    parser.add_argument("--parameters", type=_mapping, metavar="JSON", help=help_text)
    parser.add_argument("--cases", type=int, default=200, metavar="N", help="random pools and requests (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of these (%(default)s)")
    return parser


def _mapping(text: str) -> Mapping[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping")
    return value
