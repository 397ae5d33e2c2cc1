"""Plugins that ask for other plugins by name."""

from typing import Annotated

import pytest

import epp.plugin
from epp.plugin import Context, Decider, refers_to, request_key
from epp.settings import InvalidConfig, resolve
from epp.testing import context
from tests.unit.settings.conftest import HEAD, TYPES, PrefixScorer, registry_of

COLUMN = request_key("column", "length-producer")


class Asking:
    """A filter that asks for the plugins that `others` names."""

    class Parameters(epp.plugin.Parameters):
        others: tuple[str, ...] = ()

    def __init__(self, parameters: Parameters, context: Context) -> None:
        self.found = [context.plugin(name) for name in parameters.others]

    def keep(self, request, c):
        raise NotImplementedError


class Deciding(PrefixScorer):
    """A decider, which nothing but such a reference can use."""

    score = None

    def disaggregate(self, request, pick, c):
        return True


def load(text):
    return resolve(HEAD + text, "f", registry_of(TYPES | {"asking": Asking, "deciding": Deciding}), context)


def errors(text):
    with pytest.raises(InvalidConfig) as caught:
        load(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("entries", [("asking", "deciding"), ("deciding", "asking")], ids=["before", "after"])
def test_the_other_is_made_first(entries):
    """Whatever the order in the file, which stays the instances' order."""
    specs = {
        "asking": "{type: asking, name: a, parameters: {others: [b]}}",
        "deciding": "{type: deciding, name: b}",
    }
    loaded = load(f"plugins: [{specs[entries[0]]}, {specs[entries[1]]}]")
    assert loaded.instances["a"].plugin.found == [loaded.instances["b"].plugin]
    names = {"asking": "a", "deciding": "b"}
    assert list(loaded.instances)[:2] == [names[entry] for entry in entries]


def test_the_other_is_used():
    """It is not unused, and the producers that it reads from are added."""
    router = load("plugins: [{type: asking, parameters: {others: [deciding]}}, {type: deciding}]").router
    assert router.warnings == ()
    assert [p.name for p in router.producers] == ["length-producer", "approx-prefix-cache-producer"]
    alone = load("plugins: [{type: queue-scorer}, {type: deciding}]").router
    assert alone.warnings == ('plugins[1]: "deciding" (plugins[1]) is referred to by nothing, so it has no effect',)
    assert alone.producers == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "plugins: [{type: asking, parameters: {others: [queue-scorer, decidin]}}, {type: queue-scorer}, "
            "{type: deciding}]",
            [
                (
                    'plugins[0].parameters.others[1]: no plugin is called "decidin"; there are: asking, queue-scorer, '
                    'deciding; did you mean "deciding"?'
                )
            ],
            id="unknown",
        ),
        pytest.param(
            "plugins: [{type: asking, name: a, parameters: {others: [b]}}, "
            "{type: asking, name: b, parameters: {others: [a]}}]",
            ['plugins[1].parameters.others[0]: "a" asks for this plugin itself: they can\'t both be first'],
            id="circle",
        ),
        pytest.param(
            "plugins: [{type: asking, name: a, parameters: {others: [a]}}]",
            ['plugins[0].parameters.others[0]: "a" asks for this plugin itself: they can\'t both be first'],
            id="itself",
        ),
        pytest.param(
            "plugins: [{type: asking, parameters: {others: [choosy-scorer]}}, {type: choosy-scorer}]",
            ['plugins[1].parameters: "choosy-scorer" can\'t be built: RuntimeError: no licence'],
            id="broken",
        ),
        pytest.param(
            "plugins: [{type: asking, parameters: {others: [edf-ordering-policy]}}, {type: edf-ordering-policy}]",
            ['plugins[0].parameters.others[0]: "edf-ordering-policy" has no effect yet'],
            id="without effect",
        ),
    ],
)
def test_errors(text, expected):
    """A reference that leads nowhere is an error at its place, once."""
    assert errors(text) == expected


class Choosing(Asking):
    """Asks for a decider, by what its class has: `others` are the names."""

    class Parameters(epp.plugin.Parameters):
        others: tuple[Annotated[str, refers_to(Decider, "decider")], ...] = ()


def test_only_those_of_the_kind_are_named():
    """Whether or not they are made yet; one whose class isn't known may be meant."""
    text = (
        "plugins: [{type: choosing, parameters: {others: [decidin]}}, {type: deciding}, {type: queue-scorer}, "
        "{type: deciding, name: late}, {type: nonsense, name: perhaps}]"
    )
    with pytest.raises(InvalidConfig) as caught:
        resolve(HEAD + text, "f", registry_of(TYPES | {"choosing": Choosing, "deciding": Deciding}), context)
    assert (
        'plugins[0].parameters.others[0]: no plugin is called "decidin"; there are: deciding, late, perhaps; '
        'did you mean "deciding"?'
    ) in map(str, caught.value.problems)
