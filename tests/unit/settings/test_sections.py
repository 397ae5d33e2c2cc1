"""What is read and checked, but has no effect yet; and what is deprecated."""

import pytest

from epp.settings import InvalidConfig, Registry, resolve, show
from epp.settings.catalogue import ALIASES
from epp.testing import context


def test_detector_in_a_profile(load):
    """A saturation detector may stand in a profile, where it is a filter."""
    router = load("""
plugins: [{type: utilization-detector}]
schedulingProfiles: [{name: a, plugins: [{pluginRef: utilization-detector}]}]
""")
    assert [plugged.name for plugged in router.profiles["a"].filters] == ["utilization-detector"]
    assert router.warnings == ()


def test_detector_of_flow_control(load):
    """One that is configured for flow control is in no profile that doesn't list it; the section has no effect yet."""
    router = load("""
plugins: [{type: utilization-detector, name: mine}, {type: queue-scorer}]
schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}]
flowControl: {saturationDetector: {pluginRef: mine}}
featureGates: [flowControl]
""")
    assert router.profiles["a"].filters == ()
    assert router.warnings == (
        "featureGates: flowControl is accepted, has no effect yet",
        "flowControl: is accepted, has no effect yet",
    )


def test_aliases_lead_somewhere():
    """An old name is no type of its own, and its new one is there."""
    built = set(Registry.installed().types)
    assert built.isdisjoint(ALIASES)
    assert set(ALIASES.values()) <= built


def test_sections(load):
    """dataLayer and flowControl are read whole; references may name types that would be injected."""
    router = load("""
featureGates: [flowControl]
plugins:
- {type: models-data-source, name: page}
- {type: multicluster-file-discovery, parameters: {path: clusters.yaml}}
- type: program-aware-fairness
dataLayer:
  injectDefaults: false
  sources:
  - pluginRef: page
    extractors: [{pluginRef: models-data-extractor}]
  discovery: {pluginRef: multicluster-file-discovery}
  crossReplicaSyncInterval: 1m30s
flowControl:
  maxBytes: 1Gi
  maxRequests: 5000
  defaultRequestTTL: 0s
  noEndpointRequestTTL: 1.5s
  priorityBands:
  - {priority: 10, maxBytes: 500M, fairnessPolicyRef: program-aware-fairness}
  - {priority: -1, orderingPolicyRef: edf-ordering-policy}
  defaultPriorityBand: {maxRequests: "100"}
  defaultNegativePriorityBand: {}
  usageLimitPolicyPluginRef: static-usage-limit-policy
  saturationDetector: {pluginRef: utilization-detector}
  enableEviction: true
""")
    assert router.warnings == (
        'plugins[1].type: "multicluster-file-discovery" is alpha: its parameters and effect may change',
        'plugins[2].type: "program-aware-fairness" is accepted, has no effect yet: flow control is not enabled',
        "featureGates: flowControl is accepted, has no effect yet",
        "flowControl: is accepted, has no effect yet",
    )


def test_flow_control_without_its_gate(load):
    """In llm-d, too, the section needs its gate."""
    assert load("featureGates: ['flowControl = False ']\nflowControl: {}").warnings == (
        "flowControl: is accepted, has no effect yet; in llm-d, too, it needs the feature gate flowControl",
    )


@pytest.mark.parametrize("gate", ["flowControl", "flowControl=true", " flowControl = TRUE ", "flowControl=1"])
def test_gate_on(load, gate):
    """A gate is switched on by its name, or by a value that Go takes for true."""
    assert load(f"featureGates: ['{gate}']").warnings == ("featureGates: flowControl is accepted, has no effect yet",)


@pytest.mark.parametrize("gate", ["flowControl=false", "flowControl=0", "haPopulateNonLeaderDatastore"])
def test_gate_off(load, gate):
    """A gate that is off, or has no bearing, is silent."""
    assert load(f"featureGates: ['{gate}']").warnings == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "featureGates: [flowcontrol]",
            'featureGates[0]: "flowcontrol" is unknown or unregistered; there are: flowControl, '
            'haPopulateNonLeaderDatastore; did you mean "flowControl"?',
            id="unknown gate",
        ),
        pytest.param(
            "featureGates: [flowControl=on]", 'featureGates[0]: "on" is neither true nor false', id="gate's value"
        ),
        pytest.param(
            "dataLayer: {sources: [{pluginRef: nobody}]}",
            'dataLayer.sources[0].pluginRef: no plugin is called "nobody"; there are: none',
            id="undefined source",
        ),
        pytest.param(
            "plugins: [{type: k8s-notification-source, parameters: {version: v1, kind: Pod}}]\n"
            "dataLayer: {sources: [{pluginRef: models-data-source, extractors: [{pluginRef: "
            "k8s-notification-source}]}]}",
            'dataLayer.sources[0].extractors[0].pluginRef: "k8s-notification-source" is no extractor, it is: data '
            "source",
            id="wrong extractor",
        ),
        pytest.param(
            "dataLayer: {crossReplicaSyncInterval: 5}",
            'dataLayer.crossReplicaSyncInterval: a duration is a string, such as "200ms" or "30s"',
            id="duration",
        ),
        pytest.param(
            "flowControl: {defaultRequestTTL: -1s}",
            "flowControl.defaultRequestTTL: '-1s' is negative: a duration is 0 or more",
            id="negative duration",
        ),
        pytest.param(
            "flowControl: {maxBytes: -1}",
            "flowControl.maxBytes: -1 is negative: a quantity is 0 or more",
            id="negative quantity",
        ),
        pytest.param(
            "flowControl: {maxRequests: 1.5}",
            'flowControl.maxRequests: a quantity is a whole number or a string, such as 5000 or "64Mi"',
            id="fraction",
        ),
        pytest.param(
            "flowControl: {priorityBands: [{priority: 1}, {priority: 2}, {priority: 1}]}",
            "flowControl.priorityBands[2].priority: 1 has a band already",
            id="priority twice",
        ),
        pytest.param(
            "flowControl: {priorityBands: [{}]}", "flowControl.priorityBands[0].priority: is required", id="no priority"
        ),
        pytest.param(
            "flowControl: {defaultPriorityBand: {fairnessPolicyRef: edf-ordering-policy}}",
            'flowControl.defaultPriorityBand.fairnessPolicyRef: "edf-ordering-policy" is no fairness policy, it is: '
            "ordering policy",
            id="wrong policy",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\nsaturationDetector: {pluginRef: queue-scorer}",
            'saturationDetector.pluginRef: "queue-scorer" is no saturation detector, it is: scorer',
            id="wrong detector",
        ),
    ],
)
def test_errors(errors, text, expected):
    """They are as strict as the sections that have an effect."""
    assert errors(text) == [expected]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        pytest.param(
            "parser: {pluginRef: passthrough-parser}",
            "parser: is deprecated: write requestHandler.parsers, a list of pluginRef",
            id="parser",
        ),
        pytest.param(
            "parser: {pluginRef: openai-parser}\nrequestHandler: {parsers: [{pluginRef: passthrough-parser}]}",
            "parser: is deprecated, and ignored beside it: write requestHandler.parsers, a list of pluginRef",
            id="parser and requestHandler",
        ),
    ],
)
def test_deprecated_parser(load, text, warning):
    """The old key of the parser counts unless the new one is there."""
    router = load(text)
    assert [parser.name for parser in router.parsers] == ["passthrough-parser"]
    assert router.warnings == (warning,)


def test_deprecated_detector(load):
    """The old key of the saturation detector."""
    assert load("saturationDetector: {pluginRef: concurrency-detector}").warnings == (
        "saturationDetector: is deprecated: write flowControl.saturationDetector",
    )


V05 = """
plugins: [{type: queue-scorer}, {type: models-data-source, name: page}]
saturationDetector: {queueDepthThreshold: 7, kvCacheUtilThreshold: 0.0, metricsStalenessThreshold: 150ms}
data: {sources: [{pluginRef: page}]}
"""


def test_sections_of_before(resolved):
    """Thresholds under `saturationDetector` are a detector's, and no filter in a profile; `data` is `dataLayer`."""
    loaded = resolved(V05)
    assert show.effective(loaded)["flowControl"]["saturationDetector"] == {"pluginRef": "utilization-detector"}
    (detector,) = [i for i in loaded.instances.values() if i.type == "utilization-detector"]
    assert detector.raw == {"queueDepthThreshold": 7, "metricsStalenessThreshold": "150ms"}
    assert loaded.router.profiles["default"].filters == ()
    assert loaded.router.sources.models is not None
    assert [warning.partition(":")[0] for warning in loaded.router.warnings] == [
        "data",
        "saturationDetector.queueDepthThreshold",
        "saturationDetector.kvCacheUtilThreshold",
        "saturationDetector.metricsStalenessThreshold",
    ]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("data: {}\ndataLayer: {}", "data: is deprecated, and ignored beside it: write dataLayer"),
        (
            "plugins: [{type: watcher}]\nsaturationDetector: {pluginRef: utilization-detector, queueDepthThreshold: 7}",
            "saturationDetector.queueDepthThreshold: is deprecated, and ignored beside pluginRef: write it at a",
        ),
        ("saturationDetector: {}", "saturationDetector: is deprecated: write flowControl.saturationDetector"),
    ],
    ids=["data beside dataLayer", "a threshold beside a reference", "nothing"],
)
def test_sections_of_before_beside_those_of_now(load, text, warning):
    """What is written now counts."""
    assert [said for said in load(text).warnings if said.startswith(warning)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "saturationDetector: {kvCacheUtilThreshold: 9.0}",
            "saturationDetector.kvCacheUtilThreshold: must be less than or equal to 1, not 9.0",
            id="out of bounds",
        ),
        pytest.param(
            "saturationDetector: {queueDepth: 9}",
            "saturationDetector.queueDepth: unknown key; allowed: pluginRef, queueDepthThreshold, "
            'kvCacheUtilThreshold, metricsStalenessThreshold; did you mean "queueDepthThreshold"?',
            id="unknown",
        ),
        pytest.param(
            "data: {sources: [{pluginRef: nobody}]}",
            'data.sources[0].pluginRef: no plugin is called "nobody"; there are: none',
            id="undefined",
        ),
    ],
)
def test_errors_in_sections_of_before(errors, text, expected):
    """They name the place as it is written."""
    assert errors(text) == [expected]


def test_deprecated_api_version(registry):
    """The old apiVersion is accepted."""
    text = "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig"
    assert resolve(text, "f", registry, context).router.warnings == (
        'apiVersion: "inference.networking.x-k8s.io/v1alpha1" is deprecated: write "llm-d.ai/v1alpha1"',
    )


def test_aliases():
    """An old type name is the new type, called by the old name unless it has its own."""
    text = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{type: by-label-selector, parameters: {matchLabels: {a: b}}}]
schedulingProfiles: [{name: a, plugins: [{pluginRef: by-label-selector}]}]
requestHandler: {parsers: [{pluginRef: passthrough-parser}]}
"""
    router = resolve(text, "f", Registry.installed(), context).router
    (kept,) = router.profiles["a"].filters
    assert (kept.name, kept.type) == ("by-label-selector", "label-selector-filter")
    assert router.warnings == ('plugins[0].type: "by-label-selector" is deprecated: write "label-selector-filter"',)


def test_alias_in_messages(errors):
    """An alias whose new type is not installed is an error at its place."""
    (message,) = errors("plugins: [{type: by-label-selector}]")
    assert message.startswith('plugins[0].type: "label-selector-filter": unknown type')


def test_problems_have_lines(registry):
    """A problem knows its line."""
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nflowControl:\n  maxBytes: 5\n  ttl: 1s\n"
    with pytest.raises(InvalidConfig) as caught:
        resolve(text, "f", registry, context)
    assert [problem.line for problem in caught.value.problems] == [5]
