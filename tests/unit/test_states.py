"""What plugins keep from one configuration to the next."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from epp_plugins.prefix_cache import ApproxPrefixCacheProducer, ProducerParameters
from epp_plugins.session_affinity import SessionAffinityScorer, SessionParameters

from epp.errors import ConfigError
from epp.pool import Endpoint, Pool
from epp.settings import Registry, load
from epp.states import States
from epp.testing import candidates, context, decided, request

LONG = "word " * 200


class Seen:
    """Slots that have become void."""

    def __init__(self) -> None:
        self.void: list[int] = []

    def forget(self, slot: int) -> None:
        self.void.append(slot)


def test_kept():
    """The next configuration gets the same object under the same key, and only what it asks for."""
    first = States()
    kept, gone = first.get("kept", Seen), first.get("gone", Seen)
    second = States(first)
    assert second.get("kept", Seen) is kept
    assert second.get("kept", Seen) is kept
    second.settle()
    assert "gone" not in second
    assert second.get("gone", Seen) is not gone
    assert len(second) == 2


def test_dropped():
    """A configuration that fails leaves the states as they were; one in force lets go of those nobody wants."""
    first = States()
    held = weakref.ref(first.get("state", Seen))
    failed = States(first)
    failed.get("new", Seen)
    del failed
    assert "new" not in first
    second = States(first)
    second.settle()
    del first
    gc.collect()
    assert held() is None


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"name": "other"}, False, id="name"),
        pytest.param({"type": "other"}, False, id="type"),
    ],
)
def test_whose(change, same):
    """A state belongs to one instance: its name and its type."""
    states = States()
    one = replace(context(states=states), type="a-type")
    assert (replace(one, **change).state(("key", 1), Seen) is one.state(("key", 1), Seen)) is same
    assert one.state(("key", 2), Seen) is not one.state(("key", 1), Seen)


KEEPER = """
from epp.plugin import Candidates, Context, Floats, Request

class Mine:
    pass

class Keeper:
    def __init__(self, context: Context) -> None:
        self.plain, self.own = context.state("plain", dict), context.state("own", Mine)
    def score(self, request: Request, c: Candidates) -> Floats:
        return [0.5] * len(c)
"""
CONFIG = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: ./keeper.py}]\n"


@pytest.mark.parametrize(
    ("text", "own"), [pytest.param(KEEPER, True, id="as it was"), pytest.param(KEEPER + "\n", False, id="changed")]
)
def test_states_of_a_file(tmp_path, text, own):
    """An object of a class in the plugin's file begins anew when the file changes, whatever else it keeps stays."""
    file, states = tmp_path / "keeper.py", States()

    def plugin(states: States):
        router = load(CONFIG, tmp_path / "config.yaml", Registry.installed(), lambda name: context(name, states=states))
        return router.profiles["default"].scorers[0][0].plugin

    file.write_text(KEEPER)
    before = plugin(states)
    file.write_text(text)
    after = plugin(States(states))
    assert after.plain is before.plain
    assert (after.own is before.own) is own
    assert type(after.own) is vars(type(after))["score"].__globals__["Mine"]


def test_a_broken_file_leaves_the_module(tmp_path):
    """A file that can't be imported any more leaves the module of the one before in its place."""
    file, registry = tmp_path / "keeper.py", Registry({})
    file.write_text(KEEPER)
    cls = registry.find(str(file)).cls
    file.write_text("def")
    with pytest.raises(ConfigError, match="SyntaxError"):
        registry.find(str(file))
    file.write_text(KEEPER)
    assert registry.find(str(file)).cls is cls
    assert set(registry.files) == {Path(file)}


def test_pool_observers():
    """The pool tells an observer once for each void slot, however often it watches, until nobody else holds it."""
    pool, seen = Pool(), Seen()
    slots = [pool.add(Endpoint(name, "10.0.0.1", port)) for port, name in enumerate("abc", 8000)]
    pool.watch(seen)
    pool.watch(seen)
    pool.remove("default/a")
    assert seen.void == [slots[0]]
    pool.remove("default/b")
    assert seen.void == slots[:2]
    held = weakref.ref(seen)
    del seen
    gc.collect()
    assert held() is None
    pool.restarted(slots[2])


@pytest.mark.parametrize(
    ("parameters", "survives"),
    [
        pytest.param({"lru_capacity_per_server": 50}, True, id="capacity"),
        pytest.param({"max_prefix_tokens_to_match": 100_000}, True, id="length"),
        pytest.param({"block_size_tokens": 128}, False, id="block size"),
        pytest.param({"memory_bytes": 2**20}, False, id="memory"),
    ],
)
def test_prefix_index(parameters, survives):
    """What prompts an endpoint has is known on, unless blocks are of another length or the memory is."""
    states, c = States(), candidates(count=2)
    old = ApproxPrefixCacheProducer(ProducerParameters(), context(states=states))
    old.picked(request(LONG), decided(c, 1), c)
    new = ApproxPrefixCacheProducer(ProducerParameters(**parameters), context(seed=7, states=States(states)))
    matched = new.produce(request(LONG), c)[new.writes[0]]
    assert bool(matched[1] > 0) is survives
    assert matched[0] == 0


def test_sessions():
    """Sessions stay pinned, and are void with their slots in the configuration that has taken over."""
    states, c = States(), candidates(count=2)
    parameters = SessionParameters(strategy="session_id")
    own = context(states=states, pool=c._pool)
    old = SessionAffinityScorer(parameters, own)
    sent = request(headers={"x-session-id": "s"})
    old.picked(sent, decided(c, 1), c)
    new = SessionAffinityScorer(parameters, replace(own, states=States(states)))
    del old
    assert new.score(sent, c).tolist() == [0, 1]
    c._pool.restarted(int(c.slots[1]))
    assert new.score(sent, c).tolist() == [0, 0]
