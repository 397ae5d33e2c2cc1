"""`epp config check` and `epp config show`."""

import pytest
import yaml

from epp.__main__ import main

GOOD = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: load-aware-scorer
- type: edf-ordering-policy
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "epp.yaml"


def test_check(file, capsys):
    """A good file is called that; its warnings go to stderr."""
    file.write_text(GOOD)
    assert main(["config", "check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}: ok\n"
    why = "is accepted, has no effect yet: flow control is not enabled"
    assert err == f'{file}: warning: plugins[1].type: "edf-ordering-policy" {why}\n'


def test_check_errors(file, capsys):
    """Every error is printed, one a line with file and line, and the status is 1."""
    file.write_text(GOOD + "- {type: queue-scorrer}\n- {type: load-aware-scorer, name: b, parameters: {treshold: 3}}\n")
    assert main(["config", "check", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f'{file}:7: plugins[2].type: "queue-scorrer": unknown type; did you mean "queue-scorer"?',
        f'{file}:8: plugins[3].parameters.treshold: unknown key; allowed: threshold; did you mean "threshold"?',
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "No such file or directory"), (b"a\xff\xfe", "no text in UTF-8, by its byte 1")],
    ids=["no file", "not UTF-8"],
)
def test_unreadable(file, capsys, content, why):
    """A file that can't be read is an error, too, in plain words."""
    if content is not None:
        file.write_bytes(content)
    assert main(["config", "check", str(file)]) == 1
    assert capsys.readouterr().err == f"{file}: can't be read: {why}\n"


def test_show(file, capsys):
    """The effective configuration has the defaults in it."""
    file.write_text(GOOD)
    assert main(["config", "show", str(file)]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["plugins"][0] == {
        "name": "load-aware-scorer",
        "type": "load-aware-scorer",
        "parameters": {"threshold": 128},
    }
    assert shown["schedulingProfiles"] == [
        {
            "name": "default",
            "plugins": [{"pluginRef": "load-aware-scorer", "weight": 1.0}, {"pluginRef": "max-score-picker"}],
        }
    ]


def test_show_default(file, capsys):
    """Without a file it is the built-in default, and what is shown is a good file."""
    assert main(["config", "show"]) == 0
    file.write_text(capsys.readouterr().out)
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr() == (f"{file}: ok\n", "")


def test_file_plugin(tmp_path, file, capsys):
    """A plugin's file is looked for beside the configuration."""
    (tmp_path / "mine.py").write_text("class Mine:\n    def keep(self, request, c):\n        return c.fresh\n")
    file.write_text(GOOD + "- type: ./mine.py\n")
    assert main(["config", "show", str(file)]) == 0
    assert {"name": "mine", "type": "./mine.py"} in yaml.safe_load(capsys.readouterr().out)["plugins"]


@pytest.mark.parametrize("arguments", [[], ["check"], ["chekc", "x"], ["show", "a", "b"]])
def test_wrong_usage(arguments, capsys):
    """Wrong usage has the status 2."""
    with pytest.raises(SystemExit) as caught:
        main(["config", *arguments])
    assert caught.value.code == 2
    assert "usage: epp config" in capsys.readouterr().err
