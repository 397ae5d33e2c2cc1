"""What the tests of scheduling are made of: a guard that notes faults, plugins of a line, profiles of those."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from epp.plugin import Candidates, Plugged, Profile, Router
from epp.schedule import Guard


class Noting:
    """A guard that lets nothing through and notes what it has caught."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str, str]] = []

    def call(self, point: str, plugged: Plugged, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception:  # noqa: BLE001 (a guard)
            self.faults.append((point, plugged.name, "raised"))
            return None

    async def wait(self, point: str, plugged: Plugged, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        raise NotImplementedError

    def fault(self, point: str, plugged: Plugged, fault: str, detail: str) -> None:
        self.faults.append((point, plugged.name, fault))


def guard() -> Guard:
    return Noting()


class Scoring:
    """A scorer that is a function of the candidates, or always says the same."""

    def __init__(self, says: Any) -> None:
        self._says = says

    def score(self, request: Any, c: Candidates) -> Any:
        return self._says(c) if callable(self._says) else np.array(self._says, dtype=np.float64)


class Keeping:
    """A filter that keeps the endpoints of these names."""

    def __init__(self, *names: str, load_based: bool = False) -> None:
        self._names = names
        self.load_based = load_based

    def keep(self, request: Any, c: Candidates) -> Any:
        return np.array([endpoint.name in self._names for endpoint in c.endpoints], dtype=bool)


class Best:
    """A picker: everybody, best first, of equals the first."""

    def pick(self, request: Any, c: Candidates, totals: Any) -> Any:
        return np.argsort(-totals, kind="stable")


class Handling:
    """A profile handler that is a function."""

    def __init__(self, decide: Callable[..., Any]) -> None:
        self._decide = decide

    def decide(self, request: Any, run: Any) -> Any:
        return self._decide(run)


def plugged(plugin: Any, name: str = "") -> Plugged:
    return Plugged(name or type(plugin).__name__.lower(), "test", plugin)


def profile(
    *scorers: tuple[Any, float], filters: Sequence[Any] = (), picker: Any = None, name: str = "default"
) -> Profile:
    """A profile of these plugins, called `filter-0`, `scorer-0` and so on."""
    return Profile(
        name,
        tuple(plugged(each, f"filter-{number}") for number, each in enumerate(filters)),
        tuple((plugged(each, f"scorer-{number}"), weight) for number, (each, weight) in enumerate(scorers)),
        plugged(picker or Best(), "picker"),
    )


def router(decide: Callable[..., Any], *profiles: Profile) -> Router:
    """A router whose handler is that function of `run`."""
    return Router({each.name: each for each in profiles}, plugged(Handling(decide), "handler"), parsers=())


def names(endpoints: Sequence[Any]) -> list[str]:
    return [endpoint.name for endpoint in endpoints]
