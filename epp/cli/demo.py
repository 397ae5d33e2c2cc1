"""``epp demo``: three simulated engines, the picker and a real Envoy on this machine, under load, twice."""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from epp.cli.arguments import count, positive
from epp.engine.profiles import PROFILES
from epp.errors import EppError

Result = TypeVar("Result")
INTERRUPTED = 130
"""The exit status of a command that Ctrl-C has ended."""


def main(arguments: list[str]) -> int:
    """Runs the demo; returns 0 if every request was answered, 1 if not, 2 for wrong usage, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    logs = Path(tempfile.mkdtemp(prefix="epp-demo-"))
    try:
        status = uvloop.run(_run(options, logs))
    except ModuleNotFoundError as error:
        print(f"epp demo: {error}; pip install 'endpoint-picker[demo]'", file=sys.stderr)
        status = 1
    except (EppError, OSError) as error:
        print(f"epp demo: {error}", file=sys.stderr)
        status = 1
    if status == 1:
        print(f"epp demo: what the processes wrote is in {logs}", file=sys.stderr)
    else:
        shutil.rmtree(logs)
    return status


def _parser() -> argparse.ArgumentParser:
    about = "Replays one seeded list of chats through Envoy twice: with the picker, and with random picks."
    parser = argparse.ArgumentParser("epp demo", description=about)
    add = parser.add_argument
    add("--duration", type=positive, default=15.0, metavar="SECONDS", help="of each of the two passes (%(default)g)")
    add("--engines", type=count, default=3, metavar="N", help="simulated engines (%(default)s)")
    add("--rate", type=positive, default=20.0, help="requests a second (%(default)g)")
    add("--seed", type=int, default=0, help="of the list of requests (%(default)s)")
    add("--profile", default="llama-8b-l40s", choices=list(PROFILES), help="of the engines (%(default)s)")
    add("--blocks", type=count, default=1400, help="KV blocks of an engine (%(default)s)")
    add("--config", type=_file, metavar="FILE", help="an EndpointPickerConfig for the first pass (the built-in one)")
    add("--keep", action="store_true", help="start everything once more afterwards and stay up until Ctrl-C")
    add("--json", metavar="FILE", help="write the figures as one JSON object; - for stdout")
    return parser


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path.resolve()


async def _run(arguments: argparse.Namespace, logs: Path) -> int:
    from rich.console import Console

    from epp.demo.load import Workload
    from epp.demo.run import DemoOptions, compare, keep

    if arguments.json:
        _write("", arguments.json)  # before two passes have gone by
    workload = Workload(duration=arguments.duration, rate=arguments.rate, seed=arguments.seed)
    options = DemoOptions(workload, arguments.engines, arguments.profile, arguments.blocks, arguments.config)
    console = Console(stderr=arguments.json == "-")
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    comparison = await _unless(interrupted, compare(options, logs, console))
    if comparison is None:
        print("epp demo: interrupted", file=sys.stderr)
        return INTERRUPTED
    if arguments.json:
        _write(json.dumps(comparison.data()), arguments.json)
    if arguments.keep:
        await _unless(interrupted, keep(options, logs, console))
    return 0 if comparison.ok else 1


def _write(text: str, file: str) -> None:
    if file != "-":
        Path(file).write_text(f"{text}\n")
    elif text:
        print(text)


async def _unless(interrupted: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result | None:
    """Does the work, or ends it and returns None when the interruption comes first."""
    working, waiting = asyncio.create_task(work), asyncio.create_task(interrupted.wait())
    await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
        return None
    return working.result()
