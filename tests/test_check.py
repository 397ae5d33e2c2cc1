"""`make check` passes: linter, formatter and type checker are part of the tests."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """What the target `check` of the Makefile runs, without the folder of the tools."""
    makefile = (ROOT / "Makefile").read_text()
    target = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert target is not None
    return [line.removeprefix("\t$(BIN)/") for line in target[1].splitlines()]


def test_make_check_runs_all_three() -> None:
    assert [command.split()[0] for command in commands()] == ["ruff", "ruff", "mypy"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", commands())
def test_make_check_is_clean(command: str) -> None:
    """Each command of the Makefile's target, with the tools of the interpreter that runs the tests."""
    name, *arguments = command.split()
    tool = shutil.which(name, path=str(Path(sys.executable).parent))
    assert tool is not None, f"{name} is not installed next to {sys.executable}"
    done = subprocess.run([tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
