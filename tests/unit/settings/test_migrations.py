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


def test_dropped_parameters_of_a_precise_scorer():
    """The producer that is there has parameters of its own: the scorer's are told to have no effect."""
    loaded = load(f"""
plugins:
- {{type: {PRECISE_SCORER}, parameters: {{kvEventsConfig: {{concurrency: 9}}, speculativeIndexing: true}}}}
- {{type: {PRECISE}, name: p}}
""")
    dropped = 'has no effect: the producer is there, "p"; write it there'
    assert [warning for warning in loaded.router.warnings if dropped in warning] == [
        f"plugins[0].parameters.kvEventsConfig: {dropped}",
        f"plugins[0].parameters.speculativeIndexing: {dropped}",
    ]


@pytest.mark.parametrize("type_name", [PRECISE_SCORER, PRECISE])
def test_parameters_that_stood_at_the_indexer(type_name):
    """Each goes to where it is now, or is left out, with a warning; one that is there already counts."""
    loaded = load(f"""
plugins:
- type: {type_name}
  parameters:
    speculativeIndexing: false
    indexerConfig:
      tokenProcessorConfig: {{blockSizeTokens: 128}}
      speculativeIndexing: true
      prefixStoreConfig: {{blockSize: 256}}
      tokenizersPoolConfig: {{modelName: m}}
      kvBlockIndexConfig: {{maxPrefixTokensToMatch: 5, enableMetrics: true}}
""")
    assert parameters(loaded, PRECISE) == {
        "speculativeIndexing": False,
        "tokenProcessorConfig": {"blockSizeTokens": 128},
        "indexerConfig": {"kvBlockIndexConfig": {"enableMetrics": True}},
    }
    at = "plugins[0].parameters.indexerConfig."
    assert [warning for warning in loaded.router.warnings if warning.startswith(at)] == [
        f"{at}tokenProcessorConfig: is deprecated: write tokenProcessorConfig beside indexerConfig",
        f"{at}speculativeIndexing: is deprecated, and ignored there: write speculativeIndexing beside indexerConfig",
        f"{at}prefixStoreConfig: is deprecated, and has no effect: leave it out",
        f"{at}tokenizersPoolConfig: {POOL}",
        f"{at}kvBlockIndexConfig.maxPrefixTokensToMatch: has no effect: leave it out",
    ]


@pytest.mark.parametrize(
    ("plugins", "extractors", "producer", "warned"),
    [
        pytest.param(f"{{type: {PRECISE}}}", PRECISE, PRECISE, False, id="the producer"),
        pytest.param(f"{{type: {PRECISE_SCORER}}}", PRECISE_SCORER, PRECISE, True, id="the old scorer"),
        pytest.param(f"{{type: {PRECISE_SCORER}, name: s}}", "s", PRECISE, True, id="the old scorer by its name"),
        pytest.param(
            f"{{type: {PRECISE_SCORER}}}, {{type: {PRECISE}, name: p}}", PRECISE_SCORER, "p", True, id="with a producer"
        ),
        pytest.param("{type: mm-embeddings-cache-producer}", "mm-embeddings-cache-producer", None, False, id="media"),
    ],
)
def test_endpoint_extractors(plugins, extractors, producer, warned):
    """They stand at the source that tells of endpoints; the old scorer there means its producer."""
    loaded = load(f"""
plugins: [{{type: endpoint-notification-source}}, {plugins}]
dataLayer: {{sources: [{{pluginRef: endpoint-notification-source, extractors: [{{pluginRef: {extractors}}}]}}]}}
""")
    wiring = dict(loaded.router.sources.wiring)
    assert wiring["endpoint-notification-source"] == (producer or extractors,)
    place = "dataLayer.sources[0].extractors[0].pluginRef: is deprecated"
    assert any(warning.startswith(place) for warning in loaded.router.warnings) is warned


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
