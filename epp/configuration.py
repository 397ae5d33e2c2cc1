"""The configuration in force, and how the next one takes its place.

On SIGHUP, and when its file or a plugin's file changes, the configuration is loaded beside the one in force: built
whole, with what plugins keep handed on (`epp.states`), and put in its place by one assignment between two requests. If
anything fails, all stays as it was. A request goes to its end with the configuration that it began with; when the last
one has, the plugins of that configuration are closed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from epp.errors import ConfigError
from epp.files import Signature, at_rest, signature
from epp.hooks import Hooks
from epp.observe.series import Family
from epp.options import ServeOptions
from epp.plugin import Context, Router, plugins_of
from epp.settings import Registry, Resolved, build, defaults, prepare, read_file, show
from epp.settings.document import Document
from epp.states import States

log = logging.getLogger(__name__)

Signatures = Mapping[Path, Signature | None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the text comes from: a file, or else a text with a few words about its origin."""

    file: Path | None = None
    text: str = ""
    origin: str = ""

    @classmethod
    def of(cls, options: ServeOptions) -> "Source":
        """What the command line says."""
        if options.config_text:
            return cls(text=options.config_text, origin="--config-text")
        if options.config_file:
            return cls(Path(options.config_file))
        return cls(text=defaults.TEXT, origin=defaults.ORIGIN)

    def read(self) -> tuple[str, str | Path]:
        """The text, and its origin for the loader.

        Raises:
            ConfigError: the file can't be read.
        """
        if self.file is None:
            return self.text, self.origin
        try:
            return read_file(self.file), self.file
        except ConfigError as error:
            raise ConfigError(f"--config-file {error}") from error


@dataclass(frozen=True, slots=True)
class Watching:
    """How often is looked whether files have changed, and how long a changed one must be left alone; seconds."""

    poll: float = 1.0
    settle: float = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One configuration that is or was in force; `since` is seconds since the epoch."""

    number: int
    resolved: Resolved
    hooks: Hooks
    states: States
    since: float


class Configuration:
    """Loads the configuration, and replaces it for as long as `start` has been called and `stop` has not.

    Args:
        source: where it comes from.
        context: makes a plugin's context from its name and the states of its configuration.
        reloads: the family that counts loads beside the one in force, by result.
        swap: puts a configuration in force, by one assignment; if it raises, all is as it was.
        ended: told of a configuration whose last request has ended; its plugins have been closed.
        wall: seconds since the epoch.
        watching: see `Watching`.

    Raises:
        ConfigError: it can't be loaded.
    """

    def __init__(
        self,
        source: Source,
        context: Callable[[str, States], Context],
        *,
        reloads: Family,
        swap: Callable[[Hooks], None],
        wall: Callable[[], float],
        ended: Callable[[Router], None] = lambda _: None,
        watching: Watching = Watching(),
    ) -> None:
        self._source, self._context, self._wall, self._watching = source, context, wall, watching
        self._results = {result: reloads.value(result) for result in ("ok", "failed")}
        self._swap, self._ended = swap, ended
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._signatures: Signatures = {}
        self._last: Mapping[str, Any] | None = None
        self._earlier: list[Generation] = []
        self.now = self._build(self._prepare(), States(), 1)

    def __repr__(self) -> str:
        return f"<Configuration {self.now.number}: {self.router.origin}>"

    @property
    def router(self) -> Router:
        """What is in force."""
        return self.now.hooks.router

    @property
    def hooks(self) -> Hooks:
        """The same, looked up for requests."""
        return self.now.hooks

    def start(self) -> None:
        """Begins to watch the files and to listen to `ask`."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends that, and closes the plugins."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for generation in (*self._earlier, self.now):
            _close(generation.hooks.router)

    def ask(self) -> None:
        """Has the configuration loaded again soon, whether or not a file has changed."""
        self._asked.set()

    async def reload(self, why: str) -> bool:
        """Loads the configuration again and puts it in force; False if it can't be, and the old one stays."""
        following: Generation | None = None
        try:
            prepared = await asyncio.to_thread(self._prepare)
            following = self._build(prepared, States(self.now.states), self.now.number + 1)
            self._swap(following.hooks)
        except Exception as error:  # noqa: BLE001 (a plugin's own code may raise anything)
            self._note("failed", why, str(error) if isinstance(error, ConfigError) else repr(error))
            log.error("%s: the configuration stays as it was, number %d: %s", why, self.now.number, error)
            if following is not None:
                _close(following.hooks.router)
            return False
        self._replace(following)
        self._note("ok", why, "")
        for warning in self.router.warnings:
            log.warning("%s", warning)
        log.info("%s: configuration %d is in force: %s", why, self.now.number, self.router.origin)
        return True

    def shown(self) -> Mapping[str, Any]:
        """For `/debug/config`."""
        return {
            "generation": self.now.number,
            "origin": self.router.origin,
            "since": self.now.since,
            "streams": self.hooks.users.count,
            "earlier": [{"generation": old.number, "streams": old.hooks.users.count} for old in self._earlier],
            "reloads": {result: int(count.value) for result, count in self._results.items()},
            "last_reload": self._last,
            "watched": [str(file) for file in self._signatures],
            "warnings": self.router.warnings,
            "effective": show.effective(self.now.resolved),
        }

    # --- loading

    def _prepare(self) -> tuple[Document, str | Path, Registry]:
        """The part that takes long; in any thread."""
        file = self._source.file
        seen: dict[Path, Signature | None] = {} if file is None else {file: signature(file)}
        registry = Registry.installed()
        try:
            text, origin = self._source.read()
            return prepare(text, origin, registry), origin, registry
        finally:
            # Those of a load that fails, too: it is tried again when they change.
            self._signatures = seen | registry.files

    def _build(self, prepared: tuple[Document, str | Path, Registry], states: States, number: int) -> Generation:
        """The part that makes plugins; in the event loop's thread, since they may use it."""
        document, origin, registry = prepared
        resolved = build(document, origin, registry, lambda name: self._context(name, states))
        return Generation(number, resolved, Hooks.of(resolved.router), states, self._wall())

    def _replace(self, following: Generation) -> None:
        old, self.now = self.now, following
        self._earlier.append(old)
        following.states.settle()
        old.hooks.users.no_more(partial(self._end, old))

    def _end(self, old: Generation) -> None:
        self._earlier.remove(old)
        _close(old.hooks.router)
        self._ended(old.hooks.router)

    def _note(self, result: str, why: str, error: str) -> None:
        self._results[result].inc()
        self._last = {"result": result, "why": why, "at": self._wall(), "error": error or None}

    # --- watching

    async def _run(self) -> None:
        while True:
            why = await self._change()
            await self.reload(why)

    async def _change(self) -> str:
        """Waits until there is a reason to load; says which."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._watching.poll)
            if self._asked.is_set():
                self._asked.clear()
                return "asked to"
            found = await self._look()
            if found != self._signatures:
                changed = [file.name for file in found if found[file] != self._signatures[file]]
                await at_rest(self._look, self._watching.settle)
                return f"{', '.join(changed)} has changed"

    async def _look(self) -> Signatures:
        files = tuple(self._signatures)
        return await asyncio.to_thread(lambda: {file: signature(file) for file in files})


def _close(router: Router) -> None:
    """Closes the plugins that have something to close."""
    for plugged in plugins_of(router):
        close = getattr(plugged.plugin, "close", None)
        if callable(close):
            try:
                close()
            except Exception:
                log.exception("plugin %s could not be closed", plugged.name)
