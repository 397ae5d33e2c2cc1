"""``epp SUBCOMMAND ...``: hands the arguments to one module of ``epp.cli``; without a subcommand, to ``serve``."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

SUBCOMMANDS = {
    "serve": "run the endpoint picker (the default: epp --grpc-port 9002 ...)",
    "demo": "three simulated engines, the picker and a real Envoy on this machine, with load",
    "engine": "run a simulated vLLM engine",
    "envoy": "print an Envoy bootstrap for given addresses",
    "config": "check a configuration file, or show what it amounts to",
    "log": "print a decision log as JSON lines",
    "doctor": "say what is wrong with a pool or a KServe service on Kubernetes, and what to do",
    "migrate": "turn manifests of the old inference APIs into those of the new ones",
    "replay": "a trace or a generated workload under several configurations, on simulated engines",
    "plugins": "list the plugins, print one's manual; write and check one (new, test)",
}

USAGE = "usage: epp [SUBCOMMAND] [OPTIONS]   (epp SUBCOMMAND --help tells more)\n\n" + "\n".join(
    f"  {name:8} {text}" for name, text in SUBCOMMANDS.items()
)


CLOSED_PIPE = 128 + signal.SIGPIPE
"""The exit status of a program whose output nobody reads to its end, as in `epp plugins | head -1`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer is nobody's any more: without this the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in SUBCOMMANDS:
        name = arguments.pop(0)
    elif arguments and arguments[0] in {"-h", "--help", "help"}:
        print(USAGE)  # noqa: T201 (a command line prints)
        return 0
    elif arguments and arguments[0] and not arguments[0].startswith("-"):
        print(f"epp: no subcommand {arguments[0]!r}\n\n{USAGE}", file=sys.stderr)  # noqa: T201
        return 2
    else:
        name = "serve"
    status: int = import_module(f"epp.cli.{name}").main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
