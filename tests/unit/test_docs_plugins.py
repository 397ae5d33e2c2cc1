"""docs/plugins.md: every plugin in it is one that works, and what it names exists."""

import re
from pathlib import Path

import pytest

from epp.__main__ import main
from epp.cli.flagtable import BY_SPELLING
from epp.contract import check
from epp.observe.table import SPECS
from epp.settings.registry import METHODS

TEXT = (Path(__file__).parents[2] / "docs/plugins.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", TEXT, re.DOTALL))


@pytest.mark.parametrize("name", FILES)
def test_examples(tmp_path, monkeypatch, name):
    """It loads as it stands, and keeps the contract without a remark."""
    (tmp_path / name).write_text(FILES[name])
    monkeypatch.chdir(tmp_path)
    report = check(name, count=30)
    report.raise_if_broken()
    assert not [result for result in report.results if result.remark]


def test_every_python_block_is_a_file():
    """None of them goes untested."""
    assert TEXT.count("```python") == len(FILES) > 7


def test_hooks_and_kinds():
    """The page names every method that makes a class a plugin, apart from those of data sources and detectors."""
    elsewhere = {"saturation", "extract", "metrics_page", "engine_metrics", "endpoints_file"}
    assert [method for method in METHODS if method not in elsewhere and f"{method}(" not in TEXT] == []


def test_names():
    """Metrics and flags are spelt as they are."""
    families = {spec.name for spec in SPECS}
    assert set(re.findall(r"llm_d_epp_\w+", TEXT)) <= families
    assert set(re.findall(r"`--([a-z-]+)`", TEXT)) <= BY_SPELLING.keys()


def test_the_report_is_what_is_printed(tmp_path, monkeypatch, capsys):
    """The report in the text is the command's, up to the time."""
    (tmp_path / "shortest.py").write_text(FILES["shortest.py"])
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "test", "shortest.py", "--cases", "5"]) == 0
    printed = re.sub(r"\d+ us", "4 us", capsys.readouterr().out)
    assert printed in TEXT
