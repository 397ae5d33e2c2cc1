import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_smoke() -> None:
    """The benchmark runs, scrapes without an error and prints its figures as JSON."""
    command = [sys.executable, "benchmarks/scrape.py", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["parse"]["us"] > 0
    assert figures["pool"]["failed"] == 0
    assert figures["pool"]["cpu_us_per_scrape"] > 0
