"""The metrics port: `/metrics` for Prometheus, `/debug/...` for people and the demo."""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from epp.observe.access import Authorize, authorized
from epp.observe.decisions import Decisions

LATEST = 20
"""How many decisions `/debug/decisions` shows unless `?limit=` says otherwise."""

MOST = 200
"""How many it shows at most: rendering a decision takes a while, and requests wait meanwhile."""

_NUMBER = re.compile(r"[0-9]{1,9}")


def application(
    registry: CollectorRegistry,
    decisions: Decisions,
    states: Mapping[str, Callable[[], Any]],
    settle: Callable[[], None] = lambda: None,
    authorize: Authorize | None = None,
) -> web.Application:
    """The HTTP application.

    Args:
        registry: what `/metrics` exposes.
        decisions: what `/debug/decisions` and `/debug/decisions/<request id>` show.
        states: further pages below `/debug/`, by name: a function that gives plain data.
        settle: called before anything is shown: enters what has been noted and not yet entered.
        authorize: judges who may see any of it; None for everybody.
    """

    async def metrics(request: web.Request) -> web.Response:
        settle()
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        page = await asyncio.to_thread(encoder, await _collected(registry))
        return web.Response(body=page, headers={"content-type": content_type})

    async def latest(request: web.Request) -> web.Response:
        settle()
        limit = request.query.get("limit", "")
        return _json(decisions.latest(min(int(limit), MOST) if _NUMBER.fullmatch(limit) else LATEST))

    async def one(request: web.Request) -> web.Response:
        settle()
        found = decisions.find(request.match_info["id"])
        if found is None:
            message = f"no decision is kept for request id {request.match_info['id']!r}; only the latest are"
            return _json({"error": {"message": message}}, status=404)
        return _json(found)

    app = web.Application(middlewares=[authorized(authorize)] if authorize else [])
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/debug/decisions", latest)
    app.router.add_get("/debug/decisions/{id:.+}", one)
    for name, state in states.items():
        app.router.add_get(f"/debug/{name}", _page(state))
    return app


class _Collected(Collector):
    """Metrics as they were."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


async def _collected(registry: CollectorRegistry) -> _Collected:
    """Collects one family after the other: with a hundred tenants all of it takes longer than a request may wait."""
    metrics: list[Metric] = []
    for metric in registry.collect():
        metrics.append(metric)
        await asyncio.sleep(0)
    return _Collected(metrics)


def _page(state: Callable[[], Any]) -> Callable[[web.Request], Any]:
    async def page(_: web.Request) -> web.Response:
        return _json(state())

    return page


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")
