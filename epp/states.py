"""What plugins keep from one configuration to the next: a prefix index, sessions, averages.

Each configuration has its own `States`, the successor of the one before. Who asks for a state under a key that the one
before has gets that very object; what nobody asks for goes with the configuration that it was for.
"""

import sys
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class States:
    """The states of one configuration: `kept` has them by key.

    Args:
        before: those of the configuration that this one is to replace.
    """

    def __init__(self, before: "States | None" = None) -> None:
        self.kept: dict[Hashable, Any] = {}
        self._before: dict[Hashable, Any] = {} if before is None else before.kept

    def __repr__(self) -> str:
        return f"<States: {len(self.kept)}>"

    def __len__(self) -> int:
        return len(self.kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def get(self, key: Hashable, factory: Callable[[], T]) -> T:
        """The state under that key: asked for already, or else the one before's, or else a new one."""
        if key not in self.kept:
            old = key in self._before and not _outdated(self._before[key])
            self.kept[key] = self._before[key] if old else factory()
        found: T = self.kept[key]
        return found

    def settle(self) -> None:
        """The configuration is in force: lets go of the one before."""
        self._before = {}


class Apart(States):
    """A part of other states under a name: what is kept here, others who ask for the same key don't get."""

    def __init__(self, whole: States, name: str) -> None:
        super().__init__()
        self._whole, self._name = whole, name

    def get(self, key: Hashable, factory: Callable[[], T]) -> T:
        """See `States.get`."""
        return self._whole.get((self._name, key), factory)


def _outdated(state: Any) -> bool:
    """Whether the state's class is an earlier version of one in a file that has been read again."""
    cls = type(state)
    current = vars(sys.modules[cls.__module__]).get(cls.__qualname__) if cls.__module__ in sys.modules else None
    return isinstance(current, type) and current is not cls
