"""The processes of the demo: simulated engines, `epp serve` and a real Envoy, on free ports of this machine.

Each child writes into a log file of its own and runs in a session of its own, so that Ctrl-C reaches only the demo,
which then ends its children in order, however it ends itself.
"""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from epp.demo.load import MODEL
from epp.envoy.options import Address, EnvoyOptions, parse_address
from epp.envoy.process import EnvoyProcess
from epp.errors import EppError

READY = 60.0
_POLL = 0.05
_STOP = 10.0
_TAIL = 15
_LISTENING = re.compile(r"http://(\S+)\n")
_SERVING = re.compile(r"serving: ext_proc on (\d+) .* metrics on \S+:(\d+),")

RANDOM = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: random-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: random-picker
"""


class StackError(EppError):
    """A process of the demo did not start; the message has the end of its log and the place of all of it."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What is started.

    Attributes:
        engines: how many of them.
        profile: of the engines.
        blocks: KV blocks of each.
        picker: further arguments of `epp serve`.
        logs: an existing folder for the children's output.
    """

    engines: int
    profile: str
    blocks: int
    picker: tuple[str, ...]
    logs: Path


class Child:
    """One process of `epp`, from start to end."""

    def __init__(self, name: str, arguments: list[str], log: Path) -> None:
        """Prepares; nothing runs yet."""
        self.name = name
        self.log = log
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Starts the process; it is not ready yet."""
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "epp", *self._arguments), stdout=log, stderr=log, start_new_session=True
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process with SIGTERM, and with SIGKILL when that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def until(self, ready: Callable[[], Awaitable[str]]) -> str:
        """Asks again and again until there is an answer that isn't empty.

        Raises:
            StackError: the process has ended, or the answer takes too long.
        """
        try:
            async with asyncio.timeout(READY):
                while not (answer := await ready()):
                    if self._process is None or self._process.returncode is not None:
                        raise StackError(f"{self.name} ended while it started\n{self.tail()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise StackError(f"{self.name} isn't ready after {READY:g} s\n{self.tail()}") from None
        return answer

    def tail(self) -> str:
        """The end of the log and where the rest is."""
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL:]
        return "\n".join([*(f"  {line}" for line in lines), f"its output: {self.log}"])


class Stack:
    """Engines, picker and Envoy: `async with Stack(options) as stack: ... stack.url`.

    Attributes:
        engines: the engines' addresses.
        metrics: the URL of the picker's metrics port.
        url: the URL of Envoy's listener.
    """

    def __init__(self, options: StackOptions) -> None:
        """Prepares; nothing runs yet."""
        self.engines: tuple[str, ...] = ()
        self.metrics = self.url = ""
        self._options = options
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Starts everything and waits until a request gets through.

        Raises:
            StackError: a process did not start.
            EnvoyError: Envoy did not start.
            ConfigError: there is no Envoy.
        """
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends Envoy, the picker and the engines."""
        await self._exits.aclose()

    async def _start(self) -> None:
        http = await self._exits.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)))
        engines = [await self._engine(number) for number in range(self._options.engines)]
        self.engines = tuple([await engine.until(partial(_found, engine, _LISTENING)) for engine in engines])
        picker = await self._picker()
        grpc, metrics = (await picker.until(partial(_found, picker, _SERVING))).split()
        self.metrics = f"http://127.0.0.1:{metrics}"
        await picker.until(partial(_ready, http, self.metrics, len(engines)))
        envoy = await self._envoy(Address("127.0.0.1", int(grpc)))
        self.url = f"http://{envoy.address}"
        await picker.until(partial(_answers, http, f"{self.url}/v1/models"))

    async def _engine(self, number: int) -> Child:
        options = self._options
        arguments = ["engine", "--port", "0", "--model", MODEL, "--profile", options.profile, "--seed", str(number)]
        child = Child(f"engine {number}", [*arguments, "--blocks", str(options.blocks)], self._log(f"engine-{number}"))
        return await self._exits.enter_async_context(child)

    async def _picker(self) -> Child:
        # free ports that the picker takes itself: one that is looked for here may be gone when the picker binds it
        ports = ("--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--metrics-bind-address=127.0.0.1")
        plain = ("--grpc-bind-address=127.0.0.1", "--secure-serving=false", "--metrics-endpoint-auth=false")
        arguments = ["serve", "--endpoints", ",".join(self.engines), "--drain-timeout=0s", *ports, *plain]
        child = Child("the picker (epp serve)", [*arguments, *self._options.picker], self._log("picker"))
        return await self._exits.enter_async_context(child)

    async def _envoy(self, picker: Address) -> EnvoyProcess:
        options = EnvoyOptions(
            listen=Address("127.0.0.1", 0),
            picker=(picker,),
            endpoints=tuple(parse_address(engine, "engine") for engine in self.engines),
            # without the picker nothing is to be answered, or the demo would show Envoy's own balancing
            failure_mode_allow=False,
        )
        return await self._exits.enter_async_context(EnvoyProcess(options))

    def _log(self, name: str) -> Path:
        return self._options.logs / f"{name}.log"


async def _found(child: Child, pattern: re.Pattern[str]) -> str:
    """What the groups of a pattern match in a child's log, with spaces between; empty if it isn't there yet."""
    found = pattern.search(child.log.read_text(errors="replace"))
    return " ".join(found.groups()) if found else ""


async def _ready(http: aiohttp.ClientSession, metrics: str, endpoints: int) -> str:
    """The picker's page, once it counts all engines as ready."""
    page = await _answers(http, f"{metrics}/metrics")
    ready = [line for line in page.splitlines() if line.startswith("llm_d_epp_ready_endpoints{")]
    return page if any(float(line.rpartition(" ")[2]) >= endpoints for line in ready) else ""


async def _answers(http: aiohttp.ClientSession, url: str) -> str:
    try:
        async with http.get(url) as response:
            return await response.text() if response.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""
