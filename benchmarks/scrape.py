"""What scraping costs: one metrics page from bytes to columns, and the CPU share of a pool at the default options.

    python benchmarks/scrape.py [--json] [--smoke] [--endpoints 100] [--seconds 10]

The engines are one other process with a port each that answers every request with the same page, so that the CPU
counted is the scraper's alone.
"""

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import time
import timeit
from pathlib import Path

import uvloop

from epp.data.client import ScrapeOptions
from epp.data.report import Reader
from epp.data.scrape import Scraper
from epp.pool import Endpoint, Pool

CAPTURE = Path(__file__).parents[1] / "../shared/data/vllm-0.32-metrics-loaded.txt"


def example_page() -> tuple[str, bytes]:
    """The capture of a real vLLM, or a page of about its size where that is absent."""
    if CAPTURE.exists():
        return CAPTURE.name, CAPTURE.read_bytes()
    wanted = b'vllm:num_requests_waiting{engine="0"} 1\nvllm:num_requests_running{engine="0"} 2\n'
    other = b'vllm:time_to_first_token_seconds_bucket{engine="0",le="%d"} 5\n'
    return "generated", b"".join(other % number for number in range(850)) + wanted


class Engine(asyncio.Protocol):
    """Answers each request, whatever it is, with the page."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A scrape's request fits into one segment."""
        self._transport.write(self._answer)  # type: ignore[attr-defined]


async def serve(count: int) -> None:
    """The engines' process: prints its ports as JSON, and ends when its input does."""
    page = example_page()[1]
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Engine(answer), "127.0.0.1", 0) for _ in range(count)]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


async def scrape(ports: list[int], seconds: float) -> dict[str, float]:
    """Scrapes for so long, after everybody has been scraped once; CPU is user and system time of this process."""
    done: list[str | None] = []
    pool = Pool(len(ports))
    for port in ports:
        pool.add(Endpoint(f"engine-{port}", "127.0.0.1", port))
    left, everybody = {endpoint.id for endpoint in pool.endpoints if endpoint}, asyncio.Event()

    def scraped(endpoint: Endpoint, _seconds: float, error: str | None) -> None:
        done.append(error)
        left.discard(endpoint.id)
        if not left:
            everybody.set()

    scraper = Scraper(
        pool,
        ScrapeOptions(),
        now=time.monotonic,
        random=random.Random(1),
        on_scrape=scraped,
    )
    await scraper.start()
    try:
        async with asyncio.timeout(30):
            await everybody.wait()
        first = len(done)
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        fresh = float((pool.fresh_until[pool.all_slots()] >= time.monotonic()).mean())
    finally:
        await scraper.stop()
    count = len(done) - first
    return {
        "endpoints": len(ports),
        "scrapes_per_second": round(count / wall, 1),
        "failed": sum(error is not None for error in done),
        "fresh_share": fresh,
        "cpu_share_percent": round(100 * cpu / wall, 2),
        "cpu_us_per_scrape": round(1e6 * cpu / max(count, 1), 1),
    }


def measure_pool(count: int, seconds: float) -> dict[str, float]:
    """Starts the engines' process, scrapes them, ends it."""
    command = [sys.executable, __file__, "--serve", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engines:
        assert engines.stdout is not None
        ports = json.loads(engines.stdout.readline())
        result = uvloop.run(scrape(ports, seconds))
        engines.communicate()
    return result


def measure_parse(number: int) -> dict[str, object]:
    """Microseconds from a page's bytes to a report, the best of five rounds."""
    name, page = example_page()
    reader = Reader()
    best = min(timeit.repeat(lambda: reader.read(page, {}), number=number, repeat=5)) / number
    return {"page": name, "bytes": len(page), "us": round(1e6 * best, 1)}


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--smoke", action="store_true", help="once, and briefly")
    parser.add_argument("--endpoints", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
        return
    count, seconds = (5, 0.2) if arguments.smoke else (arguments.endpoints, arguments.seconds)
    result = {"parse": measure_parse(10 if arguments.smoke else 1000), "pool": measure_pool(count, seconds)}
    if arguments.json:
        print(json.dumps(result))
    else:
        for part, figures in result.items():
            print(part, ", ".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
