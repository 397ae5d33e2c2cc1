"""What following Kubernetes costs: CPU of the watches at a rate of pod events, and memory with many endpoints.

    python benchmarks/kubernetes.py [--json] [--smoke] [--pods 500] [--rate 50] [--seconds 20]

The API server, with a change of some pod at a steady rate, and an engine at each pod's loopback address are one other
process, so that the CPU counted is the picker's alone. `watch` is discovery and pool without the rest of the picker;
`serve` is the whole of `epp serve`, which scrapes all engines meanwhile.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.scrape import Engine, example_page  # noqa: E402
from epp.data.kubernetes.discovery import KubernetesDiscovery, Wanted  # noqa: E402
from epp.kube.access import find  # noqa: E402
from epp.kube.client import Api  # noqa: E402
from epp.pool import Pool  # noqa: E402
from tests.kube.api import FakeApi, pod, pool  # noqa: E402

LABELS = {"app": "llama"}


def address(index: int) -> str:
    """A loopback address for each pod."""
    return f"127.0.{1 + index // 250}.{1 + index % 250}"


async def cluster(pods: int, rate: float, folder: Path) -> None:
    """The other process: writes a kubeconfig, says so, and changes pods until its input ends."""
    page = example_page()[1]
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(page) + page
    loop = asyncio.get_running_loop()
    first = await loop.create_server(lambda: Engine(answer), address(0), 0)
    port = first.sockets[0].getsockname()[1]
    for index in range(1, pods):
        await loop.create_server(lambda: Engine(answer), address(index), port)
    async with FakeApi() as api:
        api.apply(pool("llama", LABELS, (port,)), *(made(index, ready=True) for index in range(pods)))
        print(api.kubeconfig(folder / "kubeconfig"), flush=True)
        churn = asyncio.create_task(change(api, pods, rate))
        await asyncio.to_thread(sys.stdin.read)
        churn.cancel()


async def change(api: FakeApi, pods: int, rate: float) -> None:
    """Each event changes who is in the pool: a pod is no longer ready, and with the next event it is again."""
    source, began, count, index = random.Random(1), time.monotonic(), 0, 0
    while True:
        count += 1
        await asyncio.sleep(began + count / rate - time.monotonic())
        index = source.randrange(pods) if count % 2 else index
        api.apply(made(index, ready=count % 2 == 0))


def made(index: int, *, ready: bool) -> dict[str, Any]:
    """A pod."""
    return pod(f"llama-{index}", address(index), labels=LABELS, ready=ready)


@asynccontextmanager
async def other_process(options: argparse.Namespace, folder: Path) -> AsyncIterator[str]:
    """The path of the kubeconfig."""
    command = [sys.executable, __file__, "--cluster", str(folder), f"--pods={options.pods}", f"--rate={options.rate}"]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()


async def watch(options: argparse.Namespace, kubeconfig: str) -> dict[str, Any]:
    """Discovery alone, in this process: CPU at the rate of events, and how long others waited at worst."""
    changed: list[str] = []
    endpoints = Pool()
    waits: list[float] = []
    ticking = asyncio.create_task(tick(waits))
    idle = await core_share(options.seconds / 4)
    waits.clear()
    async with aclosing(Api(find({"KUBECONFIG": kubeconfig}))) as api:
        discovery = KubernetesDiscovery(
            endpoints, api, Wanted(pool="llama"), on_pool=lambda added, removed: changed.extend([*added, *removed])
        )
        listing = time.process_time()
        await discovery.start()
        listed, longest = time.process_time() - listing, max(waits, default=0.0)
        changed.clear()
        waits.clear()
        share = await core_share(options.seconds)
        await discovery.stop()
    ticking.cancel()
    return {
        "core_share": round(share - idle, 4),
        "core_share_of_the_timer": round(idle, 4),
        "list_cpu_ms": round(listed * 1e3, 1),
        "longest_wait_ms_while_listing": round(longest * 1e3, 2),
        "longest_wait_ms": round(max(waits) * 1e3, 2),
        "endpoints_changed": len(changed),
        "endpoints": len(endpoints),
    }


async def core_share(seconds: float) -> float:
    """How much of a core this process has used in that time."""
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - began)


async def tick(waits: list[float]) -> None:
    """How much later than due a timer of 10 ms fires: what a request would have waited."""
    while True:
        due = time.perf_counter() + 0.01
        await asyncio.sleep(0.01)
        waits.append(time.perf_counter() - due)


async def serve(options: argparse.Namespace, kubeconfig: str) -> dict[str, Any]:
    """The whole picker: resident memory once every engine has been scraped for a while, and its CPU."""
    command = [sys.executable, "-m", "epp", "serve", "--pool-name=llama", "--metrics-endpoint-auth=false"]
    command += ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--grpc-bind-address=127.0.0.1"]
    command += ["--metrics-bind-address=127.0.0.1"]
    environ = os.environ | {"KUBECONFIG": kubeconfig}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=environ, cwd=ROOT, stderr=pipe)
    assert process.stderr is not None
    try:
        line = b""
        while b"metrics on" not in line:
            line = await process.stderr.readline()
            assert line, "epp serve has ended"
        metrics = line.decode().partition("metrics on ")[2].partition(",")[0]
        draining = asyncio.create_task(process.stderr.read())
        await asyncio.sleep(options.seconds / 2)
        cpu, began = cpu_seconds(process.pid), time.monotonic()
        await asyncio.sleep(options.seconds / 2)
        share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - began)
        async with aiohttp.ClientSession() as http, http.get(f"http://{metrics}/metrics") as answer:
            page = await answer.text()
        ready = next(line for line in page.splitlines() if line.startswith("llm_d_epp_ready_endpoints{"))
        memory = {name: memory_mb(process.pid, name) for name in ("VmRSS", "VmHWM")}
    finally:
        process.terminate()
        await process.wait()
        with suppress(asyncio.CancelledError):
            await draining
    return {
        "resident_mb": memory["VmRSS"],
        "resident_mb_at_most": memory["VmHWM"],
        "core_share_with_scraping": round(share, 3),
        "ready_endpoints": int(float(ready.rpartition(" ")[2])),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, name: str) -> float:
    """A line of a process's memory, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000, 1)


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both, one after the other."""
    with tempfile.TemporaryDirectory(prefix="epp-kubernetes-") as folder:
        async with other_process(options, Path(folder)) as kubeconfig:
            result = {"pods": options.pods, "events_a_second": options.rate}
            return result | {"watch": await watch(options, kubeconfig), "serve": await serve(options, kubeconfig)}


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="once, with few pods and quickly")
    parser.add_argument("--pods", type=int, default=500)
    parser.add_argument("--rate", type=float, default=50.0, help="pod events a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--cluster", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cluster is not None:
        asyncio.run(cluster(options.pods, options.rate, options.cluster))
        return
    if options.smoke:
        options.pods, options.seconds = 20, 1.0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(options))
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['pods']} pods, {result['events_a_second']:g} events a second")
    for what in ("watch", "serve"):
        print(f"{what}: " + ", ".join(f"{name} {value}" for name, value in result[what].items()))


if __name__ == "__main__":
    main()
