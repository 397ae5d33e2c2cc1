"""What scheduling asks of the guard around plugin calls; the guard that counts and times is in `epp.observe`."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from epp.plugin import Plugged

Point = Literal[
    "RequestHeader",
    "Screener",
    "Admission",
    "Filter",
    "Scorer",
    "Picker",
    "ProfilePicker",
    "DataProducer",
    "PreRequest",
    "ResponseReceived",
    "ResponseParsing",
    "ResponseComplete",
]
Fault = Literal["raised", "shape", "nan"]


class Guard(Protocol):
    """Calls plugins: times the call, counts what goes wrong, and never lets it through."""

    def call(self, point: Point, plugged: Plugged, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; None if it raised, or gave nothing where something is due, which is counted."""
        ...

    async def wait(
        self, point: Point, plugged: Plugged, function: Callable[..., Awaitable[Any]], *arguments: Any
    ) -> Any:
        """The same for a function whose result has to be waited for."""
        ...

    def fault(self, point: Point, plugged: Plugged, fault: Fault, detail: str) -> None:
        """Counts a result that can't be used."""
        ...


class Unguarded:
    """A guard that lets exceptions through, for tests of one plugin and for plugin authors."""

    def call(self, point: Point, plugged: Plugged, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result, or its exception."""
        return function(*arguments)

    async def wait(
        self, point: Point, plugged: Plugged, function: Callable[..., Awaitable[Any]], *arguments: Any
    ) -> Any:
        """The awaited result, or its exception."""
        return await function(*arguments)

    def fault(self, point: Point, plugged: Plugged, fault: Fault, detail: str) -> None:
        """Raises ValueError with the detail."""
        raise ValueError(f"{plugged.name} ({point}): {fault}: {detail}")
