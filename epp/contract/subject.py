"""A plugin alone: loaded as a configuration would load it, with nothing around it but what it needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from epp.contract.manual import example
from epp.plugin import Candidates, Context, Pool, Request, Router
from epp.schedule import produce
from epp.schedule.guard import Unguarded
from epp.settings import PluginClass, Registry, Resolved, resolve
from epp.settings.models import API_VERSION, KIND
from epp.settings.registry import is_file
from epp.testing import context


class UnknownType(LookupError):
    """There is no such type."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is checked.

    Attributes:
        found: the class.
        resolved: a configuration with this plugin, and the producers and defaults that the loader adds.
        plugin: the instance.
    """

    found: PluginClass
    resolved: Resolved
    plugin: Any

    @classmethod
    def load(cls, type_name: str, parameters: Mapping[str, Any] | None = None, pool: Pool | None = None) -> "Subject":
        """Loads a plugin by its type, or by its file (`my_scorer.py`, `my_scorer.py:MyScorer`).

        Args:
            type_name: the type or file; a file is relative to the working directory.
            parameters: as the configuration has them; those of the manual's example if None.
            pool: what its context has; an empty one if None.

        Raises:
            ConfigError: it can't be loaded.
            UnknownType: the type is not registered, and no file.
        """
        registry = Registry.installed()
        if type_name not in registry and not is_file(type_name):
            raise UnknownType(type_name)
        found = registry.find(type_name, Path.cwd())
        config = example(found.manual) if parameters is None else {}
        entries = config.get("plugins") or [{"type": type_name, "parameters": dict(parameters or {})}]
        mine = next((entry for entry in entries if _same(entry.get("type", ""), type_name)), None)
        if mine is None:
            mine, config = {"type": type_name}, {}
        if "profile handler" not in found.kinds or not config:  # a handler needs the profiles of its example
            config = {"plugins": [mine]}
        mine["type"], mine["name"] = type_name, mine.get("name", found.name)
        if "decider" in found.kinds:  # what it reads is written where a handler asks for it
            config = _asked_by_a_handler(mine)
        text = json.dumps({"apiVersion": API_VERSION, "kind": KIND, **config})
        shared = Pool() if pool is None else pool

        def of(name: str) -> Context:
            return context(name, pool=shared)

        resolved = resolve(text, Path.cwd() / "contract", registry, of)
        return cls(found, resolved, resolved.instances[mine["name"]].plugin)

    @property
    def router(self) -> Router:
        """The configuration around the plugin."""
        return self.resolved.router

    def produce(self, request: Request, c: Candidates, *, own: bool = True) -> Candidates:
        """The candidates with what producers write, this plugin too, if it is one and `own` is true."""
        producers = tuple(each for each in self.router.producers if own or each.plugin is not self.plugin)
        produce(replace(self.router, producers=producers), request, c, Unguarded())
        return c


def _asked_by_a_handler(decider: dict[str, Any]) -> dict[str, Any]:
    handler = {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": decider["name"]}}}
    return {"plugins": [decider, handler], "schedulingProfiles": [{"name": "decode"}]}


def _same(written: str, asked_for: str) -> bool:
    if not is_file(asked_for):
        return written == asked_for
    file, _, _ = asked_for.partition(".py")
    return written.partition(".py")[0].rpartition("/")[2] == file.rpartition("/")[2]
