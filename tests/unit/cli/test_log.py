"""`epp log show`."""

import gzip
import json
import subprocess
import sys

import pytest

from epp.cli.log import main
from tests.unit.observe.test_entries import ended, written


def test_show(tmp_path, capsys):
    """One JSON object a request; with `--rotated` those of the files before, too."""
    written(tmp_path / "log", ended("b"), ended("c"))
    written(tmp_path / "log.1", ended("a"))
    assert main(["show", str(tmp_path / "log")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["b", "c"]
    assert lines[0]["stages"][0]["scorers"] == ["queue-scorer", "active-request-scorer"]
    assert main(["show", "--rotated", str(tmp_path / "log")]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"text", "is no decision log")])
def test_what_cant_be_read(tmp_path, capsys, content, message):
    """It is said why; the status is 1."""
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    assert main(["show", str(tmp_path / "log")]) == 1
    assert message in capsys.readouterr().err


def test_what_is_damaged_is_said(tmp_path, capsys):
    """On the error output; the rest is printed."""
    written(tmp_path / "log", ended("a"), ended("b"))
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "x.gz").write_bytes(gzip.compress(whole)[:-30])
    (tmp_path / "log").write_bytes(whole[:-3])
    for name, why in (("log", "the frame that begins there is cut off"), ("x.gz", "its gzip is cut off")):
        assert main(["show", str(tmp_path / name)]) == 0
        out, err = capsys.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == ["a"]
        assert err.startswith(f"epp log: {tmp_path / name}: at byte ")
        assert err.endswith(f"{why}: left out\n")


def test_whoever_reads_may_stop(tmp_path):
    """`epp log show FILE | head -1` is no error."""
    written(tmp_path / "log", *(ended(f"r-{number}") for number in range(500)))
    command = [sys.executable, "-m", "epp", "log", "show", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "r-0"
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
