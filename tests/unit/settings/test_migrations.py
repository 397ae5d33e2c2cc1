"""Entries from before a release moved something do what they did."""

import json

import pytest

from epp.settings import InvalidConfig, Registry, resolve, show
from epp.testing import context

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
APPROX, PRECISE = "approx-prefix-cache-producer", "precise-prefix-cache-producer"
REGISTRY = Registry.installed()


def load(text):
    return resolve(HEAD + text, "f", REGISTRY, context)


def parameters(resolved, name):
    return resolved.instances[name].raw


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param({"lruCapacityPerServer": 500}, {"lruCapacityPerServer": 500}, id="capacity"),
        pytest.param(
            {"autoTune": False, "blockSizeTokens": 128}, {"autoTune": False, "blockSizeTokens": 128}, id="kept"
        ),
        pytest.param({"blockSize": 128}, {"blockSizeTokens": 128}, id="block in tokens"),
        pytest.param({"hashBlockSize": 1000}, {"blockSizeTokens": 250}, id="block in characters"),
        pytest.param({"maxPrefixBlocksToMatch": 256}, {"maxPrefixTokensToMatch": 256 * 64}, id="limit"),
        pytest.param(
            {"blockSize": 100, "maxPrefixBlocksToMatch": 10},
            {"blockSizeTokens": 100, "maxPrefixTokensToMatch": 1000},
            id="limit of longer blocks",
        ),
        pytest.param(
            {"hashBlockSize": 5, "maxPrefixBlocksToMatch": 256, "lruCapacityPerServer": 31250},
            {"blockSizeTokens": 2, "maxPrefixTokensToMatch": 256 * 64, "lruCapacityPerServer": 31250},
            id="as in v0.5",
        ),
    ],
)
def test_parameters_of_the_index(old, new):
    """They go to the producer, which is added; each has one warning."""
    written = json.dumps({"matchLengthWeight": 0.5, **old})
    loaded = load(f"plugins: [{{type: prefix-cache-scorer, parameters: {written}}}]")
    assert parameters(loaded, APPROX) == new
    assert parameters(loaded, "prefix-cache-scorer") == {"matchLengthWeight": 0.5}
    assert sorted(loaded.router.warnings) == sorted(
        f'plugins[0].parameters.{key}: is deprecated: write it at the producer, "{APPROX}"' for key in old
    )


def test_a_producer_that_is_there():
    """What is written at the producer counts, the rest is added to it."""
    loaded = load("""
plugins:
- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: mine, blockSize: 128, lruCapacityPerServer: 5}}
- {type: approx-prefix-cache-producer, name: mine, parameters: {lruCapacityPerServer: 7}}
""")
    assert parameters(loaded, "mine") == {"blockSizeTokens": 128, "lruCapacityPerServer": 7}
    assert [p.name for p in loaded.router.producers] == ["mine"]


def test_a_producer_with_the_old_spelling():
    """Its own block counts, however it is written."""
    loaded = load("""
plugins:
- {type: prefix-cache-scorer, parameters: {blockSizeTokens: 128}}
- {type: approx-prefix-cache-producer, parameters: {blockSize: 256}}
""")
    assert parameters(loaded, APPROX) == {"blockSize": 256}
    assert loaded.instances[APPROX].parameters.block_tokens == 256


P = "{type: approx-prefix-cache-producer, name: p}"


@pytest.mark.parametrize("reader", ["no-hit-lru-scorer", "pd-profile-handler"])
@pytest.mark.parametrize(
    ("old", "others", "producer"),
    [
        ({"prefixPluginName": "mine"}, "{type: prefix-cache-scorer, name: mine}", APPROX),
        (
            {"prefixPluginName": "mine"},
            f"{{type: prefix-cache-scorer, name: mine, parameters: {{prefixMatchInfoProducerName: p}}}}, {P}",
            "p",
        ),
        (
            {"prefixPluginType": "precise-prefix-cache-scorer", "prefixPluginName": "exact"},
            "{type: precise-prefix-cache-scorer, name: exact}",
            PRECISE,
        ),
        (
            {"prefixPluginType": "precise-prefix-cache-scorer"},
            "{type: precise-prefix-cache-scorer, name: exact}",
            PRECISE,
        ),
        ({"prefixPluginName": "p"}, "{type: approx-prefix-cache-producer, name: p}", "p"),
        ({"prefixPluginName": "prefix-cache-scorer"}, "{type: queue-scorer}", APPROX),
        ({"prefixPluginName": "nobody"}, "{type: queue-scorer}", None),
    ],
    ids=["scorer", "its producer", "precise", "precise by type", "producer", "type", "nobody"],
)
def test_a_reader_that_names_the_scorer(reader, old, others, producer):
    """What reads of the prefix cache reads from the producer of the scorer that it names; each key has one warning."""
    profiles = "schedulingProfiles: [{name: decode, plugins: [{pluginRef: queue}]}]"
    entries = f"{{type: {reader}, parameters: {json.dumps(old)}}}, {others}, {{type: queue-scorer, name: queue}}"
    loaded = load(f"plugins: [{entries}]\n{profiles}")
    assert parameters(loaded, reader).get("prefixMatchInfoProducerName") == producer
    meant = f'write prefixMatchInfoProducerName, "{producer}"' if producer else "leave it out, it names no plugin"
    about = [warning for warning in loaded.router.warnings if "prefixPlugin" in warning]
    assert about == [f"plugins[0].parameters.{key}: is deprecated: {meant}" for key in sorted(old)]


def test_another_kind_of_producer():
    """A precise producer has no use for them."""
    loaded = load(f"""
plugins:
- {{type: prefix-cache-scorer, parameters: {{prefixMatchInfoProducerName: {PRECISE}, lruCapacityPerServer: 5}}}}
- {{type: {PRECISE}}}
""")
    assert parameters(loaded, PRECISE) == {}
    assert [p.name for p in loaded.router.producers] == [PRECISE]


def test_wrong_values_are_errors():
    """They are checked where they go, and named where they stand."""
    with pytest.raises(InvalidConfig) as caught:
        load("plugins: [{type: prefix-cache-scorer, parameters: {lruCapacityPerServer: many, blockSize: [1]}}]")
    assert {problem.place for problem in caught.value.problems} == {
        "plugins[0].parameters.lruCapacityPerServer",
        "plugins[0].parameters.blockSizeTokens",
    }


PRECISE_SCORER = "precise-prefix-cache-scorer"
POOL = 'is deprecated, and has no effect: write a "token-producer"'
DEPRECATED = (
    '"precise-prefix-cache-scorer" is deprecated: write "prefix-cache-scorer" with prefixMatchInfoProducerName, and a '
    '"precise-prefix-cache-producer"'
)


def test_precise_scorer_alone():
    """It brings its producer, and keeps its name."""
    loaded = load("""
plugins:
- type: precise-prefix-cache-scorer
  parameters:
    tokenProcessorConfig: {blockSize: 64, hashSeed: "42"}
    indexerConfig: {tokenizersPoolConfig: {modelName: m}, kvBlockIndexConfig: {enableMetrics: true}}
    kvEventsConfig: {topicFilter: kv@, zmqEndpoint: "tcp://*:5557"}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: precise-prefix-cache-scorer, weight: 3}]}
""")
    (scorer, weight) = loaded.router.profiles["default"].scorers[0]
    assert (scorer.name, scorer.type, weight) == (PRECISE_SCORER, "prefix-cache-scorer", 3.0)
    assert parameters(loaded, PRECISE_SCORER) == {"prefixMatchInfoProducerName": PRECISE}
    assert [p.type for p in loaded.router.producers] == [PRECISE]
    assert "tokenizersPoolConfig" not in parameters(loaded, PRECISE)["indexerConfig"]
    assert loaded.router.warnings == (
        f"plugins[0].type: {DEPRECATED}",
        f"plugins[0].parameters.indexerConfig.tokenizersPoolConfig: {POOL}",
        f'plugins[0].type: "{PRECISE}" is accepted, has no KV events yet: it goes by the picks, as {APPROX} does',
        'plugins[0].parameters.tokenProcessorConfig.blockSize: is deprecated: write "blockSizeTokens"',
    )


def test_precise_scorer_with_its_producer():
    """It reads from the one that is there, and its own parameters are ignored."""
    loaded = load(f"""
plugins:
- {{type: {PRECISE_SCORER}, name: s, parameters: {{kvEventsConfig: {{concurrency: 9}}}}}}
- {{type: {PRECISE}, name: p, parameters: {{kvEventsConfig: {{concurrency: 2}}}}}}
""")
    assert parameters(loaded, "s") == {"prefixMatchInfoProducerName": "p"}
    assert parameters(loaded, "p") == {"kvEventsConfig": {"concurrency": 2}}
    assert [p.name for p in loaded.router.producers] == ["p"]


def test_precise_scorer_with_several_producers():
    """Which one is meant can't be told."""
    with pytest.raises(InvalidConfig) as caught:
        load(f"plugins: [{{type: {PRECISE_SCORER}}}, {{type: {PRECISE}, name: a}}, {{type: {PRECISE}, name: b}}]")
    assert [str(problem) for problem in caught.value.problems] == [
        "plugins[0].type: several producers could be meant, name one: a, b"
    ]


@pytest.mark.parametrize("gate", ["dataLayer", "experimentalDatalayer=true", "prepareDataPlugins=false"])
def test_retired_gates(gate):
    """Gates of before are accepted."""
    assert load(f"featureGates: ['{gate}']").router.warnings == (
        f"featureGates[0]: {gate.partition('=')[0]} is no gate any more: leave it out",
    )


def test_shown_as_written_now():
    """What `epp config show` prints needs no migration any more."""
    old = "plugins: [{type: prefix-cache-scorer, parameters: {blockSize: 128, maxPrefixBlocksToMatch: 10}}]"
    shown = show.to_yaml(load(old))
    again = resolve(shown, "shown", REGISTRY, context)
    assert again.router.warnings == ()
    assert show.to_yaml(again) == shown
