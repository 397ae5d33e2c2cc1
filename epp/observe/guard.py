"""The timing guard around plugin calls: one helper that times, counts and catches, and leaves out whom it must."""

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

from epp.observe.series import Buckets, Family
from epp.plugin import Plugged

log = logging.getLogger(__name__)

QUIET_AFTER = 20
"""A plugin that fails at every request is logged so many times in full; afterwards it is only counted."""

DUE = frozenset({"Filter", "Scorer", "Picker", "DataProducer"})
"""Where a plugin has to return something: a forgotten `return` is a fault."""

UNLIMITED = frozenset({"ProfilePicker", "ResponseParsing"})
"""Where no budget applies: a handler's time is that of the profiles it runs, and nobody stands in for a parser."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a plugin's call may take.

    Attributes:
        seconds: of one call.
        overruns: the family that counts calls which took longer, by extension point, type and name.
        bypasses: the family that counts calls which were left out, by the same.
        in_a_row: so many overruns without a timely call between, and the plugin is left out.
        pause: seconds that it is left out; then it is tried again, and the first overrun leaves it out anew.
    """

    seconds: float
    overruns: Family
    bypasses: Family
    in_a_row: int = 5
    pause: float = 10.0


class Meter:
    """What is known of one plugin at one extension point; `row` counts its latest overruns in a row.

    `mandatory` is set for one whose overruns are counted and that is called all the same.
    """

    __slots__ = ("bypassed_until", "durations", "limit", "mandatory", "row")

    def __init__(self, durations: Buckets, limit: float, *, mandatory: bool) -> None:
        self.durations = durations
        self.limit = limit
        self.mandatory = mandatory
        self.row = 0
        self.bypassed_until = 0.0


class TimingGuard:
    """Calls plugins: times the call, counts what goes wrong, and never lets it through.

    Args:
        durations: the family of plugin durations, by extension point, type and name.
        faults: the family of plugin faults, by the same and the fault.
        budget: None for none.
        now: the injected clock that calls are timed with, seconds.
    """

    def __init__(
        self, durations: Family, faults: Family, budget: Budget | None = None, now: Callable[[], float] = perf_counter
    ) -> None:
        self._durations = durations
        self._faults = faults
        self._budget = budget
        self._now = now
        self._meters: dict[tuple[str, Plugged], Meter] = {}

    def call(self, point: str, plugged: Plugged, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result.

        None if it raised or returned nothing that is due, which is counted and logged; or if it is left out for now.
        """
        meter = self._meters.get((point, plugged)) or self._meter(point, plugged)
        if meter.bypassed_until and self._bypasses(meter, point, plugged):
            return None
        start = self._now()
        try:
            result = function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (a plugin may raise anything; it is counted and left out)
            self._count(point, plugged, "raised", _where(error), error)
            return None
        finally:
            took = self._now() - start
            meter.durations.observe(took)
            if took > meter.limit:
                self._overran(meter, point, plugged, took)
            elif meter.row:
                meter.row = 0
        if result is None and point in DUE:
            self.fault(point, plugged, "shape", "nothing was returned")
        return result

    async def wait(self, point: str, plugged: Plugged, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """The same for a function whose result has to be waited for: it has a deadline instead of a budget."""
        start = self._now()
        try:
            result = await function(*arguments)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (as above)
            self._count(point, plugged, "raised", _where(error), error)
            return None
        finally:
            self._meter(point, plugged).durations.observe(self._now() - start)
        if result is None and point in DUE:
            self.fault(point, plugged, "shape", "nothing was returned")
        return result

    def fault(self, point: str, plugged: Plugged, fault: str, detail: str) -> None:
        """Counts and logs a result that can't be used."""
        self._count(point, plugged, fault, detail, None)

    def forget(self, plugins: Iterable[Plugged]) -> None:
        """These plugins are called no more: what is kept for them goes; what was counted stays."""
        gone = set(plugins)
        self._meters = {key: meter for key, meter in self._meters.items() if key[1] not in gone}

    def shown(self, plugged: Plugged) -> list[Mapping[str, Any]]:
        """What is known of a plugin since the start, by extension point, for `/debug/plugins`."""
        points = [labels[0] for labels in self._durations.children if labels[1:] == (plugged.type, plugged.name)]
        return [self._shown(point, plugged) for point in points]

    # --- the parts

    def _meter(self, point: str, plugged: Plugged) -> Meter:
        meter = self._meters.get((point, plugged))
        if meter is None:
            limit = inf if self._budget is None or point in UNLIMITED else self._budget.seconds
            mandatory = bool(getattr(plugged.plugin, "mandatory", False))
            meter = Meter(self._durations.buckets(point, plugged.type, plugged.name), limit, mandatory=mandatory)
            self._meters[point, plugged] = meter
        return meter

    def _bypasses(self, meter: Meter, point: str, plugged: Plugged) -> bool:
        assert self._budget is not None  # noqa: S101 (only a budget leaves anybody out)
        if self._now() >= meter.bypassed_until:
            meter.bypassed_until, meter.row = 0.0, self._budget.in_a_row - 1
            return False
        self._budget.bypasses.value(point, plugged.type, plugged.name).inc()
        return True

    def _overran(self, meter: Meter, point: str, plugged: Plugged, took: float) -> None:
        budget = self._budget
        assert budget is not None  # noqa: S101 (without one there is no limit)
        count = budget.overruns.value(point, plugged.type, plugged.name)
        count.inc()
        meter.row += 1
        if meter.row < budget.in_a_row:
            return
        if meter.mandatory:
            meter.row, done = 0, "is mandatory, and not left out"
        else:
            meter.bypassed_until, done = self._now() + budget.pause, f"is left out for {budget.pause:g} s"
        if count.value <= QUIET_AFTER * budget.in_a_row:
            message = "plugin %s (%s) %s: it took %.1f ms, and its budget is %.1f ms"
            log.warning(message, plugged.name, point, done, took * 1e3, budget.seconds * 1e3)

    def _count(self, point: str, plugged: Plugged, fault: str, detail: str, error: BaseException | None) -> None:
        count = self._faults.value(point, plugged.type, plugged.name, fault)
        count.inc()
        if count.value <= QUIET_AFTER:
            quiet = "; further ones are only counted" if count.value == QUIET_AFTER else ""
            # What an error says may quote the request, and prompts are not logged: only for whoever asked for -v 4.
            shown = error if log.isEnabledFor(logging.DEBUG) else None
            log.warning("plugin %s (%s) %s: %s%s", plugged.name, point, fault, detail, quiet, exc_info=shown)

    def _shown(self, point: str, plugged: Plugged) -> Mapping[str, Any]:
        labels = (point, plugged.type, plugged.name)
        times, meter, budget = self._durations.buckets(*labels), self._meters.get((point, plugged)), self._budget
        calls = sum(times.counts)
        faults = {key[3]: self._faults.value(*key).value for key in self._faults.children if key[:3] == labels}
        left = 0.0 if meter is None else max(meter.bypassed_until - self._now(), 0.0)
        return {
            "extension_point": point,
            "calls": calls,
            "faults": faults,
            "overruns": 0 if budget is None else budget.overruns.value(*labels).value,
            "calls_left_out": 0 if budget is None else budget.bypasses.value(*labels).value,
            "left_out_for_seconds": round(left, 3),
            "mean_us": round(times.sum / calls * 1e6, 1) if calls else None,
            "p50_us": _micros(times.quantile(0.5)),
            "p99_us": _micros(times.quantile(0.99)),
        }


def _micros(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 1)


def _where(error: BaseException) -> str:
    """The error's type, and the line that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
