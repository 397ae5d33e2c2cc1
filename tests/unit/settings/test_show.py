"""The effective configuration."""

import yaml

from epp.settings import resolve, show
from epp.testing import context

FILE = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
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


def test_effective(registry):
    """Everything that was left out is there, under the canonical keys."""
    assert show.effective(resolve(FILE, "f", registry, context)) == {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": ["flowControl"],
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
                    "metricsStalenessThreshold": "200ms",
                    "headroom": 0.0,
                },
            },
            {"name": "max-score-picker", "type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 1}},
            {"name": "single-profile-handler", "type": "single-profile-handler"},
            {"name": "passthrough-parser", "type": "passthrough-parser"},
            {"name": "approx-prefix-cache-producer", "type": "approx-prefix-cache-producer"},
            {"name": "length-producer", "type": "length-producer"},
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
        "flowControl": {"maxBytes": "1Gi", "saturationDetector": {"pluginRef": "utilization-detector"}},
    }


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
