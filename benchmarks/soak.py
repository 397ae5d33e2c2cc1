"""Whether anything is left behind: the picker under steady load, with streams, whole answers and clients that leave.

    python benchmarks/soak.py [--minutes 10] [--rate 60] [--json] [--smoke]

Three simulated engines, the picker and a real Envoy run as in the demo. A request in ten is broken off by its client in
the middle of its answer. The picker's memory is read off its own metrics page: `rss_start_mb` is taken after a fifth of
the time (two minutes of ten), when caches and the ring of decisions are full, `rss_end_mb` at the end of the load, and
`inflight_left` once every stream has ended. The default rate is about half of what two cores serve with all of this on
them.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from epp.demo.load import MODEL
from epp.demo.stack import Stack, StackOptions

PREFIXES = 24
MIB = 1 << 20


@dataclass
class Tally:
    """What has come of the requests so far, and the picker's memory at each look."""

    requests: int = 0
    failures: int = 0
    aborted: int = 0
    rss_mb: list[float] = field(default_factory=list)


async def values(http: aiohttp.ClientSession, stack: Stack, name: str) -> list[float]:
    """The values of all series of one metric of the picker's."""
    async with http.get(f"{stack.metrics}/metrics") as response:
        page = await response.text()
    families = text_string_to_metric_families(page)
    return [sample.value for family in families for sample in family.samples if sample.name == name]


async def rss(http: aiohttp.ClientSession, stack: Stack) -> float:
    """The picker's resident memory in MiB."""
    (value,) = await values(http, stack, "process_resident_memory_bytes")
    return value / MIB


def body_of(source: random.Random) -> dict[str, object]:
    """A request that shares its beginning with others, streamed or not."""
    shared = f"You are assistant {source.randrange(PREFIXES)}. " * 60
    messages = [{"role": "system", "content": shared}, {"role": "user", "content": source.randbytes(200).hex()}]
    return {"model": MODEL, "messages": messages, "max_tokens": 32, "stream": source.random() < 0.7}


async def send(http: aiohttp.ClientSession, url: str, body: dict[str, object], tally: Tally, *, leave: bool) -> None:
    """Sends one request; a client that leaves does so after the first piece of the answer."""
    tally.requests += 1
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body) as response:
            if leave:
                await response.content.readany()
                response.close()
                tally.aborted += 1
                return
            await response.read()
            if response.status != 200:
                tally.failures += 1
    except (aiohttp.ClientError, TimeoutError):
        tally.failures += 1


async def load(http: aiohttp.ClientSession, stack: Stack, seconds: float, rate: float, tally: Tally) -> None:
    """Sends requests at a steady rate, and looks at the picker's memory twenty times."""
    source, start = random.Random(0), time.monotonic()
    looks = [seconds * share / 20 for share in range(4, 21)]
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * rate)):
            await asyncio.sleep(max(start + number / rate - time.monotonic(), 0))
            if looks and time.monotonic() - start >= looks[0]:
                looks.pop(0)
                tally.rss_mb.append(round(await rss(http, stack), 2))
            leave = source.random() < 0.1
            group.create_task(send(http, stack.url, body_of(source), tally, leave=leave))
    tally.rss_mb.append(round(await rss(http, stack), 2))


async def settled(http: aiohttp.ClientSession, stack: Stack) -> float:
    """What is left in flight once nothing changes any more, 15 seconds at most."""
    left = float("inf")
    for _ in range(75):
        left = sum(await values(http, stack, "llm_d_epp_inflight_requests"))
        if not left:
            break
        await asyncio.sleep(0.2)
    return left


async def soak(minutes: float, rate: float) -> dict[str, object]:
    """Runs it."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="epp-soak-") as logs:
        options = StackOptions(engines=3, profile="tiny", blocks=2000, picker=(), logs=Path(logs))
        timeout = aiohttp.ClientTimeout(total=60)
        async with Stack(options) as stack, aiohttp.ClientSession(timeout=timeout) as http:
            await load(http, stack, minutes * 60, rate, tally)
            left = await settled(http, stack)
    return {
        "requests": tally.requests,
        "failures": tally.failures,
        "aborted_by_clients": tally.aborted,
        "rss_start_mb": tally.rss_mb[0],
        "rss_end_mb": tally.rss_mb[-1],
        "inflight_left": left,
        "rss_mb": tally.rss_mb,
    }


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=60.0, help="requests a second")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="a few seconds: only shows that it works")
    arguments = parser.parse_args()
    minutes, rate = (0.06, 20.0) if arguments.smoke else (arguments.minutes, arguments.rate)
    result = asyncio.run(soak(minutes, rate))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
