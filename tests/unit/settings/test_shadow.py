"""`shadow`: profiles that decide beside the others, with instances of their own."""

from dataclasses import replace

import pytest
import yaml

from epp.plugin import plugins_of
from epp.settings import resolve, show
from epp.settings.problems import InvalidConfig
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, registry_of

FILE = """
plugins:
- type: queue-scorer
- {type: tuned-scorer, parameters: {maxCount: 3}}
- type: prefix-scorer
- {type: approx-prefix-cache-producer, name: mine}
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
shadow:
  plugins:
  - {type: tuned-scorer, name: own}
  - type: random-picker
  schedulingProfiles:
  - name: default
    plugins:
    - {pluginRef: queue-scorer, weight: 3}
    - pluginRef: tuned-scorer
    - pluginRef: own
    - pluginRef: prefix-scorer
    - pluginRef: random-picker
"""


def test_a_shadow(load):
    """It is a router of its own, whose plugins the others' names don't tell from: they are called shadow/..."""
    router = load(FILE)
    (profile,) = router.shadow.profiles.values()
    assert [(plugged.name, weight) for plugged, weight in profile.scorers] == [
        ("shadow/queue-scorer", 3.0),
        ("shadow/tuned-scorer", 1.0),
        ("shadow/own", 1.0),
        ("shadow/prefix-scorer", 1.0),
    ]
    assert profile.picker.name == "shadow/random-picker"
    assert router.shadow.handler.type == "single-profile-handler"
    assert [plugged.name for plugged in router.shadow.producers] == [
        "shadow/length-producer",
        "shadow/approx-prefix-cache-producer",
    ]
    live = {plugged.name: plugged.plugin for plugged in plugins_of(router) if not plugged.name.startswith("shadow/")}
    assert {plugged.plugin for plugged in plugins_of(router.shadow)}.isdisjoint(live.values())
    assert router.shadow.handler.plugin is not router.handler.plugin


def test_entries_of_the_file_are_taken_with_their_parameters(load):
    """And the shadow's own have theirs."""
    (profile,) = load(FILE).shadow.profiles.values()
    counts = {plugged.name: plugged.plugin.parameters.max_count for plugged, _ in profile.scorers[1:3]}
    assert counts == {"shadow/tuned-scorer": 3, "shadow/own": 7}


def test_an_entry_of_the_same_name_stands_in(load):
    """`shadow.plugins` wins over `plugins`."""
    text = FILE.replace("name: own", "name: tuned-scorer").replace("    - pluginRef: own\n", "")
    (profile,) = load(text).shadow.profiles.values()
    assert profile.scorers[1][0].plugin.parameters.max_count == 7


def test_what_the_shadow_does_not_refer_to_is_not_made(load):
    """A producer that is only in force stays single."""
    names = {plugged.name for plugged in plugins_of(load(FILE).shadow)}
    assert "shadow/mine" not in names


def test_without_a_shadow(load):
    """There is none."""
    assert load(FILE.partition("shadow:")[0]).shadow is None


def test_nothing_is_shared(registry):
    """Neither what plugins keep from one configuration to the next, nor randomness, nor counters."""
    own = context("tuned-scorer")
    counted: list[str] = []
    shared = replace(own, counters=lambda name, _: counted.append(name))
    router = resolve(HEAD + FILE, "f", registry, lambda name: shared).router
    (profile,) = router.shadow.profiles.values()
    theirs = profile.scorers[1][0].plugin.context
    assert theirs.name == "tuned-scorer"
    assert theirs.pool is shared.pool
    assert theirs.random is not shared.random
    theirs.counter("some_total", {}).inc()
    assert counted == []
    theirs.state("key", lambda: "the shadow's")
    assert shared.state("key", lambda: "in force") == "in force"
    assert theirs.state("key", lambda: "anew") == "the shadow's"


def test_a_handler_of_several_profiles(load):
    """The one in force is made anew where the names of the profiles are the same; another one can be named."""
    two = "[{name: a}, {name: b}]"
    live = f"plugins: [type: two-profiles-handler]\nschedulingProfiles: {two}\n"
    router = load(f"{live}shadow: {{schedulingProfiles: {two}}}")
    assert router.shadow.handler.type == "two-profiles-handler"
    assert router.shadow.handler.plugin is not router.handler.plugin
    assert load(f"{live}shadow: {{schedulingProfiles: [name: c]}}").shadow.handler.type == "single-profile-handler"
    own = f"plugins: [type: two-profiles-handler], schedulingProfiles: {two}"
    assert load(f"shadow: {{{own}}}").shadow.handler.plugin.profiles == ("a", "b")


def test_the_effective_configuration_has_it(registry):
    """Loadable again, and the same then."""
    effective = show.effective(resolve(HEAD + FILE, "f", registry, context))
    assert effective["shadow"]["schedulingProfiles"] == [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": "queue-scorer", "weight": 3.0},
                {"pluginRef": "tuned-scorer", "weight": 1.0},
                {"pluginRef": "own", "weight": 1.0},
                {"pluginRef": "prefix-scorer", "weight": 1.0},
                {"pluginRef": "random-picker"},
            ],
        }
    ]
    again = resolve(yaml.safe_dump(effective, sort_keys=False), "f", registry, context)
    assert show.effective(again) == effective


SCORER = "schedulingProfiles: [{name: default, plugins: [{pluginRef: queue-scorer}]}]"


@pytest.mark.parametrize(
    ("shadow", "expected"),
    [
        ("{}", "shadow.schedulingProfiles: is required"),
        ("{schedulingProfiles: []}", "shadow.schedulingProfiles: is empty: a shadow needs a profile"),
        (
            "{profiles: [], schedulingProfiles: [name: a]}",
            'shadow.profiles: unknown key; allowed: plugins, schedulingProfiles; did you mean "schedulingProfiles"?',
        ),
        (
            "{plugins: [{type: queue-scorre}], schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-scorer}]}]}",
            'shadow.plugins[0].type: "queue-scorre": unknown type; did you mean "queue-scorer"?',
        ),
        (
            "{plugins: [{type: tuned-scorer, parameters: {maxCounts: 1}}], schedulingProfiles: [name: a]}",
            (
                "shadow.plugins[0].parameters.maxCounts: unknown key; allowed: maxCount, mode, inner, oldCount; "
                'did you mean "maxCount"?'
            ),
        ),
        (
            "{schedulingProfiles: [{name: a, plugins: [{pluginRef: queue-socrer}]}]}",
            (
                'shadow.schedulingProfiles[0].plugins[0].pluginRef: no plugin is called "queue-socrer"; there are: '
                'queue-scorer; did you mean "queue-scorer"?'
            ),
        ),
        (
            "{schedulingProfiles: [name: a, name: a]}",
            'shadow.schedulingProfiles[1].name: a profile "a" stands above already; names are unique',
        ),
        (
            "{schedulingProfiles: [name: a, name: b]}",
            "shadow.plugins: no profile handler configured, which several profiles need: a, b",
        ),
        (
            "{plugins: [{type: watcher}, {type: watcher}], schedulingProfiles: [name: a]}",
            'shadow.plugins[1].name: "watcher" is taken by an earlier plugin; names are unique',
        ),
    ],
    ids=["nothing", "empty", "key", "type", "parameter", "reference", "twice", "no handler", "name"],
)
def test_errors(errors, shadow, expected):
    """Each names its place below `shadow`, and the remedy."""
    assert errors(f"plugins: [type: queue-scorer]\n{SCORER}\nshadow: {shadow}") == [expected]


class Fetching:
    writes = ()

    async def fetch(self, request, c):
        return {}


def test_a_fetcher():
    """The shadow waits for nobody."""
    registry = registry_of(TYPES | {"fetching": Fetching})
    text = f"{HEAD}shadow: {{plugins: [type: fetching], schedulingProfiles: [name: a]}}"
    with pytest.raises(InvalidConfig, match=r'shadow.plugins\[0\]: "fetching" .* is a fetcher, and the shadow waits'):
        resolve(text, "f", registry, context)


def test_an_error_of_both_is_told_once(errors):
    """An entry that both refer to is made twice."""
    text = "plugins: [{type: tuned-scorer, parameters: {maxCount: -1}}]\nschedulingProfiles: [{name: d, plugins: "
    text += (
        "[{pluginRef: tuned-scorer}]}]\nshadow: {schedulingProfiles: [{name: d, plugins: [{pluginRef: tuned-scorer}]}]}"
    )
    assert len(errors(text)) == 1


def test_warnings(load):
    """Of what has no effect in a shadow; not of an entry that only the shadow refers to."""
    router = load(
        "plugins: [{type: queue-scorer}, {type: old-scorer}]\n"
        "schedulingProfiles: [{name: d, plugins: [{pluginRef: queue-scorer}]}]\n"
        "shadow: {plugins: [type: openai-parser], schedulingProfiles: [{name: d, plugins: [{pluginRef: old-scorer}]}]}"
    )
    assert router.warnings == (
        'plugins[1].type: "old-scorer" is deprecated: write "queue-scorer"',
        'shadow.plugins[0]: "openai-parser" (shadow.plugins[0]) is a parser: in the shadow it has no effect',
    )
