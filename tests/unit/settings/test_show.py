"""The effective configuration."""

import json

import pytest
import yaml

from epp.settings import Registry, resolve, show
from epp.testing import context

FILE = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [" flowControl = True "]
plugins:
- type: tuned-scorer
- {type: filter-and-scorer, name: both}
- type: prefix-scorer
- {type: utilization-detector, parameters: {queueDepthThreshold: 7}}
schedulingProfiles:
- name: one
  plugins:
  - {pluginRef: tuned-scorer, weight: 2}
  - pluginRef: both
  - pluginRef: prefix-scorer
parser: {pluginRef: passthrough-parser}
saturationDetector: {pluginRef: utilization-detector}
flowControl: {maxBytes: 1Gi}
"""


BAND = {
    "maxBytes": 1_000_000_000,
    "maxRequests": 5000,
    "fairnessPolicyRef": "global-strict-fairness-policy",
    "orderingPolicyRef": "fcfs-ordering-policy",
}


def test_effective(registry):
    """Everything that was left out is there, under the canonical keys."""
    assert show.effective(resolve(FILE, "f", registry, context)) == {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": ["flowControl", "haPopulateNonLeaderDatastore"],
        "plugins": [
            {
                "name": "tuned-scorer",
                "type": "tuned-scorer",
                "parameters": {"maxCount": 7, "mode": "fast", "inner": {"upperBound": 1.0}},
            },
            {"name": "both", "type": "filter-and-scorer"},
            {
                "name": "prefix-scorer",
                "type": "prefix-scorer",
                "parameters": {"producer": "approx-prefix-cache-producer"},
            },
            {
                "name": "utilization-detector",
                "type": "utilization-detector",
                "parameters": {
                    "queueDepthThreshold": 7.0,
                    "kvCacheUtilThreshold": 0.8,
                    "metricsStalenessThreshold": "0.2s",
                    "headroom": 0.0,
                },
            },
            {"name": "max-score-picker", "type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 1}},
            {"name": "single-profile-handler", "type": "single-profile-handler"},
            {"name": "passthrough-parser", "type": "passthrough-parser"},
            {"name": "approx-prefix-cache-producer", "type": "approx-prefix-cache-producer"},
            {"name": "length-producer", "type": "length-producer"},
            {"name": "global-strict-fairness-policy", "type": "global-strict-fairness-policy"},
            {"name": "fcfs-ordering-policy", "type": "fcfs-ordering-policy"},
            {
                "name": "static-usage-limit-policy",
                "type": "static-usage-limit-policy",
                "parameters": {"threshold": 1.0},
            },
        ],
        "schedulingProfiles": [
            {
                "name": "one",
                "plugins": [
                    {"pluginRef": "tuned-scorer", "weight": 2.0},
                    {"pluginRef": "both", "weight": 1.0},
                    {"pluginRef": "prefix-scorer", "weight": 1.0},
                    {"pluginRef": "max-score-picker"},
                ],
            }
        ],
        "requestHandler": {"parsers": [{"pluginRef": "passthrough-parser"}]},
        "dataLayer": {"injectDefaults": True, "sources": [], "crossReplicaSyncInterval": "0.2s"},
        "flowControl": {
            "maxBytes": 2**30,
            "maxRequests": 0,
            "defaultRequestTTL": "60s",
            "noEndpointRequestTTL": "60s",
            "priorityBands": [],
            "defaultPriorityBand": BAND,
            "defaultNegativePriorityBand": BAND,
            "usageLimitPolicyPluginRef": "static-usage-limit-policy",
            "saturationDetector": {"pluginRef": "utilization-detector"},
            "enableEviction": False,
        },
    }


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("", {}),
        (
            (
                "flowControl: {defaultRequestTTL: 5s, defaultPriorityBand: {maxRequests: 7}, "
                "priorityBands: [{priority: 3}]}"
            ),
            {
                "noEndpointRequestTTL": "5s",
                "priorityBands": [BAND | {"priority": 3}],
                "defaultPriorityBand": BAND | {"maxRequests": 7},
                "defaultNegativePriorityBand": BAND | {"maxRequests": 7},
            },
        ),
        (
            (
                "flowControl: {noEndpointRequestTTL: 0s, "
                "defaultNegativePriorityBand: {orderingPolicyRef: edf-ordering-policy}}"
            ),
            {
                "noEndpointRequestTTL": "0s",
                "defaultPriorityBand": BAND,
                "defaultNegativePriorityBand": BAND | {"orderingPolicyRef": "edf-ordering-policy"},
            },
        ),
        (
            "saturationDetector: {pluginRef: concurrency-detector}",
            {"saturationDetector": {"pluginRef": "concurrency-detector"}},
        ),
    ],
    ids=["none", "bands", "negative", "old key"],
)
def test_flow_control(registry, section, expected):
    """Where it is written it is whole, by llm-d's rules; without it and its gate it is not there."""
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{section}"
    shown = show.effective(resolve(text, "f", registry, context))
    assert {key: shown["flowControl"][key] for key in expected} == expected
    assert ("flowControl" in shown) == bool(section)
    assert shown["featureGates"] == ["flowControl=false", "haPopulateNonLeaderDatastore"]


@pytest.mark.parametrize(
    ("type_name", "parameters", "expected"),
    [
        (
            "precise-prefix-cache-producer",
            {"tokenProcessorConfig": {"blockSize": 128}},
            {
                "tokenProcessorConfig": {"blockSizeTokens": 128, "hashSeed": "", "hashAlgorithm": "cbor-fnv"},
                "indexerConfig": {
                    "kvBlockIndexConfig": {
                        "inMemoryConfig": {"size": 1e8, "podCacheSize": 10},
                        "enableMetrics": False,
                    },
                    "kvCacheBackendConfigs": [{"name": "gpu", "weight": 1.0}, {"name": "cpu", "weight": 0.8}],
                },
            },
        ),
        (
            "precise-prefix-cache-producer",
            {
                "tokenProcessorConfig": {"blockSize": 128, "blockSizeTokens": 256},
                "indexerConfig": {
                    "kvBlockIndexConfig": {"inMemoryConfig": {}, "redisConfig": {}},
                    "kvCacheBackendConfigs": [{"name": "gpu"}],
                },
            },
            {
                "tokenProcessorConfig": {"blockSizeTokens": 256, "hashSeed": "", "hashAlgorithm": "cbor-fnv"},
                "indexerConfig": {
                    "kvBlockIndexConfig": {
                        "redisConfig": {
                            "address": "redis://127.0.0.1:6379",
                            "backendType": "redis",
                            "enableRDMA": False,
                        },
                        "enableMetrics": False,
                    },
                    "kvCacheBackendConfigs": [{"name": "gpu", "weight": 1.0}],
                },
            },
        ),
        (
            "approx-prefix-cache-producer",
            {"blockSize": 128, "maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 10},
            {"blockSizeTokens": 128, "maxPrefixTokensToMatch": 1280, "blockSize": None, "maxPrefixBlocksToMatch": None},
        ),
        (
            "approx-prefix-cache-producer",
            {"maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 0},
            {"blockSizeTokens": 64, "maxPrefixTokensToMatch": 0, "maxPrefixBlocksToMatch": 0},
        ),
        ("approx-prefix-cache-producer", {}, {"blockSizeTokens": 64, "maxPrefixTokensToMatch": 131072}),
    ],
    ids=["precise", "precise, several", "old parameters", "no limit", "defaults"],
)
def test_values_that_count(type_name, parameters, expected):
    """Of parameters that say the same thing only the one that counts is shown, as it counts."""
    entry = json.dumps({"type": type_name, "parameters": parameters})
    text = (
        f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{entry}, {{type: prefix-cache-scorer}}]"
    )
    first = resolve(text, "f", Registry.installed(), context)
    shown = {plugin["type"]: plugin for plugin in show.effective(first)["plugins"]}[type_name]["parameters"]
    assert {key: shown.get(key) for key in expected} == expected
    again = resolve(show.to_yaml(first), "f", Registry.installed(), context)
    assert show.effective(again) == show.effective(first)
    assert repr(again.instances[type_name].plugin) == repr(first.instances[type_name].plugin)


def test_shown_is_loadable(registry):
    """What is shown loads, means the same, and has nothing deprecated in it."""
    first = resolve(FILE, "f", registry, context)
    second = resolve(show.to_yaml(first), "f", registry, context)
    assert show.effective(second) == show.effective(first)
    assert [p.name for p in second.router.producers] == [p.name for p in first.router.producers]
    assert not [warning for warning in second.router.warnings if "deprecated" in warning]


def test_yaml_keeps_the_order(registry):
    """The YAML is in the order in which one writes such a file."""
    text = show.to_yaml(resolve(FILE, "f", registry, context))
    assert list(yaml.safe_load(text))[:2] == ["apiVersion", "kind"]
    assert text.startswith("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n")
