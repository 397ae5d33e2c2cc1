"""What is wrong with a configuration: the place, what is allowed, the nearest name; and all of it at once."""

import pickle

import pytest
from pydantic import Field

import epp.plugin
from epp.errors import ConfigError
from epp.settings import InvalidConfig, resolve
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, PlainFilter, registry_of

ONE = "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "plugin: []",
            "plugin: unknown key; allowed: apiVersion, kind, featureGates, plugins, schedulingProfiles, "
            'requestHandler, parser, dataLayer, flowControl, saturationDetector, shadow, data; did you mean "plugins"?',
            id="unknown key",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer, params: {}}]",
            'plugins[0].params: unknown key; allowed: type, name, parameters; did you mean "parameters"?',
            id="unknown key in a list",
        ),
        pytest.param(
            "flowControl: {defaultPriorityBand: {maxByte: 1}}",
            "flowControl.defaultPriorityBand.maxByte: unknown key; allowed: maxBytes, maxRequests, defaultRequestTTL, "
            'fairnessPolicyRef, orderingPolicyRef; did you mean "maxBytes"?',
            id="unknown key deep inside",
        ),
        pytest.param("plugins: [{name: a}]", "plugins[0].type: is required", id="no type"),
        pytest.param(
            "plugins: [{type: ''}]", 'plugins[0].type: string must have at least 1 character, not ""', id="empty type"
        ),
        pytest.param("plugins: {}", "plugins: must be a valid array, not {}", id="no list"),
        pytest.param(
            "plugins: [{type: queue-scorer, parameters: [1]}]",
            "plugins[0].parameters: must be an object, not [1]",
            id="parameters of the wrong type",
        ),
        pytest.param(
            "plugins: [{type: queue-scoror}]",
            'plugins[0].type: "queue-scoror": unknown type; did you mean "queue-scorer"?',
            id="misspelt type",
        ),
        pytest.param(
            "plugins: [{type: zzz}]",
            'plugins[0].type: "zzz": unknown type; `epp plugins` lists all, a file is written ./my_scorer.py',
            id="unknown type",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}, {type: queue-scorer}]",
            'plugins[1].name: "queue-scorer" is taken by an earlier plugin; names are unique',
            id="same name",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer, parameters: {a: 1}}]",
            'plugins[0].parameters.a: "queue-scorer" takes no parameters: leave it out',
            id="no parameters",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {maxcount: 1}}]",
            "plugins[0].parameters.maxcount: unknown key; allowed: maxCount, mode, inner, oldCount; did you mean "
            '"maxCount"?',
            id="misspelt parameter",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {max_count: 1}}]",
            "plugins[0].parameters.max_count: unknown key; allowed: maxCount, mode, inner, oldCount; did you mean "
            '"maxCount"?',
            id="snake case",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {inner: {upper: 1}}}]",
            'plugins[0].parameters.inner.upper: unknown key; allowed: upperBound; did you mean "upperBound"?',
            id="misspelt parameter inside",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {maxCount: '3'}}]",
            'plugins[0].parameters.maxCount: must be a valid integer, not "3"',
            id="text for a number",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {maxCount: -3}}]",
            "plugins[0].parameters.maxCount: must be greater than or equal to 0, not -3",
            id="out of bounds",
        ),
        pytest.param(
            "plugins: [{type: tuned-scorer, parameters: {mode: fsat}}]",
            "plugins[0].parameters.mode: must be 'fast' or 'slow', not \"fsat\"",
            id="no such value",
        ),
        pytest.param(
            "plugins: [{type: choosy-scorer}]",
            'plugins[0].parameters: "choosy-scorer" can\'t be built: RuntimeError: no licence',
            id="constructor raises",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\nschedulingProfiles: [{name: a, plugins: [{pluginRef: qeue-scorer}]}]",
            'schedulingProfiles[0].plugins[0].pluginRef: no plugin is called "qeue-scorer"; there are: queue-scorer; '
            'did you mean "queue-scorer"?',
            id="undefined reference",
        ),
        pytest.param(
            ONE,
            'schedulingProfiles[0].plugins[0].pluginRef: no plugin is called "queue-scorer"; there are: none',
            id="a type is no plugin",
        ),
        pytest.param("schedulingProfiles: [{}]", "schedulingProfiles[0].name: is required", id="profile without name"),
        pytest.param(
            "schedulingProfiles: [{name: a}, {name: a}]",
            'schedulingProfiles[1].name: a profile "a" stands above already; names are unique',
            id="same profile",
        ),
        pytest.param(
            "schedulingProfiles: [{name: a, plugins: [{weight: 1}]}]",
            "schedulingProfiles[0].plugins[0].pluginRef: is required",
            id="no reference",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer, weight: much}]}]",
            'schedulingProfiles[0].plugins[0].weight: must be a valid number, not "much"',
            id="weight is text",
        ),
        pytest.param(
            "plugins: [{type: queue-scorer}]\n"
            "schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer, weight: .inf}]}]",
            "schedulingProfiles[0].plugins[0].weight: must be a finite number, not Infinity",
            id="weight is infinite",
        ),
        pytest.param(
            "plugins: [{type: random-picker}, {type: max-score-picker}]",
            'plugins: profile "default" has several pickers, one is allowed: "random-picker" (plugins[0]), '
            '"max-score-picker" (plugins[1])',
            id="two pickers",
        ),
        pytest.param(
            "schedulingProfiles: [{name: a}, {name: b}]",
            "plugins: no profile handler configured, which several profiles need: a, b",
            id="no handler",
        ),
        pytest.param(
            "plugins: [{type: two-profiles-handler}, {type: single-profile-handler}]",
            'plugins: multiple profile handlers found, exactly one is needed: "two-profiles-handler" (plugins[0]), '
            '"single-profile-handler" (plugins[1])',
            id="two handlers",
        ),
        pytest.param(
            "plugins: [{type: single-profile-handler}]\nschedulingProfiles: [{name: a}, {name: b}]",
            "plugins[0]: single-profile-handler runs exactly one profile, there are: a, b",
            id="single handler, two profiles",
        ),
        pytest.param(
            "requestHandler: {parsers: [{pluginRef: openai-parsre}]}",
            'requestHandler.parsers[0].pluginRef: "openai-parsre": unknown type; did you mean "openai-parser"?',
            id="unknown parser",
        ),
        pytest.param(
            "plugins: [{type: watcher}]\nrequestHandler: {parsers: [{pluginRef: watcher}]}",
            'requestHandler.parsers[0].pluginRef: "watcher" (plugins[0]) is no parser, it is: observer',
            id="no parser",
        ),
        pytest.param(
            "parser: {pluginRef: queue-scorer}",
            'parser.pluginRef: "queue-scorer" is no parser, it is: scorer',
            id="no parser under the old key",
        ),
    ],
)
def test_one_error(errors, text, expected):
    """Each error names its place, what is allowed, and the nearest known name."""
    assert errors(text) == [expected]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param("kind: EndpointPickerConfig", "apiVersion: is required", id="no apiVersion"),
        pytest.param("apiVersion: llm-d.ai/v1alpha1", "kind: is required", id="no kind"),
        pytest.param(
            "apiVersion: llm-d.ai/v2\nkind: EndpointPickerConfig",
            "apiVersion: must be 'llm-d.ai/v1alpha1', 'llm-d.ai/v1' or 'inference.networking.x-k8s.io/v1alpha1', "
            'not "llm-d.ai/v2"',
            id="apiVersion",
        ),
        pytest.param(
            "apiVersion: llm-d.ai/v1alpha1\nkind: InferencePool",
            "kind: must be 'EndpointPickerConfig', not \"InferencePool\"",
            id="kind",
        ),
    ],
)
def test_identity(registry, head, expected):
    """A file must say what it is, and its other errors are still found."""
    with pytest.raises(InvalidConfig) as caught:
        resolve(f"{head}\nplugins: [{{type: nothing-like-it}}]", "f", registry, context)
    assert [problem.place for problem in caught.value.problems].count("plugins[0].type") == 1
    assert expected in map(str, caught.value.problems)


def test_kubernetes_metadata(registry):
    """The file has no `metadata`, as in llm-d; who writes it doesn't mean `data`."""
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nmetadata: {name: x}\n"
    with pytest.raises(InvalidConfig) as caught:
        resolve(text, "f", registry, context)
    (problem,) = caught.value.problems
    assert (problem.place, problem.line) == ("metadata", 3)
    assert "did you mean" not in problem.message


def test_lines_below_a_misspelt_key(registry):
    """What is wrong there is told with the line where it stands."""
    plugins = "plugin:\n- nam: a\n  type: plain-filter\n- type: b\n"
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n" + plugins
    with pytest.raises(InvalidConfig) as caught:
        resolve(text, "f", registry, context)
    assert [(problem.place, problem.line) for problem in caught.value.problems] == [
        ("plugin", 3),
        ("plugins[0].nam", 4),
        ("plugins[1].type", 6),
    ]


def test_all_at_once(errors):
    """Errors of every step are found in one go, by line, and one slip is one error."""
    found = errors("""
featureGates: [flowcontrol]
plugins:
- type: tuned-scorer
  parameter: {maxCount: no number}
- type: queue-scorrer
- type: random-picker
- type: random-picker
schedulingProfiles:
- name: a
  plugins:
  - pluginref: queue-scorer
    weight: high
  - pluginRef: nobody
requestHandler:
  parsers:
  - pluginRef: vllmgrpc-parser
parser: {pluginRef: openai-parser}
parser: {pluginRef: openai-parser}
""")
    assert [message.partition(": ")[0] for message in found] == [
        "featureGates[0]",
        "plugins[0].parameter",
        "plugins[0].parameters.maxCount",
        "plugins[1].type",
        "plugins[3].name",
        "schedulingProfiles[0].plugins[0].pluginref",
        "schedulingProfiles[0].plugins[0].weight",
        "schedulingProfiles[0].plugins[1].pluginRef",
        "requestHandler.parsers[0].pluginRef",
        "parser",
    ]


SLIPS = {
    "featureGates: [flowControl]": ("featureGates: [flowControll]", "featureGates[0]"),
    "- type: queue-scorer #": ("- parameters: {} #", "plugins[0].type"),
    "- {type: tuned-scorer, name: tuned}": ("- {name: tuned}", "plugins[1].type"),
    "- {type: plain-filter, name: plain}": ("- 3", "plugins[2]"),
    "maxCount: 5": ("maxCount: high", "plugins[3].parameters.maxCount"),
    "{type: needy-scorer, parameters: {need: 1}}": ("{type: needy-scorer, parameters: 3}", "plugins[5].parameters"),
    "- {type: random-picker, name: last}": ("- {type: random-picker, name: ''}", "plugins[4].name"),
    "- {pluginRef: queue-scorer}": ("- {weight: 1}", "schedulingProfiles[0].plugins[0].pluginRef"),
    "- {pluginRef: tuned}": ("- tuned", "schedulingProfiles[0].plugins[1]"),
    "weight: 2": ("weight: much", "schedulingProfiles[0].plugins[2].weight"),
    "- {pluginRef: last}": ("- {pluginRef: [last]}", "schedulingProfiles[0].plugins[3].pluginRef"),
    "defaultRequestTTL: 1s": ("defaultRequestTTL: -1s", "flowControl.defaultRequestTTL"),
    "- {priority: 1}": ("- {maxBytes: 1}", "flowControl.priorityBands[0].priority"),
    "injectDefaults: true": ("injectDefaults: perhaps", "dataLayer.injectDefaults"),
    "[{pluginRef: openai-parser}]": ("{pluginRef: openai-parser}", "requestHandler.parsers"),
    "- name: beside": ("- plugins: []", "shadow.schedulingProfiles[0].name"),
}
"""Lines of the file below, each with a slip in it and the place of its error."""

WHOLE = """
featureGates: [flowControl]
plugins:
- type: queue-scorer #
- {type: tuned-scorer, name: tuned}
- {type: plain-filter, name: plain}
- {type: tuned-scorer, name: other, parameters: {maxCount: 5}}
- {type: random-picker, name: last}
- {type: needy-scorer, parameters: {need: 1}}
schedulingProfiles:
- name: a
  plugins:
  - {pluginRef: queue-scorer}
  - {pluginRef: tuned}
  - {pluginRef: other, weight: 2}
  - {pluginRef: last}
  - {pluginRef: plain}
flowControl:
  defaultRequestTTL: 1s
  priorityBands:
  - {priority: 1}
  - {priority: 2}
dataLayer:
  injectDefaults: true
requestHandler:
  parsers: [{pluginRef: openai-parser}]
shadow:
  schedulingProfiles:
  - name: beside
"""


@pytest.mark.parametrize("one", SLIPS)
def test_no_slip_hides_another(errors, one):
    """Whatever else is wrong in a file, each error is reported, and nothing else is."""
    slipped = WHOLE.replace(one, SLIPS[one][0])
    assert [message.partition(": ")[0] for message in errors(slipped)] == [SLIPS[one][1]]
    for other, (wrong, place) in SLIPS.items():
        if other != one:
            found = {message.partition(": ")[0] for message in errors(slipped.replace(other, wrong))}
            assert found == {SLIPS[one][1], place}


@pytest.mark.parametrize(
    ("source", "entry"),
    [
        ("import nothing_like_it\nclass MyScorer:\n    def score(self, request, c): ...\n", "./mine.py"),
        ("class MyScorer\n", "./mine.py"),
        ("def broken(:\n", "./mine.py"),
        (None, "./mine.py"),
        (None, "./mine.py:MyScorer"),
    ],
    ids=["import fails", "syntax error", "no class to be seen", "no file", "no file of the class"],
)
def test_a_broken_file_is_one_error(tmp_path, registry, source, entry):
    """What refers to its plugin is no error of its own; other references are still checked."""
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    profile = "schedulingProfiles: [{name: a, plugins: [{pluginRef: my-scorer}]}]"
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{{type: '{entry}'}}]\n"
    with pytest.raises(InvalidConfig) as caught:
        resolve(text + profile, tmp_path / "epp.yaml", registry, context)
    assert [problem.place for problem in caught.value.problems] == ["plugins[0].type"]
    if source is not None and "MyScorer" in source:
        with pytest.raises(InvalidConfig) as caught:
            resolve(text + profile.replace("my-scorer", "yours"), tmp_path / "epp.yaml", registry, context)
        assert len(caught.value.problems) == 2


def test_list_too_short():
    """A list whose items are wrong isn't too short as well."""

    class Items(PlainFilter):
        class Parameters(epp.plugin.Parameters):
            items: tuple[int, ...] = Field(min_length=1)

        def __init__(self, parameters):
            pass

    types = TYPES | {"items": Items}
    for given, expected in [
        ("[a]", ['plugins[0].parameters.items[0]: must be a valid integer, not "a"']),
        ("[]", ["plugins[0].parameters.items: must have at least 1 of them, not 0"]),
    ]:
        text = f"{HEAD}plugins: [{{type: items, parameters: {{items: {given}}}}}]"
        with pytest.raises(InvalidConfig) as caught:
            resolve(text, "f", registry_of(types), context)
        assert [str(problem) for problem in caught.value.problems] == expected


def test_message(registry):
    """The error is a ConfigError whose text has a line for each problem, with the file and the line in it."""
    with pytest.raises(ConfigError) as caught:
        resolve("kind: EndpointPickerConfig\nplugins:\n- tpye: a\n", "dir/epp.yaml", registry, context)
    assert str(caught.value).splitlines() == [
        "dir/epp.yaml: apiVersion: is required",
        'dir/epp.yaml:3: plugins[0].tpye: unknown key; allowed: type, name, parameters; did you mean "type"?',
        'dir/epp.yaml:3: plugins[0].type: "a": unknown type; `epp plugins` lists all, a file is written ./my_scorer.py',
    ]


def test_long_values_are_cut(errors):
    """A message doesn't repeat a whole section."""
    (message,) = errors("plugins: {" + ", ".join(f"key{i}: value" for i in range(50)) + "}")
    assert len(message) < 120
    assert message.endswith("...")


def test_a_configuration_s_errors_pass_between_processes(registry):
    """A replay's child process hands them to its parent."""
    with pytest.raises(InvalidConfig) as caught:
        resolve(f"{HEAD}plugins: [{{type: nothing-like-it}}]", "here.yaml", registry, context)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)
    assert copied.problems == caught.value.problems
