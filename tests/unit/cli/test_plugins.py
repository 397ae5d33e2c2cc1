"""`epp plugins`."""

import json

import pytest
from epp_plugins.queue_depth import QueueScorer

from epp.__main__ import main
from epp.settings import Registry
from epp.settings.catalogue import ALIASES
from epp.settings.migrations import DIVIDED


def test_list(capsys):
    """Every type with its kind and a line."""
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["TYPE", "KIND", "SUMMARY"]
    assert [line.split()[0] for line in lines[1:]] == list(Registry.installed().types)
    (queue,) = [line for line in lines if line.startswith("queue-scorer")]
    assert queue.split()[1:3] == ["scorer", "Prefers"]


def test_list_json(capsys):
    """The same for programs."""
    assert main(["plugins", "--json"]) == 0
    by_type = {plugin["type"]: plugin for plugin in json.loads(capsys.readouterr().out)}
    assert set(by_type) == {*Registry.installed().types, *ALIASES, *DIVIDED}
    assert list(by_type) == sorted(by_type)
    assert by_type["session-affinity-filter"] == {
        "type": "session-affinity-filter",
        "kind": "filter, observer",
        "status": "implemented",
        "missing": None,
        "kinds": ["filter", "observer"],
        "stability": "alpha",
        "deprecated": None,
        "summary": by_type["session-affinity-filter"]["summary"],
        "module": "epp_plugins.session_affinity",
    }
    assert by_type["by-label"]["deprecated"] == 'write "label-selector-filter"'
    old = by_type["by-label-selector"]
    assert (old["kind"], old["status"], old["deprecated"]) == ("filter", "implemented", 'write "label-selector-filter"')


def test_status(capsys):
    """Types that are only accepted are called that: flow control, predictions and the like."""
    assert main(["plugins", "--json"]) == 0
    plugins = json.loads(capsys.readouterr().out)
    assert all({"type", "kind", "status"} <= plugin.keys() for plugin in plugins)
    assert {plugin["status"] for plugin in plugins} == {"implemented", "loads-only"}
    accepted = {plugin["type"]: plugin["missing"] for plugin in plugins if plugin["status"] == "loads-only"}
    flow = "has no effect yet: flow control is not enabled"
    assert {name for name, missing in accepted.items() if missing == flow} == {
        *("global-strict-fairness-policy", "round-robin-fairness-policy", "program-aware-fairness"),
        *("fcfs-ordering-policy", "edf-ordering-policy", "slo-deadline-ordering-policy"),
        *("static-usage-limit-policy", "priority-holdback-policy", "soft-reflective-ceiling-policy"),
        *("sheddable-eviction-filter", "priority-then-time-eviction-order-policy"),
    }
    others = {name for name, missing in accepted.items() if missing != flow}
    assert others == {"precise-prefix-cache-producer", "predicted-latency-producer"}
    assert {plugin["missing"] for plugin in plugins if plugin["status"] == "implemented"} == {None}


def test_manual(capsys):
    """A type's manual is its module's docstring."""
    assert main(["plugins", "queue-scorer"]) == 0
    manual = capsys.readouterr().out
    assert manual.startswith("queue-scorer: prefers endpoints with fewer waiting requests.\n\nWhat it does\n")
    assert "Parameters\n    None.\n" in manual


@pytest.mark.parametrize(
    ("old", "said", "manual"),
    [
        ("tokenizer", 'write "token-producer"', "token-producer: "),
        (
            "precise-prefix-cache-scorer",
            'write "prefix-cache-scorer" with "precise-prefix-cache-producer"',
            "approx-prefix-cache-producer, precise-prefix-cache-producer, prefix-cache-scorer: ",
        ),
    ],
)
def test_manual_of_an_old_name(old, said, manual, capsys):
    """That of what has its place, and a word on what to write."""
    assert main(["plugins", old]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(manual)
    assert shown.err == f'epp plugins: "{old}" is deprecated: {said}\n'


def test_manual_json(capsys):
    """The manual and the rest for programs."""
    assert main(["plugins", "queue-scorer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"] == ["scorer"]
    assert found["manual"].startswith("queue-scorer: ")


def test_manual_of_a_file(tmp_path, monkeypatch, capsys):
    """A file that is no entry point yet has a manual, too."""
    (tmp_path / "mine.py").write_text('"""mine: my own."""\nclass Mine:\n    def keep(self, request, c): ...\n')
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "./mine.py"]) == 0
    assert capsys.readouterr().out == "mine: my own.\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("queue-score", 'epp plugins: "queue-score" is no known type; did you mean "queue-scorer"?'),
        ("./nobody.py", "epp plugins: ./nobody.py: there is no file"),
    ],
)
def test_unknown(name, message, capsys):
    """A type that isn't there is an error."""
    assert main(["plugins", name]) == 1
    assert capsys.readouterr().err.startswith(message)


def test_broken_plugin(monkeypatch, capsys):
    """A plugin that can't be imported doesn't hide the others."""
    registry = Registry({"broken": lambda: 1 / 0, "queue-scorer": lambda: QueueScorer})
    monkeypatch.setattr(Registry, "installed", lambda: registry)
    assert main(["plugins"]) == 1
    out, err = capsys.readouterr()
    assert "queue-scorer" in out
    assert err == "epp plugins: broken: can't be imported: ZeroDivisionError: division by zero\n"
