"""`epp serve`: runs the endpoint picker."""

import os
import sys
from collections.abc import Callable, Sequence

from epp.cli.flags import parse, usage, wants_help
from epp.errors import ConfigError
from epp.extproc.ciphers import restrict
from epp.options import ServeOptions


def main(arguments: Sequence[str], run: Callable[[ServeOptions], int] | None = None) -> int:
    """Serves until SIGTERM and returns the exit status: 0 ended, 1 failed, 2 wrong arguments.

    Args:
        arguments: see `usage`.
        run: takes the place of `epp.app.run`.
    """
    try:
        if wants_help(arguments):
            print(usage())
            return 0
        options = parse(arguments, os.environ)
    except ConfigError as error:
        print(f"epp serve: {error}", file=sys.stderr)
        return 2
    for warning in options.warnings:
        print(f"epp serve: warning: {warning}", file=sys.stderr)
    try:
        return (run or _app(options))(options)
    except ConfigError as error:
        print(f"epp serve: {error}", file=sys.stderr)
        return 1


def _app(options: ServeOptions) -> Callable[[ServeOptions], int]:
    """`epp.app.run`, imported with gRPC only once gRPC's cipher suites are set."""
    if options.secure_serving:
        restrict(options.tls_min_version, options.tls_cipher_suites)
    from epp.app import run

    return run
