"""Two real vLLM servers on the CPU behind the real Envoy and the picker, and the simulated engine held against them.

Not among the tests that `make test` collects: `make test-vllm` installs vLLM (`install.py`) and runs this, in about
three minutes and 4 GB of memory.
"""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import numpy as np
import pytest
import pytest_asyncio
import zmq
import zmq.asyncio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from epp.engine.kv_events import KvEventsConfig
from epp.engine.options import EngineOptions
from epp.engine.server import VERSION, EngineServer
from epp.envoy.options import EnvoyOptions, parse_address
from epp.envoy.process import LOOPBACK, EnvoyProcess
from tests.e2e.harness import Picker, free_port, until
from tests.vllm import install

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

HOME = Path(__file__).parents[2] / ".vllm"
STARTING = 300.0
MODEL = "llama-8b"
BLOCK = 32
BLOCKS = 80
MANY_BLOCKS = 1600
CONTEXT = 2048
SEQS = 16
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # has /reset_prefix_cache
}


class RealEngine:
    """`vllm serve` as a process, with so many KV blocks.

    Attributes:
        address: `ip:port`.
        events: where it publishes KV events.
    """

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self.address = f"127.0.0.1:{free_port()}"
        self.events = f"tcp://127.0.0.1:{free_port()}"
        self._process: asyncio.subprocess.Process | None = None
        self._log = HOME / f"{self.address}.log"

    def command(self) -> list[str]:
        """The command line; vLLM binds the events' socket only if the endpoint has a star."""
        endpoint = self.events.replace("127.0.0.1", "*")
        return [
            *(str(HOME / "bin" / "vllm"), "serve", f"./{install.MODEL}", "--load-format", "dummy"),
            *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", self.address.rpartition(":")[2]),
            *("--max-model-len", str(CONTEXT), "--enforce-eager", "--dtype", "float32", "--enable-prefix-caching"),
            *("--block-size", str(BLOCK), "--num-gpu-blocks-override", str(self._blocks), "--max-num-seqs", str(SEQS)),
            "--enable-prompt-tokens-details",
            *("--kv-events-config", json.dumps({"enable_kv_cache_events": True, "endpoint": endpoint})),
        ]

    async def __aenter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self.command(),
                cwd=HOME,
                env={**os.environ, **ENVIRONMENT},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    async def ready(self) -> None:
        """Waits until it serves."""
        await until(self._healthy, f"vLLM on {self.address} serves", STARTING)

    async def _healthy(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self._log.read_text()[-4000:]
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://{self.address}/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def __aexit__(self, *_: object) -> None:
        """Ends it with all of its processes, which are a group of their own."""
        assert self._process is not None
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), 20.0)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        self._log.unlink(missing_ok=True)


@dataclass(frozen=True)
class Gateway:
    """Two real engines and the picker behind two Envoys: one in the standalone mode, one that shows the responses."""

    engines: list[RealEngine]
    picker: Picker
    envoy: str
    showing: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[Gateway]:
    if not (HOME / "bin" / "vllm").exists():
        pytest.skip("no vLLM in .vllm: run `make test-vllm`, which installs it")
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(RealEngine(blocks)) for blocks in (BLOCKS, MANY_BLOCKS)]
        await asyncio.gather(*(engine.ready() for engine in engines))
        addresses = [engine.address for engine in engines]
        picker = await stack.enter_async_context(Picker(addresses))
        endpoints = tuple(parse_address(address, "engine") for address in addresses)
        standalone = EnvoyOptions(listen=LOOPBACK, endpoints=endpoints, picker=(picker.address,))
        both = (standalone, replace(standalone, mode="full-duplex"))
        envoys = [await stack.enter_async_context(EnvoyProcess(options)) for options in both]
        yield Gateway(engines, picker, *(str(envoy.address) for envoy in envoys))


@pytest_asyncio.fixture(loop_scope="module")
async def simulated() -> AsyncIterator[EngineServer]:
    """The same engine, simulated; vLLM keeps one of its blocks for itself."""
    options = EngineOptions(
        block_size=BLOCK,
        blocks=BLOCKS - 1,
        max_model_len=CONTEXT,
        max_num_seqs=SEQS,
        kv_events=KvEventsConfig(endpoint="tcp://127.0.0.1:*"),
    )
    async with EngineServer(options) as engine:
        yield engine


def say(result: str) -> None:
    """What `make test-vllm` shows besides dots."""
    print(f"\n    {result}")  # noqa: T201


def client(address: str) -> aiohttp.ClientSession:
    """A client whose every request has a deadline."""
    return aiohttp.ClientSession(f"http://{address}", timeout=aiohttp.ClientTimeout(total=60.0))


async def post(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with http.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def page(address: str) -> dict[str, Metric]:
    async with client(address) as http, http.get("/metrics") as response:
        return {family.name: family for family in text_string_to_metric_families(await response.text())}


async def counted(address: str, name: str) -> float:
    """A counter's value."""
    family = (await page(address))[f"vllm:{name}"]
    return sum(sample.value for sample in family.samples if sample.name.endswith("_total"))


def chat(text: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "ignore_eos": True, **options}


async def test_prefix_hits_grow_on_the_engine_that_has_the_prefix(gateway: Gateway) -> None:
    """Two long prompts, each asked for four times: each has its engine, and only there are there hits."""
    addresses = [engine.address for engine in gateway.engines]
    homes = []
    async with client(gateway.envoy) as http:
        for topic in ("rivers", "mountains"):
            before = [await counted(address, "prefix_cache_hits") for address in addresses]
            cached = []
            for turn in range(4):
                text = f"Everything about {topic}, at length: " + f"{topic} and more {topic}, " * 40 + f"turn {turn}"
                answer = await post(http, CHAT, chat(text))
                cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
            grown = [
                await counted(address, "prefix_cache_hits") - was
                for address, was in zip(addresses, before, strict=True)
            ]
            assert cached[0] < BLOCK * 2, "nobody has it yet"
            assert all(hit > 200 for hit in cached[1:])
            assert sum(cached) == sum(grown)
            (home,) = [index for index, hits in enumerate(grown) if hits]
            homes.append(home)
    say(f"two prompts, asked for four times each, went to engines {homes}")


async def test_the_picker_sees_what_runs(gateway: Gateway) -> None:
    """What the engines' pages say arrives in the picker's: requests that run, and blocks in use."""
    async with client(gateway.envoy) as http:
        calls = [asyncio.create_task(post(http, CHAT, chat(f"call {number}", max_tokens=1500))) for number in range(4)]

        async def seen() -> bool:
            sums = await gateway.picker.metrics()
            running = sums["llm_d_epp_average_running_requests"]
            return running == 2.0 and sums["llm_d_epp_average_kv_cache_utilization"] > 0.0

        await until(seen, "two requests run on each engine")
        answers = await asyncio.gather(*calls)
        assert all(answer["usage"]["completion_tokens"] == 1500 for answer in answers)
    await until(gateway.picker.idle, "nothing is charged any more")
    assert (await gateway.picker.metrics())["llm_d_epp_ready_endpoints"] == 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_answers_and_their_usage(gateway: Gateway, streamed: bool) -> None:
    """The client gets the answer whole, and the picker reads the usage where Envoy shows it the response."""
    body = chat(f"Tell me something, {streamed}, " + "and about the sea, " * 50, max_tokens=40)
    if streamed:
        body.update(stream=True, stream_options={"include_usage": True})
    before = await gateway.picker.metrics()
    used = []
    for _ in range(2):
        async with client(gateway.showing) as http, http.post(CHAT, json=body) as response:
            assert response.status == 200
            text = await response.text()
        if streamed:
            assert response.headers["content-type"].startswith("text/event-stream")
            *_, last, done, rest = text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            text = last.removeprefix("data: ")
        used.append(json.loads(text)["usage"])
        assert used[-1]["completion_tokens"] == 40
    assert used[1]["prompt_tokens_details"]["cached_tokens"] > 0
    await until(gateway.picker.idle, "nothing is charged any more")
    after = await gateway.picker.metrics()
    for name, values in (
        ("output_tokens", [usage["completion_tokens"] for usage in used]),
        ("input_tokens", [usage["prompt_tokens"] for usage in used]),
        ("cached_tokens", [usage["prompt_tokens_details"]["cached_tokens"] for usage in used]),
    ):
        key = f"llm_d_epp_request_{name}_sum"
        assert after[key] - before.get(key, 0.0) == sum(values), name


async def test_the_simulated_page_has_every_family_and_label(gateway: Gateway, simulated: EngineServer) -> None:
    """And nothing else. What HTTP counts by path and status is there for those that have come: both had these two."""
    pages = []
    for address in (gateway.engines[0].address, simulated.address):
        async with client(address) as http:
            await post(http, CHAT, chat("Hello."))
            await post(http, COMPLETIONS, {"prompt": "Hello.", "max_tokens": 2})
        pages.append(await page(address))
    real, ours = pages
    assert list(ours) == list(real)
    for name, family in real.items():
        assert ours[name].type == family.type
        assert series(ours[name]) == series(family), name
    say(f"{len(real)} families, {sum(len(family.samples) for family in real.values())} samples")


def series(family: Metric) -> list[tuple[str, ...]]:
    """Samples by name and labels, with the values of those that are the same everywhere."""
    own = {"le", "source", "finished_reason", "engine", "reason", "sleep_state", "generation", "handler", "method"}
    return sorted(
        (sample.name, *sorted(f"{k}={v if k in own else '*'}" for k, v in sample.labels.items()))
        for sample in family.samples
        if sample.labels.get("handler", CHAT) in (CHAT, COMPLETIONS) and sample.labels.get("status", "2xx") == "2xx"
    )


@dataclass(frozen=True)
class Played:
    """What an engine did with the prompts: tokens found in the cache, and the events batch by batch."""

    cached: list[int]
    batches: list[list[dict[str, Any]]]

    def tree(self) -> list[list[tuple[str, list[int]]]]:
        """The events with each block named by its first appearance: equal for equal histories."""
        names: dict[int | None, int] = {None: 0}
        return [
            [(event["type"], [names.setdefault(block, len(names)) for block in blocks(event)]) for event in batch]
            for batch in self.batches
        ]


def blocks(event: dict[str, Any]) -> list[int | None]:
    stored = [event["parent_block_hash"]] if event["type"] == "BlockStored" else []
    return [*stored, *event.get("block_hashes", [])]


async def play(address: str, events: str, seed: int, requests: int) -> Played:
    """Chats that share system prompts and go on with what was answered, one request after the other.

    They need several times the cache, so that blocks are evicted all the time.
    """
    rng = random.Random(seed)
    systems = [[rng.randrange(4, 4000) for _ in range(rng.randint(60, 300))] for _ in range(4)]
    chats: list[list[int]] = []
    cached: list[int] = []
    context = zmq.asyncio.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.set_hwm(0)
        socket.subscribe(b"")
        socket.connect(events)
        async with client(address) as http:
            await connected(http, socket)
            assert await post(http, "/reset_prefix_cache", {}) == {"success": True}
            for _ in range(requests):
                if not chats or rng.random() < 0.5:
                    chats.append(list(rng.choice(systems)))
                number = rng.randrange(len(chats))
                prompt = [*chats[number], *(rng.randrange(4, 4000) for _ in range(rng.randint(1, 80)))]
                length = rng.randint(1, 60)
                if len(prompt) + length > CONTEXT:
                    continue
                body = {"prompt": prompt, "max_tokens": length, "ignore_eos": True, "return_token_ids": True}
                answer = await post(http, COMPLETIONS, body)
                cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
                chats[number] = prompt + answer["choices"][0]["token_ids"]
        return Played(cached, await drained(socket))
    finally:
        context.destroy(linger=0)


async def connected(http: aiohttp.ClientSession, socket: zmq.asyncio.Socket) -> None:
    """Asks until the subscriber hears of it, and then forgets all that it has heard."""

    async def hears() -> bool:
        prompt = [random.randrange(4, 4000) for _ in range(2 * BLOCK)]
        await post(http, COMPLETIONS, {"prompt": prompt, "max_tokens": 1})
        return bool(await socket.poll(200))

    await until(hears, "the subscriber hears")
    await drained(socket)


async def drained(socket: zmq.asyncio.Socket) -> list[list[dict[str, Any]]]:
    """The batches until there are no more for a while."""
    batches = []
    while await socket.poll(500):
        _, _, payload = await socket.recv_multipart()
        batches.append(msgspec.msgpack.decode(payload)[1])
    return batches


@pytest.mark.parametrize("seed", range(3))
async def test_the_simulated_engine_reuses_the_same_blocks(
    gateway: Gateway, simulated: EngineServer, seed: int
) -> None:
    """For each request as many cached tokens, and for each step the same stores and removals in the same order."""
    real_engine = gateway.engines[0]
    real = await play(real_engine.address, real_engine.events, seed, 60)
    ours = await play(simulated.address, simulated.publishers[0].endpoint, seed, 60)
    assert ours.cached == real.cached
    kinds = [kind for batch in real.tree() for kind, _ in batch]
    assert ours.tree() == real.tree()
    assert sum(map(bool, real.cached)) > 10
    assert kinds.count("BlockRemoved") > 50
    say(
        f"{len(real.cached)} requests, {sum(real.cached)} tokens cached, {len(real.batches)} messages, "
        f"{kinds.count('BlockStored')} stores, {kinds.count('BlockRemoved')} removals: equal"
    )


async def test_requests_that_come_together_share_their_prompt(gateway: Gateway, simulated: EngineServer) -> None:
    """Equal prompts at the same time: the first computes it, the others find what it computes."""
    for address in (gateway.engines[0].address, simulated.address):
        prompt = [random.Random(7).randrange(4, 4000) for _ in range(500)]
        async with client(address) as http:
            assert await post(http, "/reset_prefix_cache", {}) == {"success": True}
            body = {"prompt": prompt, "max_tokens": 2, "ignore_eos": True}
            answers = await asyncio.gather(*(post(http, COMPLETIONS, body) for _ in range(4)))
        cached = sorted(answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
        assert cached == [0, 480, 480, 480]


TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat("Hello."), id="chat"),
        pytest.param(CHAT, chat("Hello.", n=2, temperature=0.7), id="several answers"),
        pytest.param(CHAT, chat("Hello.", return_token_ids=True), id="token ids"),
        pytest.param(COMPLETIONS, {"prompt": "Hello.", "max_tokens": 3, "ignore_eos": True}, id="completion"),
        pytest.param(COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 3, "ignore_eos": True}, id="several prompts"),
        pytest.param("/tokenize", {"prompt": "Hello there."}, id="tokenize"),
        pytest.param("/detokenize", {"tokens": [70, 71]}, id="detokenize"),
    ],
)
async def test_answers_have_the_same_form(
    gateway: Gateway, simulated: EngineServer, path: str, body: dict[str, Any]
) -> None:
    forms = []
    for address in (gateway.engines[0].address, simulated.address):
        async with client(address) as http:
            forms.append(form(await post(http, path, body)))
    real, ours = forms
    assert ours == real


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_streams_have_the_same_form(gateway: Gateway, simulated: EngineServer, path: str) -> None:
    body = chat("Hello.") if path == CHAT else {"prompt": "Hello.", "max_tokens": 8, "ignore_eos": True}
    forms = []
    for address in (gateway.engines[0].address, simulated.address):
        async with client(address) as http:
            streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
            async with http.post(path, json=streamed) as response:
                events = (await response.text()).split("\n\n")[:-2]
        forms.append({json.dumps(form(json.loads(event.removeprefix("data: ")))) for event in events})
    real, ours = forms
    assert ours == real


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(CHAT, chat("Hello.", model="gpt"), id="unknown model"),
        pytest.param(CHAT, chat("Hello.", max_tokens=5000), id="longer than the context"),
        pytest.param(CHAT, {"messages": []}, id="no messages"),
        pytest.param(CHAT, chat("Hello.", n=0), id="no answers"),
        pytest.param(CHAT, chat("Hello.", tool_choice="required"), id="a call without tools"),
    ],
)
async def test_refusals_have_the_same_form(
    gateway: Gateway, simulated: EngineServer, path: str, body: dict[str, Any]
) -> None:
    seen = []
    for address in (gateway.engines[0].address, simulated.address):
        async with client(address) as http, http.post(path, json=body) as response:
            error = (await response.json())["error"]
            seen.append((response.status, error["type"], error["code"], sorted(error)))
    real, ours = seen
    assert ours == real


def form(value: Any) -> Any:
    """A JSON value's keys in order and its types; of a list, those of its first item; numbers are numbers."""
    if isinstance(value, dict):
        return [[key, form(item)] for key, item in value.items()]
    if isinstance(value, list):
        return [form(item) for item in value[:1]]
    return type(value).__name__


async def test_the_version_is_the_one_that_is_modelled(gateway: Gateway) -> None:
    async with client(gateway.engines[0].address) as http, http.get("/version") as response:
        assert (await response.json())["version"].startswith(VERSION)
    assert install.VERSION == VERSION


async def test_who_leaves_early_is_not_counted(gateway: Gateway, simulated: EngineServer) -> None:
    """A client that goes away leaves no trace in an engine's histograms of whole requests."""
    for address in (gateway.engines[0].address, simulated.address):
        before = await whole(address)
        tokens = await counted(address, "generation_tokens")
        body = chat("Hello.", max_tokens=1900, stream=True)
        async with client(address) as http, http.post(CHAT, json=body) as response:
            await response.content.readany()
        await until(lambda address=address: alone(address), "the request is gone")
        assert 0 < await counted(address, "generation_tokens") - tokens < 1900
        assert await whole(address) == before


async def alone(address: str) -> bool:
    """Whether nothing runs."""
    return all(sample.value == 0 for sample in (await page(address))["vllm:num_requests_running"].samples)


async def whole(address: str) -> dict[str, list[float]]:
    """What is counted of whole requests."""
    families = await page(address)
    return {
        name: [s.value for s in families[f"vllm:{name}"].samples if s.name.endswith(("_total", "_count"))]
        for name in ("request_success", "e2e_request_latency_seconds", "request_params_n")
    }


async def test_the_time_of_a_step_has_the_form_of_the_models(gateway: Gateway) -> None:
    """base + a * prefill tokens + b * decoding sequences + c * tokens of context, fitted to what a real engine takes.

    Its own clock counts: tokens reach the client in bunches. The fit minimises relative errors. What is asserted is
    loose: the machine has other work, and two cores.
    """
    rng = random.Random(3)
    address = gateway.engines[1].address
    rows: list[tuple[float, int, int, int]] = []
    async with client(address) as http:

        async def mean(histogram: str, prompts: list[list[int]], length: int) -> float:
            """Of what the engine observes while it answers these prompts, all at once."""
            before = await observed(address, histogram)
            bodies = [{"prompt": prompt, "max_tokens": length, "ignore_eos": True} for prompt in prompts]
            await asyncio.gather(*(post(http, COMPLETIONS, body) for body in bodies))
            count, total = await observed(address, histogram)
            return (total - before[1]) / (count - before[0])

        def prompts(count: int, length: int) -> list[list[int]]:
            return [[rng.randrange(4, 4000) for _ in range(length)] for _ in range(count)]

        for prompt in (200, 400, 800, 1200, 1600, 2000):
            times = [await mean("request_prefill_time_seconds", prompts(1, prompt), 1) for _ in range(4)]
            rows.append((min(times), prompt, 0, 0))
        for batch in (1, 4, 8, 16):
            for context in (50, 500, 1500):
                cached = prompts(batch, context)
                await mean("inter_token_latency_seconds", cached, 2)
                times = [await mean("inter_token_latency_seconds", cached, 60) for _ in range(2)]
                rows.append((min(times), 0, batch, batch * (context + 30)))
    measured = np.array([row[0] for row in rows])
    terms = np.array([(1, *row[1:]) for row in rows]) / measured[:, None]
    cost, *_ = np.linalg.lstsq(terms, np.ones(len(rows)), rcond=None)
    errors = np.abs(terms @ cost - 1)
    say(
        f"base {cost[0] * 1e3:.1f} ms, {cost[1] * 1e6:.0f} us a prefill token, {cost[2] * 1e6:.0f} us a sequence, "
        f"{cost[3] * 1e9:.0f} ns a token of context: off by {np.median(errors):.0%} in the median of {len(rows)}, "
        f"by {errors.max():.0%} at most"
    )
    assert np.median(errors) < 0.25


async def observed(address: str, histogram: str) -> tuple[float, float]:
    """Count and sum of a histogram."""
    samples = {sample.name: sample.value for sample in (await page(address))[f"vllm:{histogram}"].samples}
    return samples[f"vllm:{histogram}_count"], samples[f"vllm:{histogram}_sum"]
