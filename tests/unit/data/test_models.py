"""What engines serve: asked at the start, and again when they have come, gone or restarted."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from epp.data.client import ScrapeOptions
from epp.data.models import INTERVAL, RETRY, Models
from epp.engine.options import EngineOptions
from epp.engine.server import EngineServer
from epp.errors import ConfigError
from epp.formats.openai import models
from epp.keys import REPORTED, SERVED_MODELS
from epp.pool import Endpoint, Pool
from epp.testing import FakeClock

PAGE = b'{"object":"list","data":[{"id":"a","object":"model","root":"x"},{"id":"b"}]}'


@pytest.fixture
async def engine() -> AsyncIterator[EngineServer]:
    """One that serves a model and an adapter."""
    async with EngineServer(EngineOptions(model="llama-8b", loras=("tuned",))) as server:
        yield server


def endpoint(name: str, address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(name, host, int(port))


class Setup:
    """A poller that looks only when it is told to."""

    def __init__(self) -> None:
        self.pool, self.clock, self.faults = Pool(), FakeClock(), list[str]()
        self.models = Models(
            self.pool,
            ScrapeOptions(interval=INTERVAL, timeout=5.0, path="/v1/models"),
            now=self.clock,
            on_fault=lambda e, _: self.faults.append(e.name),
        )

    def served(self, slot: int) -> set[str]:
        return set(self.pool.members(slot, SERVED_MODELS))


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    await made.models.start()
    yield made
    await made.models.stop()


async def test_what_an_engine_serves(setup: Setup, engine: EngineServer) -> None:
    """Models and adapters; the page of all engines has each once, in the engine's own words."""
    for name in ("a", "b"):
        setup.pool.add(endpoint(name, engine.address))
    await setup.models.look()
    assert setup.served(setup.pool.slots["default/a"]) == {REPORTED, "llama-8b", "tuned"}
    cards = {name: json.loads(bytes(card)) for name, card in setup.models.cards().items()}
    assert [card["id"] for card in cards.values()] == list(cards) == ["llama-8b", "tuned"]
    assert cards["tuned"]["parent"] == "llama-8b"


async def test_when_it_is_asked_again(setup: Setup, engine: EngineServer) -> None:
    """After a while; at once when it has restarted; soon when it didn't answer."""
    slot = setup.pool.add(endpoint("a", engine.address))
    await setup.models.look()
    setup.pool.write_set(slot, SERVED_MODELS, ("", "old"))
    await setup.models.look()
    assert setup.served(slot) == {REPORTED, "old"}
    setup.clock.advance(INTERVAL)
    await setup.models.look()
    assert "llama-8b" in setup.served(slot)
    setup.pool.restarted(slot)
    assert setup.served(slot) == set()
    await setup.models.look()
    assert "llama-8b" in setup.served(slot)


async def test_an_engine_that_gives_no_page(setup: Setup, engine: EngineServer) -> None:
    """It is told of, tried again soon, and what it said before stays."""
    slot = setup.pool.add(endpoint("a", engine.address))
    dead = setup.pool.add(Endpoint("dead", "127.0.0.1", 1))
    await setup.models.look()
    assert (setup.faults, setup.served(dead)) == (["dead"], set())
    setup.clock.advance(RETRY / 2)
    await setup.models.look()
    assert setup.faults == ["dead"]
    setup.clock.advance(RETRY)
    await setup.models.look()
    assert setup.faults == ["dead"] * 2
    await engine.__aexit__(None, None, None)
    setup.clock.advance(INTERVAL)
    await setup.models.look()
    assert sorted(setup.faults[2:]) == ["a", "dead"]
    assert "llama-8b" in setup.served(slot)
    setup.pool.eligible[slot] = False
    assert setup.models.cards() == {}


async def test_another_page(setup: Setup, engine: EngineServer) -> None:
    """A changed page is asked for at the next look; a changed reader alone when it is due anyway."""
    slot = setup.pool.add(endpoint("a", engine.address))
    options = ScrapeOptions(interval=INTERVAL, timeout=5.0, path="/v1/models")
    await setup.models.look()
    setup.models.follow(options, lambda _: {"x": msgspec.Raw(b"{}")})
    await setup.models.look()
    assert "llama-8b" in setup.served(slot)
    setup.models.follow(replace(options, path="/metrics"), lambda page: {"y": msgspec.Raw(b"{}")} if page else {})
    await setup.models.look()
    assert setup.served(slot) == {REPORTED, "y"}
    setup.models.follow(replace(options, path="/none"), models)
    await setup.models.look()
    assert (setup.served(slot), setup.faults) == ({REPORTED, "y"}, ["a"])
    with pytest.raises(ConfigError):
        setup.models.follow(replace(options, scheme="https", ca=Path("/none")), models)


async def test_another_page_while_one_is_fetched(setup: Setup) -> None:
    """The old fetch is given up, and that isn't the engine's fault."""
    asked, others = asyncio.Event(), list[asyncio.StreamWriter]()

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        others.append(writer)
        asked.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with EngineServer(EngineOptions(model="llama-8b")) as engine, server:
        slot = setup.pool.add(Endpoint("a", "127.0.0.1", server.sockets[0].getsockname()[1]))
        look = asyncio.create_task(setup.models.look())
        await asked.wait()
        port = int(engine.address.rpartition(":")[2])
        setup.models.follow(ScrapeOptions(interval=INTERVAL, timeout=5.0, path="/v1/models", port=port), models)
        await look
        await setup.models.look()
        assert setup.served(slot) == {REPORTED, "llama-8b"}
        assert setup.faults == []
        for writer in others:
            writer.close()


def test_a_page() -> None:
    """Each card is kept as it was sent."""
    assert {name: bytes(card) for name, card in models(PAGE).items()} == {
        "a": b'{"id":"a","object":"model","root":"x"}',
        "b": b'{"id":"b"}',
    }


@pytest.mark.parametrize("page", [b"", b"[]", b"{", b'{"data":{}}', b'{"data":[{}]}', b'{"data":[1]}'])
def test_what_is_no_page(page: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        models(page)


async def test_it_stops(engine: EngineServer) -> None:
    """In the middle of a look, too."""
    made = Setup()
    made.pool.add(endpoint("a", engine.address))
    await made.models.start(patience=0.0)
    await asyncio.wait_for(made.models.stop(), 10)
