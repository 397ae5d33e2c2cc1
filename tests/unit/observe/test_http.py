"""The metrics port, with a real client: what Prometheus scrapes, and what people ask for."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from yarl import URL

from epp.observe.decisions import Decisions
from epp.observe.http import LATEST, MOST, application
from epp.observe.metrics import Metrics
from epp.plugin import Pool
from tests.unit.observe.parts import record

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Get = Callable[..., Awaitable[aiohttp.ClientResponse]]


class Served:
    """What the pages show; `settled` counts how often they had it brought up to date."""

    def __init__(self) -> None:
        self.metrics = Metrics(Pool(), "p")
        self.decisions = Decisions()
        self.settled = 0
        self.application = application(
            self.metrics.registry, self.decisions, {"plugins/state": lambda: {"plugins": {}}}, self._settle
        )

    def _settle(self) -> None:
        self.settled += 1


@pytest.fixture
def served() -> Served:
    return Served()


@pytest.fixture
async def get(served: Served) -> AsyncIterator[Get]:
    """Gets a path as it is written, without touching its percent signs."""
    runner = web.AppRunner(served.application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:

        async def get(path: str, **headers: str) -> aiohttp.ClientResponse:
            async with session.get(URL(base + path, encoded=True), headers=headers) as response:
                await response.read()
                return response

        yield get
    await runner.cleanup()


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        (
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text; version=1.0.0",
            parse_openmetrics,
        ),
    ],
    ids=["none", "text", "openmetrics"],
)
async def test_metrics(served: Served, get: Get, accept: str, content_type: str, parse: Any) -> None:
    """In the format that the scraper asks for, up to the moment."""
    noted = record()
    served.metrics.routed(noted, served.metrics.of(noted))
    response = await get("/metrics", accept=accept)
    assert (response.status, served.settled) == (200, 1)
    assert response.headers["content-type"].startswith(content_type)
    families = {family.name: family for family in parse(await response.text())}
    totals = families["llm_d_epp_request"].samples
    assert [sample.value for sample in totals if sample.name == "llm_d_epp_request_total"] == [1]


async def test_a_long_page_holds_up_nobody(served: Served, get: Get) -> None:
    """Between any two families other coroutines have their turn."""
    for number in range(30):
        noted = record(f"r-{number}", model=f"model-{number}")
        served.metrics.routed(noted, served.metrics.of(noted))
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turning = asyncio.create_task(take_turns())
    response = await get("/metrics")
    turning.cancel()
    families = (await response.text()).count("# TYPE ")
    assert turns >= families > 50


IDS = {
    "plain": "r-1",
    "uuid": "7d9f2c1e-30a5-4c8b-9a51-0b1f6f1d2e3a",
    "slashes": "a/b//c",
    "space and percent": "50% of it",
    "what looks escaped": "a%2Fb",
    "plus and query": "a+b?c=d&e#f",
    "beyond ASCII": "caf\u00e9-\u2603",
    "dots": "a/../b",
}


@pytest.mark.parametrize("given", IDS.values(), ids=IDS)
async def test_a_decision_by_any_request_id(served: Served, get: Get, given: str) -> None:
    """Percent-encoded it is found, whatever its characters."""
    served.decisions.keep(record(given))
    response = await get(f"/debug/decisions/{quote(given, safe='')}")
    assert (response.status, response.content_type, served.settled) == (200, "application/json", 1)
    assert (await response.json())["request_id"] == given


async def test_slashes_may_stay_as_they_are(served: Served, get: Get) -> None:
    """An id that is a path needs no escaping."""
    served.decisions.keep(record("a/b//c"))
    assert (await (await get("/debug/decisions/a/b//c")).json())["request_id"] == "a/b//c"


async def test_a_decision_that_is_not_kept(get: Get) -> None:
    """404 with the id, as JSON."""
    response = await get("/debug/decisions/not%20there")
    assert (response.status, response.content_type) == (404, "application/json")
    assert "'not there'" in (await response.json())["error"]["message"]


LIMITS = {
    "": LATEST,
    "?limit=3": 3,
    "?limit=0": 0,
    "?limit=99999999999999999999": LATEST,
    "?limit=999999999": MOST,
    "?limit=-1": LATEST,
    "?limit=%C2%B2": LATEST,
    "?limit=all": LATEST,
}


@pytest.mark.parametrize(("query", "count"), LIMITS.items(), ids=LIMITS)
async def test_the_latest_decisions(served: Served, get: Get, query: str, count: int) -> None:
    """Newest first; a limit that is none is ignored."""
    for number in range(MOST + 5):
        served.decisions.keep(record(f"r-{number}", decision=None))
    response = await get(f"/debug/decisions{query}")
    ids = [each["request_id"] for each in await response.json()]
    assert response.status == 200
    assert ids == [f"r-{number}" for number in range(MOST + 4, MOST + 4 - count, -1)]


async def test_further_pages(get: Get) -> None:
    """Such as llm-d's /debug/plugins/state."""
    response = await get("/debug/plugins/state")
    assert json.loads(await response.text()) == {"plugins": {}}


@pytest.mark.parametrize("path", ["/", "/debug", "/debug/decisions/", "/metrics/x"])
async def test_other_paths(get: Get, path: str) -> None:
    """There is nothing there."""
    assert (await get(path)).status == 404
