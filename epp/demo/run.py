"""The demo from start to end: a pass with the picker's configuration, a pass with random picks, and the comparison."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from epp.demo.load import CHAT, MODEL, Answer, Call, Workload, replay
from epp.demo.report import Summary, as_text, summarize
from epp.demo.stack import RANDOM, Stack, StackOptions
from epp.demo.table import Progress, display
from epp.demo.watch import look

_LOOK_EVERY = 0.5
_PAGE_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `epp demo` was told.

    Attributes:
        profile: of the simulated engines.
        blocks: KV blocks of an engine.
        config: an EndpointPickerConfig for the first pass, or None for the built-in one.
    """

    workload: Workload
    engines: int
    profile: str
    blocks: int
    config: Path | None

    @property
    def picker(self) -> tuple[str, ...]:
        """The arguments of `epp serve` that choose the first pass's configuration."""
        return () if self.config is None else ("--config-file", str(self.config))


@dataclass(frozen=True, slots=True)
class Comparison:
    """The two passes; `ok` if every request of both was answered."""

    picker: Summary
    random: Summary

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not (self.picker.failures or self.random.failures)

    def data(self) -> dict[str, Any]:
        """As one object for JSON: the first pass, and the second under `random`."""
        return {**self.picker.data(), "random": self.random.data()}


async def compare(options: DemoOptions, logs: Path, console: Console) -> Comparison:
    """Runs both passes, each on engines of its own that start with empty caches.

    Raises:
        EppError: something did not start; the message says what.
    """
    calls = options.workload.calls()
    picker = await _pass("picker", options, options.picker, calls, logs, console)
    random = await _pass("random", options, ("--config-text", RANDOM), calls, logs, console)
    console.print(f"\n{as_text(picker, random)}", soft_wrap=True, highlight=False, markup=False)
    return Comparison(picker, random)


async def keep(options: DemoOptions, logs: Path, console: Console) -> None:
    """Starts engines, picker and Envoy once more, says how to reach them, and waits to be cancelled.

    Raises:
        EppError: something did not start; the message says what.
    """
    async with Stack(_stack(options, options.picker, logs, "kept")) as stack:
        body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"Hello"}}],"max_tokens":50,"stream":true}}'
        lines = [
            f"\nStays up on {stack.url}, until Ctrl-C. Try:",
            f"  curl -N {stack.url}{CHAT} -H 'Content-Type: application/json' -d '{body}'",
            f"  curl '{stack.metrics}/debug/decisions?limit=1'",
        ]
        console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
        await asyncio.get_running_loop().create_future()


def _stack(options: DemoOptions, picker: tuple[str, ...], logs: Path, name: str) -> StackOptions:
    folder = logs / name
    folder.mkdir()
    return StackOptions(options.engines, options.profile, options.blocks, picker, folder)


async def _pass(
    name: str, options: DemoOptions, picker: tuple[str, ...], calls: list[Call], logs: Path, console: Console
) -> Summary:
    console.print(f"{name}: starting {options.engines} engines, the picker and Envoy", highlight=False)
    answers: list[Answer] = []
    timeout = aiohttp.ClientTimeout(total=_PAGE_TIMEOUT)
    async with Stack(_stack(options, picker, logs, name)) as stack, aiohttp.ClientSession(timeout=timeout) as http:
        watcher = asyncio.create_task(_watch(name, http, stack, calls, answers, console))
        try:
            await replay(stack.url, calls, answers.append)
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
        last = await look(http, stack)
    hits, queries = sum(row.hits for row in last.rows), sum(row.queries for row in last.rows)
    return summarize(len(calls), answers, hits, queries, {row.address: int(row.requests) for row in last.rows})


async def _watch(
    name: str, http: aiohttp.ClientSession, stack: Stack, calls: list[Call], answers: list[Answer], console: Console
) -> None:
    """Shows the state until it is cancelled."""
    start = time.monotonic()
    with display(console) as screen:
        while True:
            snapshot = await look(http, stack)
            elapsed = time.monotonic() - start
            sent = sum(call.at <= elapsed for call in calls)
            failed = sum(answer.error is not None for answer in answers)
            screen.show(Progress(name, elapsed, sent, len(answers), failed), snapshot)
            await asyncio.sleep(_LOOK_EVERY)
