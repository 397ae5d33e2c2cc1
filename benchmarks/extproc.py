"""What a request costs: the picker's CPU against the floor's, behind a real Envoy, in interleaved rounds.

The floor is `../shared/bench/floor.py`: an ext_proc server on the same stack that only answers. The picker runs as in
production, with metrics, one log line a request and decision records on. Each round sends the same requests through an
Envoy in front of either; a row has the medians over the rounds, in microseconds of CPU (all threads of the process) a
request, and the median of the rounds' ratios. `policy` is the configuration: config/llm-d-default.yaml, or `default`,
what the picker does without one.

    python benchmarks/extproc.py [--json] [--smoke] [--rounds 5] [--requests 1000]
"""

import argparse
import asyncio
import json
import statistics
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from epp.envoy.options import Address, EnvoyOptions, Mode
from epp.envoy.process import LOOPBACK, EnvoyProcess

SHARED = Path(__file__).resolve().parents[2] / "shared"
FLOOR = SHARED / "bench" / "floor.py"
PAGE = SHARED / "data" / "vllm-0.32-metrics-loaded.txt"
CONCURRENCY = 16
LLM_D, DEFAULT = "llm-d-default", "default"
CONFIG = Path(__file__).resolve().parents[1] / "config" / "llm-d-default.yaml"
CONFIGS = {
    LLM_D: ("--config-file", str(CONFIG)),
    DEFAULT: (),
}
CASES: list[tuple[int, Mode, str]] = [
    (1_000, "full-duplex", LLM_D),
    (220_000, "full-duplex", LLM_D),
    (400_000, "full-duplex", LLM_D),
    (1_000, "standalone", LLM_D),
    (400_000, "standalone", LLM_D),
    (1_000, "full-duplex", DEFAULT),
]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 250, "completion_tokens": 2, "total_tokens": 252},
}


@dataclass
class Server:
    """A processor under measurement."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def cpu(self) -> float:
        """Microseconds of CPU that all its threads have used."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


async def free_port() -> int:
    """A port that nobody listens on just now."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def engine(stack: AsyncExitStack) -> Address:
    """A model server that answers at once, and has a real vLLM's metrics page."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response(ANSWER)

    async def metrics(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/metrics", metrics)
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return Address("127.0.0.1", runner.addresses[0][1])


async def start(stack: AsyncExitStack, port: int, *command: str) -> Server:
    """Starts a processor and waits until it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    stack.push_async_callback(end, process)
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if process.returncode is not None:
                    raise RuntimeError(f"{command[0]} has ended with status {process.returncode}") from None
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return Server(process, port)


async def end(process: asyncio.subprocess.Process) -> None:
    """Ends a process."""
    if process.returncode is None:
        process.terminate()
    await process.wait()


async def processors(stack: AsyncExitStack, target: Address, policy: str) -> dict[str, Server]:
    """The floor and the picker."""
    floor, picker = await free_port(), await free_port()
    serve = ("-m", "epp", "serve", "--endpoints", str(target), "--secure-serving=false", "--grpc-port", str(picker))
    quiet = ("--grpc-bind-address", "127.0.0.1", "--grpc-health-port", "0", "--metrics-port", "0")
    return {
        "floor": await start(stack, floor, str(FLOOR), str(floor), str(target)),
        "picker": await start(stack, picker, *serve, *quiet, *CONFIGS[policy]),
    }


async def load(session: aiohttp.ClientSession, envoy: EnvoyProcess, body: bytes, requests: int) -> None:
    """Sends the requests, some at a time; every answer must be a 200."""
    url = f"http://{envoy.address}/v1/chat/completions"
    remaining = iter(range(requests))

    async def worker() -> None:
        for _ in remaining:
            async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
                text = await response.read()
                if response.status != 200:
                    raise RuntimeError(f"status {response.status}: {text[:200]!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())


async def measure(size: int, mode: Mode, policy: str, rounds: int, requests: int) -> dict[str, object]:
    """One row."""
    question = {"model": "llama-8b", "messages": [{"role": "user", "content": ("word " * (size // 5))[:size]}]}
    body = json.dumps(question).encode()
    used: dict[str, list[float]] = {"floor": [], "picker": []}
    async with AsyncExitStack() as stack:
        target = await engine(stack)
        servers = await processors(stack, target, policy)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        envoys = {}
        for name, server in servers.items():
            picker = (Address("127.0.0.1", server.port),)
            options = EnvoyOptions(mode=mode, listen=LOOPBACK, picker=picker, endpoints=(target,))
            envoys[name] = await stack.enter_async_context(EnvoyProcess(options))
            await load(session, envoys[name], body, max(requests // 5, 20))
        for _ in range(rounds):
            for name, server in servers.items():
                before = server.cpu
                await load(session, envoys[name], body, requests)
                used[name].append((server.cpu - before) / requests)
    ratios = [picker / floor for picker, floor in zip(used["picker"], used["floor"], strict=True)]
    return {
        "prompt_bytes": size,
        "mode": mode,
        "policy": policy,
        "picker_us": round(statistics.median(used["picker"]), 1),
        "floor_us": round(statistics.median(used["floor"]), 1),
        "ratio": round(statistics.median(ratios), 3),
    }


async def main(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All rows."""
    if not FLOOR.exists():
        raise SystemExit(f"{FLOOR} is missing: the floor that costs are held against is not part of the project")
    cases = CASES[:1] if arguments.smoke else CASES
    if arguments.smoke:
        return [await measure(*case, 1, 40) for case in cases]
    rows = []
    for case in cases:
        rows.append(await measure(*case, arguments.rounds, arguments.requests if case[0] < 10_000 else 200))
        if not arguments.json:
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--smoke", action="store_true", help="run once, small: only shows that it works")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1000, help="a round, for short prompts")
    options = parser.parse_args()
    result = asyncio.run(main(options))
    if options.json:
        print(json.dumps(result, indent=2))
