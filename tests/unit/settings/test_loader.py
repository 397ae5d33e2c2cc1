"""What a configuration amounts to: names, profiles, defaults, what is injected."""

from pathlib import Path

import pytest

from epp.settings import load as load_text
from epp.testing import context


def names(plugged):
    return [each.name for each in plugged]


def test_minimal(load):
    """Without plugins and profiles there is one profile, whose picker, handler and parsers are llm-d's defaults."""
    router = load("")
    assert list(router.profiles) == ["default"]
    assert router.profiles["default"].scorers == ()
    assert router.profiles["default"].picker.type == "max-score-picker"
    assert router.handler.type == "single-profile-handler"
    assert names(router.parsers) == ["openai-parser", "passthrough-parser"]
    assert router.warnings == ()
    assert router.origin == "test.yaml"


def test_profile_in_file_order(load):
    """Filters and scorers stand in the order of the profile, a scorer without a weight weighs 1."""
    router = load("""
plugins:
- type: queue-scorer
- {type: queue-scorer, name: again}
- type: plain-filter
- type: filter-and-scorer
- type: random-picker
schedulingProfiles:
- name: one
  plugins:
  - {pluginRef: filter-and-scorer, weight: 0.5}
  - pluginRef: again
  - {pluginRef: queue-scorer, weight: 2}
  - pluginRef: plain-filter
  - pluginRef: random-picker
""")
    profile = router.profiles["one"]
    assert names(profile.filters) == ["filter-and-scorer", "plain-filter"]
    assert [(p.name, weight) for p, weight in profile.scorers] == [
        ("filter-and-scorer", 0.5),
        ("again", 1.0),
        ("queue-scorer", 2.0),
    ]
    assert profile.picker.name == "random-picker"
    assert profile.scorers[1][0].type == "queue-scorer"


def test_no_profiles(load):
    """Without schedulingProfiles every configured filter, scorer and picker is in one profile, in file order."""
    router = load("""
plugins:
- type: filter-and-scorer
- type: random-picker
- type: queue-scorer
- type: plain-filter
""")
    profile = router.profiles["default"]
    assert names(profile.filters) == ["filter-and-scorer", "plain-filter"]
    assert [(p.name, weight) for p, weight in profile.scorers] == [("filter-and-scorer", 1.0), ("queue-scorer", 1.0)]
    assert profile.picker.name == "random-picker"


def test_picker_of_the_file(load):
    """A profile without a picker takes the first configured one before the default."""
    router = load("""
plugins:
- {type: random-picker, name: mine}
- {type: random-picker, name: other}
schedulingProfiles:
- name: one
""")
    assert router.profiles["one"].picker.name == "mine"


def test_handler_is_told_the_profiles(load):
    """The profile handler learns which profiles there are."""
    router = load("""
plugins: [{type: two-profiles-handler}]
schedulingProfiles: [{name: decode}, {name: prefill}]
""")
    assert router.handler.plugin.profiles == ("decode", "prefill")


def test_parameters_and_context(load):
    """Parameters have their defaults, and a plugin that asks gets a context with its name."""
    router = load("""
plugins:
- name: tuned
  type: tuned-scorer
  parameters: {maxCount: 3, inner: {upperBound: 2}}
""")
    plugin = router.profiles["default"].scorers[0][0].plugin
    assert plugin.parameters.max_count == 3
    assert plugin.parameters.mode == "fast"
    assert plugin.parameters.inner.upper_bound == 2.0
    assert plugin.context.name == "tuned"


@pytest.mark.parametrize("parameters", ["", "parameters:", "parameters: {}"])
def test_no_parameters(load, parameters):
    """No parameters, null and an empty object are the same, for a plugin without parameters, too."""
    router = load(f"""
plugins:
- type: tuned-scorer
  {parameters}
- type: queue-scorer
  {parameters}
""")
    assert router.profiles["default"].scorers[0][0].plugin.parameters.max_count == 7


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        pytest.param("", ["openai-parser", "passthrough-parser"], id="default"),
        pytest.param("requestHandler: {}", ["openai-parser", "passthrough-parser"], id="empty"),
        pytest.param("requestHandler: {parsers: [{pluginRef: mine}]}", ["mine"], id="configured"),
        pytest.param("requestHandler: {parsers: [{pluginRef: passthrough-parser}]}", ["passthrough-parser"], id="type"),
    ],
)
def test_parsers(load, section, expected):
    """The parsers stand in order; a reference that no plugin is called by is taken as a type."""
    router = load(f"plugins: [{{type: openai-parser, name: mine}}]\n{section}")
    assert names(router.parsers) == expected


def test_observers(load):
    """A plugin with an observer's method observes, without being referred to."""
    router = load("plugins: [{type: watcher}, {type: queue-scorer}]")
    assert names(router.observers) == ["watcher"]
    assert router.warnings == ()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        pytest.param(
            "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: a}]",
            'plugins[0]: "queue-scorer" (plugins[0]) is referred to by nothing, so it has no effect',
            id="unused",
        ),
        pytest.param(
            "plugins: [{type: watcher}]\nschedulingProfiles: [{name: a, plugins: [{pluginRef: watcher}]}]",
            'schedulingProfiles[0].plugins[0]: "watcher" (plugins[0]) is none of filter, scorer and picker: it has no '
            "effect in a profile",
            id="not for profiles",
        ),
        pytest.param(
            "plugins: [{type: plain-filter}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: plain-filter, weight: 2}]}]",
            'schedulingProfiles[0].plugins[0].weight: "plain-filter" (plugins[0]) is no scorer: its weight has no '
            "effect",
            id="weight of a filter",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer, weight: -1}]}]",
            "schedulingProfiles[0].plugins[0].weight: -1 is negative: what the scorer prefers will be avoided",
            id="negative weight",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer, weight: 1e9}]}]",
            "schedulingProfiles[0].plugins[0].weight: 1e+09 is huge: beside it no other scorer counts",
            id="huge weight",
        ),
        pytest.param(
            "plugins: [{type: alpha-scorer}]",
            'plugins[0].type: "alpha-scorer" is alpha: its parameters and effect may change',
            id="alpha",
        ),
        pytest.param(
            "plugins: [{type: old-scorer}]",
            'plugins[0].type: "old-scorer" is deprecated: write "queue-scorer"',
            id="deprecated type",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {oldCount: 3}}]",
            "plugins[0].parameters.oldCount: is deprecated: write maxCount",
            id="deprecated parameter",
        ),
        pytest.param(
            "plugins: [{type: openai-parser, name: a}]\n"
            "requestHandler: {parsers: [{pluginRef: a}, {pluginRef: openai-parser}]}",
            "requestHandler.parsers[1].pluginRef: a parser of the type openai-parser stands above already: this one "
            "has no effect",
            id="second parser of a type",
        ),
    ],
)
def test_warnings(load, text, warning):
    """What is legal and probably not meant is said, once, with its place."""
    assert load(text).warnings == (warning,)


def test_weights_that_need_no_warning(load):
    """Any other finite weight is fine: llm-d's own are not normalised."""
    router = load("""
plugins: [{type: queue-scorer}]
schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer, weight: 0}, {pluginRef: queue-scorer, weight: 100}]}]
""")
    assert [weight for _, weight in router.profiles["a"].scorers] == [0.0, 100.0]
    assert router.warnings == ()


def test_origin_as_path(registry):
    """The origin may be a file's path."""
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig"
    assert load_text(text, Path("dir/epp.yaml"), registry, context).origin == "dir/epp.yaml"
