"""Failures on demand: what tests of a gateway need an engine to do wrong.

Each can be asked for by a request header: ``x-sim-fail: STATUS`` is answered with that status at once,
``x-sim-delay: SECONDS`` waits before anything is done, ``x-sim-die-after: N`` cuts the connection after N events of a
stream (or in place of an answer in one piece), ``x-sim-stall-after: N`` says nothing more from there on and keeps the
connection. By option, a share of all requests fails with one of some statuses.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NoReturn

from aiohttp import web

from epp.engine.openai import ApiError

FAIL = "x-sim-fail"
DELAY = "x-sim-delay"
DIE_AFTER = "x-sim-die-after"
STALL_AFTER = "x-sim-stall-after"
MOST_DELAY = 3600.0


@dataclass(slots=True)
class Fault:
    """What is to go wrong with one answer after so many events; None = nothing."""

    die_after: int | None = None
    stall_after: int | None = None
    _sent: int = 0

    async def in_stream(self, http: web.Request, response: web.StreamResponse, events: list[bytes]) -> None:
        """Looks at the events about to be sent; if one is one too many, sends those before it and does not return."""
        limit = min((after for after in (self.die_after, self.stall_after) if after is not None), default=None)
        if limit is None:
            return
        if self._sent + len(events) < limit:
            self._sent += len(events)
            return
        await response.write(b"".join(events[: limit - self._sent]))
        await self._happen(http)

    async def before_whole(self, http: web.Request) -> None:
        """In place of an answer in one piece, whatever the number."""
        if self.die_after is not None or self.stall_after is not None:
            await self._happen(http)

    async def _happen(self, http: web.Request) -> NoReturn:
        dies = self.die_after is not None and (self.stall_after is None or self.die_after <= self.stall_after)
        await (cut(http) if dies else _forever())


class Faults:
    """What an engine was told to do wrong with its requests."""

    def __init__(self, rate: float, statuses: Sequence[int], rng: Random) -> None:
        """``rate`` is the share of requests that fail, with one of ``statuses`` each."""
        self._rate = rate
        self._statuses = statuses
        self._rng = rng

    async def met(self, http: web.Request) -> Fault:
        """Delays and fails as the request asks for, or by chance; returns what is still to come.

        Raises:
            ApiError: with the status asked for, or one of the engine's by chance; 400 for a header without sense.
        """
        fault = Fault(_number(http, DIE_AFTER), _number(http, STALL_AFTER))
        await asyncio.sleep(_delay(http))
        asked = _number(http, FAIL)
        if asked is not None:
            if not 400 <= asked <= 599:
                raise ApiError(400, f"{FAIL}: {asked} is no status from 400 to 599")
            raise ApiError(asked, f"failure asked for by {FAIL}")
        if self._rate and self._rng.random() < self._rate:
            raise ApiError(self._rng.choice(self._statuses), "failure by chance, as this engine was told")
        return fault


def _number(http: web.Request, header: str) -> int | None:
    asked = http.headers.get(header)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit()):
        raise ApiError(400, f"{header}: {asked!r} is no number")
    return int(asked)


def _delay(http: web.Request) -> float:
    asked = http.headers.get(DELAY)
    if asked is None:
        return 0.0
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= MOST_DELAY:
        raise ApiError(400, f"{DELAY}: {asked!r} is no number of seconds from 0 to {MOST_DELAY:.0f}")
    return seconds


async def cut(http: web.Request) -> NoReturn:
    """Breaks the connection off as a dying process does, and waits for the cancellation that this brings."""
    if http.transport is not None:
        http.transport.abort()
    await _forever()


async def _forever() -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("the handler outlived its connection")
