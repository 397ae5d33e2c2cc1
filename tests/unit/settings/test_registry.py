"""Finding plugin classes: entry points and files."""

from importlib.metadata import EntryPoint

import pytest
from epp_plugins.queue_depth import QueueScorer

from epp.errors import ConfigError
from epp.settings import Registry, kinds, resolve
from epp.settings.registry import kebab
from epp.testing import context

SCORER = '''"""mine: a scorer in a file."""

from __future__ import annotations

import numpy as np

import epp.plugin
from epp.plugin import Candidates, Floats, Request


class MyScorer:
    """Gives everybody the same."""

    class Parameters(epp.plugin.Parameters):
        points: float = 0.5

    def __init__(self, parameters: Parameters) -> None:
        self.points = parameters.points

    def score(self, request: Request, c: Candidates) -> Floats:
        return np.full(len(c), self.points)
'''
OTHER = """

class OtherFilter:
    def keep(self, request, c):
        return np.ones(len(c), dtype=bool)


class _Hidden(OtherFilter):
    pass


class Helper:
    pass
"""


@pytest.fixture
def load_file(tmp_path, registry):
    """Loads one plugin from a file beside the configuration."""

    def run(text: str, written: str = "./my_scorer.py", parameters: str = "{}", name: str = ""):
        (tmp_path / "my_scorer.py").write_text(text)
        config = f"""
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins: [{{type: "{written}", parameters: {parameters}{name}}}]
"""
        return resolve(config, tmp_path / "epp.yaml", registry, context)

    return run


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["keep"], ("filter",)),
        (["score", "keep"], ("filter", "scorer")),
        (["pick"], ("picker",)),
        (["decide"], ("profile handler",)),
        (["produce", "picked", "done"], ("producer", "observer")),
        (["fetch"], ("fetcher",)),
        (["parse"], ("parser",)),
        (["first_byte"], ("observer",)),
        (["response_headers"], ("observer",)),
        ([], ()),
    ],
)
def test_kinds(methods, expected):
    """The methods that a class has say what it is; an attribute that can't be called doesn't count."""
    cls = type("Some", (), {name: lambda self: None for name in methods} | {"bind": lambda self: None, "score_": 1})
    assert kinds(cls) == expected
    assert kinds(type("NoMethod", (), {"keep": 1})) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MyScorer", "my-scorer"), ("KVCacheScorer", "kv-cache-scorer"), ("P2PPicker", "p2-p-picker"), ("a", "a")],
)
def test_kebab(name, expected):
    """A class's name in the style of type names."""
    assert kebab(name) == expected


def test_file(load_file):
    """A file with one plugin class is a plugin, called by the class's name, with parameters as any other."""
    resolved = load_file(SCORER, parameters="{points: 0.25}")
    scorer, weight = resolved.router.profiles["default"].scorers[0]
    assert (scorer.name, scorer.type, weight) == ("my-scorer", "./my_scorer.py", 1.0)
    assert scorer.plugin.points == 0.25


def test_file_with_a_class_named(load_file):
    """Of several classes the configuration names one."""
    resolved = load_file(SCORER + OTHER, "./my_scorer.py:OtherFilter", name=", name: mine")
    (kept,) = resolved.router.profiles["default"].filters
    assert (kept.name, kept.type) == ("mine", "./my_scorer.py:OtherFilter")


def test_file_by_its_whole_path(tmp_path, registry):
    """A file may be named by its whole path, in a text that came from nowhere, too."""
    (tmp_path / "my_scorer.py").write_text(SCORER)
    text = f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{{type: {tmp_path}/my_scorer.py}}]"
    assert "my-scorer" in resolve(text, "--config-text", registry, context).instances


def test_file_is_read_anew(load_file):
    """A second load gets the file as it is then."""
    first = load_file(SCORER).router.profiles["default"].scorers[0][0].plugin
    second = load_file(SCORER.replace("0.5", "0.125")).router.profiles["default"].scorers[0][0].plugin
    assert (first.points, second.points) == (0.5, 0.125)


@pytest.mark.parametrize(
    ("text", "written", "message"),
    [
        pytest.param(SCORER, "./nobody.py", "there is no file .*nobody.py", id="no file"),
        pytest.param(
            SCORER, "./my_scorer.py:Scorer", "my_scorer.py has no plugin class Scorer; it has: MyScorer", id="no class"
        ),
        pytest.param(
            SCORER + OTHER,
            "./my_scorer.py",
            "name one class, as in my_scorer.py:MyScorer, unless there is exactly one; it has: MyScorer, OtherFilter",
            id="several classes",
        ),
        pytest.param("x = 1", "./my_scorer.py", "unless there is exactly one; it has: none", id="none"),
        pytest.param("from epp_plugins.pickers import MaxScorePicker", "./my_scorer.py", "it has: none", id="imported"),
        pytest.param("import nothing_like_it", "./my_scorer.py", "can't be imported: ModuleNotFoundError", id="import"),
        pytest.param("def", "./my_scorer.py", "can't be imported: SyntaxError", id="syntax"),
    ],
)
def test_bad_file(load_file, text, written, message):
    """What is wrong with a file is said at the place that names it."""
    with pytest.raises(ConfigError, match=rf"plugins\[0\]\.type: .*{message}"):
        load_file(text, written)


def test_relative_file_without_a_folder(registry):
    """A text that came from no file can't name a relative one."""
    with pytest.raises(ConfigError, match="write the whole path"):
        registry.find("./my_scorer.py")


def test_installed():
    """The plugins that ship are found through their entry points, and are imported only when they are asked for."""
    registry = Registry.installed()
    assert "queue-scorer" in registry
    assert "nobody" not in registry
    assert registry.find("queue-scorer").cls is QueueScorer
    assert list(registry.types) == sorted(registry.types)


def test_description():
    """A class is described by its docstrings and markers."""
    found = Registry.installed().find("session-affinity-scorer")
    assert found.kinds == ("scorer", "observer")
    assert found.stability == "alpha"
    assert found.deprecated == ""
    assert found.summary.startswith("Prefers the endpoint")
    assert found.manual.startswith("session-affinity-scorer, session-affinity-filter:")
    assert Registry.installed().find("by-label").deprecated == 'write "label-selector-filter"'


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        pytest.param(lambda: 1 / 0, "can't be imported: ZeroDivisionError", id="raises"),
        pytest.param(lambda: "text", "'text' is no plugin: a class with one of the methods keep, score", id="no class"),
        pytest.param(lambda: dict, "is no plugin", id="no method"),
    ],
)
def test_bad_entry_point(loaded, message):
    """Somebody else's entry point may be anything: it is an error where its type is used."""
    with pytest.raises(ConfigError, match=message):
        Registry({"theirs": loaded}).find("theirs")


def test_two_packages_claim_a_type(monkeypatch):
    """A type that two packages have is refused when it is used, and harms nobody otherwise."""
    entries = [
        EntryPoint("queue-scorer", "epp_plugins.queue_depth:QueueScorer", "epp.plugins"),
        EntryPoint("queue-scorer", "their_package:Scorer", "epp.plugins"),
        EntryPoint("random-picker", "epp_plugins.pickers:RandomPicker", "epp.plugins"),
    ]
    monkeypatch.setattr("epp.settings.registry.entry_points", lambda group: [e for e in entries if e.group == group])
    registry = Registry.installed()
    assert registry.find("random-picker").kinds == ("picker",)
    with pytest.raises(ConfigError, match=r"several packages have a plugin of this type: .* and their_package:Scorer"):
        registry.find("queue-scorer")
