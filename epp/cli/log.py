"""``epp log``: reads decision logs.

``show FILE`` prints one JSON object a request, for jq and the like; docs/decision-log.md has the fields.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from epp.errors import ConfigError
from epp.observe.entries import plain, read_log, read_logs


def main(arguments: Sequence[str]) -> int:
    """The exit status is 0, or 1 for a file that can't be read; what is damaged in one is said on the error output."""
    options = _parser().parse_args(arguments)
    entries = (read_logs if options.rotated else read_log)(options.file, _told)
    try:
        for entry in entries:
            print(msgspec.json.encode(plain(entry)).decode())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ConfigError as error:
        print(f"epp log: {error}", file=sys.stderr)
        return 1
    return 0


def _told(what: str) -> None:
    print(f"epp log: {what}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epp log", description=__doc__)
    show = parser.add_subparsers(dest="action", required=True).add_parser("show", help="print a log as JSON lines")
    show.add_argument("file", metavar="FILE", type=Path, help="as given to epp serve --decision-log; may be gzipped")
    show.add_argument("--rotated", action="store_true", help="with what has been rotated away before: FILE.2, FILE.1")
    return parser
