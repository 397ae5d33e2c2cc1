"""`epp plugins new` writes a plugin that works, with a test that passes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from epp.__main__ import main
from epp.cli.plugin_templates import KINDS
from epp.contract import SECTIONS, check, sections
from epp.settings import Registry, load
from epp.settings.models import API_VERSION, KIND
from epp.testing import context


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a plugin of each kind."""
    folder = tmp_path_factory.mktemp("plugins") / "mine"
    for kind in KINDS:
        assert main(["plugins", "new", f"my-{kind}", "--kind", kind, "--folder", str(folder)]) == 0
    return folder


def file_of(folder: Path, kind: str) -> Path:
    return folder / f"my_{kind.replace('-', '_')}.py"


@pytest.mark.parametrize("kind", KINDS)
def test_contract(written, kind):
    """It is a plugin of that kind, keeps the contract without a remark, and has a whole manual."""
    file = file_of(written, kind)
    report = check(str(file), count=20)
    report.raise_if_broken()
    assert not [result for result in report.results if result.remark]
    found = Registry({}).find(str(file))
    assert found.kinds == ({"handler": "profile handler"}.get(kind, kind.replace("-", " ")),)
    parts = sections(found.manual)
    assert [heading for heading in parts if heading in SECTIONS] == list(SECTIONS[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_example(written, kind):
    """The example in its manual is a configuration that loads without a warning."""
    example = sections(Registry({}).find(str(file_of(written, kind))).manual)["Example"]
    text = f"apiVersion: {API_VERSION}\nkind: {KIND}\n{example}"
    assert load(text, written / "config.yaml", Registry.installed(), context).warnings == ()


@pytest.mark.slow
def test_tests(written):
    """The tests that come with it pass, where they stand."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "."]
    done = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{2 * len(KINDS)} passed" in done.stdout


def test_style(written):
    """What is written is formatted, and its imports are in order."""
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff is not None
    for command in (["format", "--check"], ["check", "--select", "E,F,I,UP"]):
        config = ["--isolated", "--line-length=120", "--target-version=py311"]
        done = subprocess.run([ruff, *command, *config, "."], cwd=written, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_overwritten(written, capsys):
    """A file that is there stays as it is."""
    file = written / "my_scorer.py"
    before = file.read_text()
    assert main(["plugins", "new", "my-scorer", "--kind", "filter", "--folder", str(written)]) == 1
    assert "there already; nothing was written" in capsys.readouterr().err
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["My-Scorer", "../x", "1st", ""])
def test_bad_names(name, capsys):
    """A name is one that makes a module and a class."""
    with pytest.raises(SystemExit):
        main(["plugins", "new", name])
    assert "lower-case words with hyphens" in capsys.readouterr().err
