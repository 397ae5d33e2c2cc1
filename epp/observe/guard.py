"""The timing guard around plugin calls: one helper that times, counts and catches."""

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from epp.observe.series import Buckets, Family
from epp.plugin import Plugged

log = logging.getLogger(__name__)

QUIET_AFTER = 20
"""A plugin that fails at every request is logged so many times in full; afterwards it is only counted."""

DUE = frozenset({"Filter", "Scorer", "Picker", "DataProducer"})
"""Where a plugin has to return something: a forgotten `return` is a fault."""


class TimingGuard:
    """Calls plugins: times the call, counts what goes wrong, and never lets it through.

    Args:
        durations: the family of plugin durations, by extension point, type and name.
        faults: the family of plugin faults, by the same and the fault.
    """

    def __init__(self, durations: Family, faults: Family) -> None:
        self._durations = durations
        self._faults = faults
        self._buckets: dict[tuple[str, str], Buckets] = {}

    def call(self, point: str, plugged: Plugged, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; None if it raised or returned nothing that is due, which is counted and logged."""
        start = perf_counter()
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001 (a plugin may raise anything; it is counted and left out)
            self._count(point, plugged, "raised", repr(error), error)
            return None
        finally:
            buckets = self._buckets.get((point, plugged.name)) or self._buckets_of(point, plugged)
            buckets.observe(perf_counter() - start)
        if result is None and point in DUE:
            self.fault(point, plugged, "shape", "nothing was returned")
        return result

    async def wait(self, point: str, plugged: Plugged, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """The same for a function whose result has to be waited for."""
        start = perf_counter()
        try:
            result = await function(*arguments)
        except Exception as error:  # noqa: BLE001 (as above)
            self._count(point, plugged, "raised", repr(error), error)
            return None
        finally:
            self._buckets_of(point, plugged).observe(perf_counter() - start)
        if result is None and point in DUE:
            self.fault(point, plugged, "shape", "nothing was returned")
        return result

    def _buckets_of(self, point: str, plugged: Plugged) -> Buckets:
        buckets = self._buckets[point, plugged.name] = self._durations.buckets(point, plugged.type, plugged.name)
        return buckets

    def fault(self, point: str, plugged: Plugged, fault: str, detail: str) -> None:
        """Counts and logs a result that can't be used."""
        self._count(point, plugged, fault, detail, None)

    def _count(self, point: str, plugged: Plugged, fault: str, detail: str, error: Exception | None) -> None:
        count = self._faults.value(point, plugged.type, plugged.name, fault)
        count.inc()
        if count.value <= QUIET_AFTER:
            quiet = "; further ones are only counted" if count.value == QUIET_AFTER else ""
            log.warning("plugin %s (%s) %s: %s%s", plugged.name, point, fault, detail, quiet, exc_info=error)
