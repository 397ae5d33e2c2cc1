"""Each benchmark that starts processes runs once, small, so that it doesn't rot; the others are in tests/unit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOOR = ROOT.parent / "shared" / "bench" / "floor.py"

pytestmark = pytest.mark.e2e


def smoke(name):
    """What a benchmark prints for `--smoke --json`."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--smoke", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout)


@pytest.mark.skipif(not FLOOR.exists(), reason="the floor server that costs are held against is not beside the project")
def test_extproc():
    """The picker and the floor answer the same requests; both cost something."""
    (row,) = smoke("extproc")
    assert set(row) == {"prompt_bytes", "mode", "policy", "picker_us", "floor_us", "ratio"}
    assert row["picker_us"] > 0
    assert row["floor_us"] > 0


def test_soak():
    """Nothing fails, nothing is left in flight, and the memory hardly moves in a few seconds."""
    result = smoke("soak")
    assert result["requests"] > 50
    assert result["aborted_by_clients"] > 0
    assert (result["failures"], result["inflight_left"]) == (0, 0)
    assert result["rss_end_mb"] - result["rss_start_mb"] < 20


@pytest.mark.parametrize("name", ["parse", "scrape"])
def test_others(name):
    """They print JSON that isn't empty."""
    assert smoke(name)
