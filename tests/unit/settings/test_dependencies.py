"""Who reads what from whom."""

import numpy as np
import pytest

import epp.plugin
from epp.plugin import pool_key, request_key
from epp.settings import InvalidConfig, resolve
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, registry_of


def writer(name, *reads):
    """A producer of the column `name`, which reads those of others."""

    class Producer:
        writes = (request_key("column", name),)

        def produce(self, request, c):
            return {self.writes[0]: np.zeros(len(c))}

    Producer.reads = tuple(request_key("column", other) for other in reads)
    return Producer


def load(types, text):
    return resolve(HEAD + text, "f", registry_of(TYPES | types), context)


def errors(types, text):
    with pytest.raises(InvalidConfig) as caught:
        load(types, text)
    return [str(problem) for problem in caught.value.problems]


def test_missing_producers_are_added():
    """A key's producer is added, and what that reads, too; they run in the order of their dependencies."""
    router = load({}, "plugins: [{type: prefix-scorer}]").router
    assert [p.name for p in router.producers] == ["length-producer", "approx-prefix-cache-producer"]
    assert router.warnings == ()


def test_configured_producer_is_used():
    """A producer that is configured under the name that the key has is used, whatever its type."""
    text = """
plugins:
- {type: prefix-scorer, parameters: {producer: mine}}
- {type: approx-prefix-cache-producer, name: mine}
- {type: length-producer}
"""
    router = load({}, text).router
    assert [(p.name, p.type) for p in router.producers] == [
        ("length-producer", "length-producer"),
        ("mine", "approx-prefix-cache-producer"),
    ]


def test_unused_scorers_need_nothing():
    """A scorer that is in no profile gets no producer."""
    text = "plugins: [{type: prefix-scorer}]\nschedulingProfiles: [{name: a}]"
    assert load({}, text).router.producers == ()


def test_order_follows_dependencies_then_the_file():
    """Dependencies come first; among independent producers the file's order holds."""
    types = {"z": writer("z"), "b": writer("b", "a"), "a": writer("a"), "c": writer("c", "b", "z")}
    router = load(types, "plugins: [{type: c}, {type: z}, {type: b}, {type: a}]").router
    order = [p.name for p in router.producers]
    assert order.index("a") < order.index("b") < order.index("c")
    assert order.index("z") < order.index("c")
    assert len(order) == 4


def test_keys_of_the_mechanism_need_no_producer():
    """A key without a producer belongs to the mechanism."""

    class Reader:
        reads = (pool_key("waiting_room"),)

        def score(self, request, c):
            return np.zeros(len(c))

    assert load({"reader": Reader}, "plugins: [{type: reader}]").router.producers == ()


def test_fetchers_write():
    """A fetcher's keys can be read, by producers and scorers."""

    class Fetcher:
        writes = (request_key("column", "remote"),)

        async def fetch(self, request, c):
            return {}

    types = {"fetcher": Fetcher, "local": writer("local", "remote")}
    router = load(types, "plugins: [{type: fetcher, name: remote}, {type: local}]").router
    assert [p.name for p in router.fetchers] == ["remote"]
    assert [p.name for p in router.producers] == ["local"]


def test_unknown_producer():
    """A key whose producer is neither configured nor a type is an error at its reader."""
    text = "plugins: [{type: length-producer}, {type: prefix-scorer, parameters: {producer: lenght-producer}}]"
    (message,) = errors({}, text)
    assert message == (
        'plugins[1].parameters.producer: "prefix-scorer" (plugins[1]) reads matched_tokens from the producer '
        '"lenght-producer", which is '
        'neither configured nor a known type; did you mean "length-producer"?'
    )


def test_unknown_producer_of_several_keys():
    """One reader with a misspelt reference is one error, with the nearest name of the types, too."""

    class Reader:
        reads = (request_key("one", "length-producr"), request_key("other", "length-producr"))

        def score(self, request, c):
            return np.zeros(len(c))

    (message,) = errors({"reader": Reader}, "plugins: [{type: reader}]")
    assert 'reads one and other from the producer "length-producr"' in message
    assert message.endswith('; did you mean "length-producer"?')


def test_a_name_that_is_only_named():
    """A parameter that re-points to a producer names one that is there, whoever keeps the numbers here."""

    class Named:
        class Parameters(epp.plugin.Parameters):
            in_flight_load_producer_name: str | None = None

        def __init__(self, parameters):
            pass

        def score(self, request, c):
            return np.zeros(len(c))

    entry = "plugins: [{type: named, parameters: {inFlightLoadProducerName: %s}}]"
    (message,) = errors({"named": Named}, entry % "length-producr")
    assert message == (
        'plugins[0].parameters.inFlightLoadProducerName: "named" (plugins[0]) names the producer '
        '"length-producr", which is neither configured nor a known type; did you mean "length-producer"?'
    )
    assert load({"named": Named}, entry % "length-producer").router.producers == ()


def test_wrong_producer():
    """A plugin that doesn't write the key is no producer of it."""
    text = "plugins: [{type: prefix-scorer, parameters: {producer: length-producer}}]"
    (message,) = errors({}, text)
    assert message == (
        'plugins[0].parameters.producer: "prefix-scorer" (plugins[0]) reads matched_tokens from "length-producer", '
        "which writes: length"
    )


def test_producer_without_effect():
    """A type that has no effect yet writes nothing."""
    text = "plugins: [{type: prefix-scorer, parameters: {producer: tokens}}, {type: edf-ordering-policy, name: tokens}]"
    (message,) = errors({}, text)
    assert message.endswith('reads matched_tokens from "tokens" (plugins[1]), which has no effect yet')


@pytest.mark.parametrize(
    ("types", "circle"),
    [({"a": writer("a", "a")}, "a -> a"), ({"a": writer("a", "b"), "b": writer("b", "a")}, "a -> b -> a")],
)
def test_circle(types, circle):
    """Producers that need each other can't be ordered."""
    (message,) = errors(types, "plugins: [{type: a}]")
    assert message.startswith("producers read from each other in a circle: ")
    assert set(message.rpartition(": ")[2].split(" -> ")) == set(circle.split(" -> "))


def test_fetchers_read_nothing():
    """Fetchers run first: what a producer writes comes too late for them."""

    class Fetcher:
        reads = (request_key("column", "a"),)
        writes = (request_key("column", "fetcher"),)

        async def fetch(self, request, c):
            return {}

    types = {"fetcher": Fetcher, "a": writer("a")}
    assert errors(types, "plugins: [{type: fetcher}]") == [
        'plugins[0]: "fetcher" (plugins[0]) is a fetcher, which run first: it can read nobody\'s keys'
    ]


@pytest.mark.parametrize("declared", ["matched_tokens", ("matched_tokens",), 5])
def test_reads_that_are_no_keys(declared):
    """`reads` is a tuple of keys."""

    class Reader:
        reads = declared

        def score(self, request, c):
            return np.zeros(len(c))

    (message,) = errors({"reader": Reader}, "plugins: [{type: reader}]")
    assert message.startswith('plugins[0]: "reader" (plugins[0]): its `reads` must be a tuple of keys, not')
