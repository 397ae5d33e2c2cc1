"""``epp engine``: one simulated vLLM server, until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import contextlib
import signal
import sys
from dataclasses import replace
from typing import get_args

import uvloop

from epp.engine.kv_events import Format, KvEventsConfig
from epp.engine.options import EngineOptions
from epp.engine.profiles import PROFILES, table
from epp.engine.server import EngineServer


def main(arguments: list[str]) -> int:
    """Runs the engine; returns 0 after SIGTERM or SIGINT, 1 if it can't start, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    if options.profile == "list":
        print(table())
        return 0
    try:
        return uvloop.run(_serve(read(options)))
    except (ValueError, OSError) as error:
        print(f"epp engine: {error}", file=sys.stderr)
        return 1


def read(options: argparse.Namespace) -> list[EngineOptions]:
    """The servers to start: one, or one a data-parallel rank if each is to have a port of its own."""
    values = vars(options)
    separate = values.pop("data_parallel_ports")
    values["loras"] = tuple(options.loras)
    values["failure_statuses"] = tuple(options.failure_statuses)
    if options.kv_events is not None:
        values["kv_events"] = KvEventsConfig.read(options.kv_events)
    one = EngineOptions(**values)
    if not separate:
        return [one]
    return [
        replace(one, data_parallel_size=1, data_parallel_rank=rank, port=one.port + number if one.port else 0)
        for number, rank in enumerate(one.ranks())
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("epp engine", description="A simulated vLLM server.")
    add, default = made.add_argument, EngineOptions()
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
    add("--max-loras", type=int, help="adapters that run at the same time (as many as --lora names)")
    add("--data-parallel-size", type=int, default=1, help="ranks, each with its own scheduler and cache (1)")
    add("--data-parallel-rank", type=int, default=0, help="number of the first rank (0)")
    add("--data-parallel-ports", action="store_true", help="each rank listens on its own port, counting from --port")
    add(
        "--kv-events-config",
        dest="kv_events",
        metavar="JSON",
        help="publish the prefix cache's events over ZeroMQ; vLLM's fields: endpoint, replay_endpoint, topic ...",
    )
    add(
        "--kv-events-format",
        choices=get_args(Format),
        default=default.kv_events_format,
        help="map: as vLLM since 0.24; array: as before (%(default)s)",
    )
    add("--seed", type=int, default=default.seed, help="of answers, jitter and failures (%(default)s)")
    add("--time-factor", type=float, default=default.time_factor, help="multiplies every step's duration (1)")
    add("--jitter", type=float, default=default.jitter, help="deviation of a step's duration, as a share of it (0)")
    add("--failure-rate", type=float, default=default.failure_rate, help="share of requests that fail (0)")
    add(
        "--failure-statuses",
        type=int,
        nargs="+",
        default=[*default.failure_statuses],
        metavar="STATUS",
        help="what a request that fails by chance is answered with (500)",
    )
    add("--startup-seconds", type=float, default=default.startup_seconds, help="before it listens (%(default)s)")
    add("--grace", type=float, default=5.0, help="seconds that running requests get at the end (%(default)s)")
    return made


async def _serve(servers: list[EngineOptions]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    engines = [EngineServer(options) for options in servers]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), servers[0].startup_seconds)
        return 0
    async with contextlib.AsyncExitStack() as stack:
        for options, engine in zip(servers, engines, strict=True):
            await stack.enter_async_context(engine)
            print(f"engine {options.model} ({options.profile}) on http://{engine.address}", flush=True)
        await stop.wait()
    return 0
