"""Failures on demand: what tests of a gateway need an engine to do wrong.

``x-sim-fail: STATUS`` is answered with that status at once, ``x-sim-die-after: N`` cuts the connection after N events
of a stream (or in place of an answer in one piece), and a share of all requests fails by option.
"""

import asyncio
from random import Random
from typing import NoReturn

from aiohttp import web

from epp.engine.openai import ApiError

FAIL = "x-sim-fail"
DIE_AFTER = "x-sim-die-after"


def maybe_fail(http: web.Request, rate: float, rng: Random) -> None:
    """Fails as the request asks for, or by chance.

    Raises:
        ApiError: with the status asked for, or 500 by chance.
    """
    asked = http.headers.get(FAIL)
    if asked is not None:
        if not (asked.isascii() and asked.isdigit() and 400 <= int(asked) <= 599):
            raise ApiError(400, f"{FAIL}: {asked!r} is no status from 400 to 599")
        raise ApiError(int(asked), f"failure asked for by {FAIL}")
    if rate and rng.random() < rate:
        raise ApiError(500, "failure by chance, as this engine was told")


def die_after(http: web.Request) -> int | None:
    """After how many events the connection is to be cut; None = never.

    Raises:
        ApiError: the header is no number.
    """
    asked = http.headers.get(DIE_AFTER)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdigit()):
        raise ApiError(400, f"{DIE_AFTER}: {asked!r} is no number of events")
    return int(asked)


async def cut(http: web.Request) -> NoReturn:
    """Breaks the connection off as a dying process does, and waits for the cancellation that this brings."""
    if http.transport is not None:
        http.transport.abort()
    await asyncio.get_running_loop().create_future()
    raise AssertionError("the handler outlived its connection")
