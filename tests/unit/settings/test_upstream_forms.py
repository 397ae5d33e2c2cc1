"""Forms that llm-d's own configurations have beside those of its v0.10: they load, and mean what they mean there."""

import json
from pathlib import Path

import pytest

from epp.plugin import EndpointsFile
from epp.settings import InvalidConfig, Registry, resolve, show
from epp.testing import context

REGISTRY = Registry.installed()


def load(text, version="llm-d.ai/v1alpha1"):
    return resolve(f"apiVersion: {version}\nkind: EndpointPickerConfig\n{text}", "f", REGISTRY, context)


def shown(resolved):
    return resolve(show.to_yaml(resolved), "shown", REGISTRY, context)


DISCOVERY = "plugins: [{type: file-discovery, parameters: {path: /e.yaml}}]\ndataLayer: {discovery: %s}"


@pytest.mark.parametrize("version", ["llm-d.ai/v1", "llm-d.ai/v1alpha1"])
@pytest.mark.parametrize("written", ["{endpoints: {pluginRef: file-discovery}}", "{pluginRef: file-discovery}"])
def test_discovery(version, written):
    """`endpoints` is v1's place for the reference; either does in either version."""
    loaded = load(DISCOVERY % written, version)
    assert loaded.router.sources.file == EndpointsFile(Path("/e.yaml"))
    assert shown(loaded).router.sources.file == EndpointsFile(Path("/e.yaml"))
    assert loaded.router.warnings == ()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{endpoints: {pluginRef: nobody}}", 'dataLayer.discovery.endpoints.pluginRef: no plugin is called "nobody"'),
        ("{pluginRef: queue-scorer}", 'dataLayer.discovery.pluginRef: "queue-scorer" is no discovery'),
        ("{}", "dataLayer.discovery: names no plugin: write pluginRef, or endpoints with one"),
    ],
)
def test_bad_discovery(written, message):
    """A reference that leads nowhere is told where it stands."""
    with pytest.raises(InvalidConfig) as caught:
        load(DISCOVERY % written)
    assert message in str(caught.value)


def test_sections_of_v1():
    """What has no effect yet says so."""
    loaded = load(
        """
dataLayer:
  discovery: {peers: {pluginRef: a}}
  crossReplica: {syncerPluginRef: b, syncInterval: 500ms, publishTimeout: 2s}
requestHandler: {propagatePriority: true}
flowControl: {priorityBands: [{priority: -1, defaultRequestTTL: 9000s}]}
""",
        "llm-d.ai/v1",
    )
    assert [str(warning) for warning in loaded.router.warnings] == [
        "requestHandler.propagatePriority: is accepted, has no effect yet",
        "dataLayer.discovery.peers: is accepted, has no effect yet",
        "dataLayer.crossReplica: is accepted, has no effect yet",
        "flowControl: is accepted, has no effect yet; in llm-d, too, it needs the feature gate flowControl",
    ]
    assert loaded.flow_control.priority_bands[0].default_request_ttl == 9000


@pytest.mark.parametrize(
    ("type_name", "old", "new"),
    [
        ("data-parallel-profile-handler", {"targetPort": 8200}, {"primaryPort": 8200}),
        ("data-parallel-profile-handler", {"targetPort": 8200, "primaryPort": 8100}, {"primaryPort": 8100}),
        ("mm-embeddings-cache-producer", {"cacheSizeInMB": 64}, {"cacheSizeInMBPerServer": 64}),
        (
            "disaggregatedset-rollout-screener",
            {"scope": {"labelSelector": "a=b"}, "revisionGating": {"mode": "sum", "requiredRoles": ["p", "d"]}},
            {
                "scope": {"labelSelector": "a=b"},
                "revisionGating": {"mode": "sum", "requireRoles": {"values": ["p", "d"]}},
            },
        ),
    ],
)
def test_old_parameters(type_name, old, new):
    """They are what the new ones are, in what is shown as in what is done."""
    profiles = "schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]"
    text = "plugins: [{type: queue-scorer}, {type: %s, parameters: %s}]\n" + profiles
    before, after = load(text % (type_name, json.dumps(old))), load(text % (type_name, json.dumps(new)))
    assert show.to_yaml(before) == show.to_yaml(after)
    assert sum("is deprecated" in warning for warning in before.router.warnings) == 1


@pytest.mark.parametrize(
    ("parameters", "decider"),
    [
        ("{}", ""),
        ("{threshold: 0}", ""),
        ("{}", "{type: prefix-based-pd-decider}, "),
        ("{deciderPluginName: always-disagg-pd-decider}", "{type: always-disagg-pd-decider}, "),
    ],
)
def test_a_handler_of_before_is_shown_so_that_it_loads(parameters, decider):
    """With or without a decider, and its threshold; and the same again."""
    loaded = load(
        f"plugins: [{decider}{{type: decode-filter}}, {{type: pd-profile-handler, parameters: {parameters}}}]\n"
        "schedulingProfiles: [{name: decode, plugins: [{pluginRef: decode-filter}]}]"
    )
    again = shown(loaded)
    assert show.to_yaml(again) == show.to_yaml(loaded)
    deciders = [type(each.instances["pd-profile-handler"].plugin._decider) for each in (loaded, again)]
    assert deciders[0] is deciders[1]


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        ({"valkeyConfig": {"address": "valkey://v:1", "backendType": "valkey"}}, {"valkeyConfig"}),
        ({"redisConfig": {"address": "redis://v:1"}}, {"redisConfig"}),
        ({"valkeyConfig": {}, "redisConfig": {}, "inMemoryConfig": {}}, {"valkeyConfig"}),
        ({"costAwareMemoryConfig": {}, "valkeyConfig": {}}, {"costAwareMemoryConfig"}),
        ({}, {"inMemoryConfig"}),
    ],
)
def test_the_index_that_counts(index, kept):
    """Of several the first by llm-d's order; what is shown has that one."""
    type_name = "precise-prefix-cache-producer"
    text = json.dumps({"indexerConfig": {"kvBlockIndexConfig": index}})
    again = shown(load(f"plugins: [{{type: {type_name}, parameters: {text}}}]"))
    found = again.instances[type_name].raw["indexerConfig"]["kvBlockIndexConfig"]
    assert {key for key in found if key.endswith("Config")} == kept
