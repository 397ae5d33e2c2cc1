"""Commands whose output nobody reads to its end."""

import subprocess
import sys

import pytest

from epp.__main__ import CLOSED_PIPE


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plugins"], ["plugins", "--json"], ["config", "schema"], ["config", "show"], ["serve", "--help"]],
    ids=" ".join,
)
def test_a_closed_pipe(arguments):
    """They end without a word."""
    process = subprocess.Popen(
        [sys.executable, "-m", "epp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == CLOSED_PIPE
