"""``epp engine``: one simulated vLLM server, until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import signal
import sys

import uvloop

from epp.engine.options import EngineOptions
from epp.engine.profiles import PROFILES, table
from epp.engine.server import EngineServer


def main(arguments: list[str]) -> int:
    """Runs the engine; returns 0 after SIGTERM or SIGINT, 1 if it can't start, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    if options.profile == "list":
        print(table())
        return 0
    options.loras = tuple(options.loras)
    try:
        return uvloop.run(_serve(EngineOptions(**vars(options))))
    except (ValueError, OSError) as error:
        print(f"epp engine: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("epp engine", description="A simulated vLLM server.")
    add, default = parser.add_argument, EngineOptions()
    add("--model", default=default.model, help="name of the model (%(default)s)")
    add("--profile", default=default.profile, choices=[*PROFILES, "list"], help="which engine; list shows them")
    add("--host", default=default.host, help="address to listen on (%(default)s)")
    add("--port", type=int, default=8000, help="port to listen on, 0 = any free one (%(default)s)")
    add("--blocks", type=int, help="KV blocks (the profile's)")
    add("--block-size", type=int, help="tokens a KV block (the profile's)")
    add("--max-num-seqs", type=int, help="requests that run at the same time (the profile's)")
    add("--max-num-batched-tokens", type=int, help="token budget of a step (the profile's)")
    add("--max-model-len", type=int, help="context in tokens (the profile's, or what the blocks hold)")
    add("--lora", dest="loras", nargs="+", default=[], metavar="NAME", help="adapters to serve")
    add("--max-loras", type=int, help="adapters that run at the same time (all of them)")
    add("--seed", type=int, default=default.seed, help="of answers, jitter and failures (%(default)s)")
    add("--time-factor", type=float, default=default.time_factor, help="multiplies every step's duration (1)")
    add("--jitter", type=float, default=default.jitter, help="deviation of a step's duration, as a share of it (0)")
    add("--failure-rate", type=float, default=default.failure_rate, help="share of requests answered with 500 (0)")
    add("--grace", type=float, default=5.0, help="seconds that running requests get at the end (%(default)s)")
    return parser


async def _serve(options: EngineOptions) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with EngineServer(options) as engine:
        print(f"engine {options.model} ({options.profile}) on http://{engine.address}", flush=True)
        await stop.wait()
    return 0
