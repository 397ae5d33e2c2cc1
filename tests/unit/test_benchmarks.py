"""The benchmarks of the decision run, so that they don't rot."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from epp.__main__ import main

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


WHAT = {"prefix": (("what",), 14), "schedule": (("endpoints", "prompt_tokens", "prompt"), 4)}


@pytest.mark.parametrize("name", WHAT)
def test_a_smoke_run_prints_rows(name):
    """Each row says what was measured, its median and its 99th percentile."""
    keys, rows = WHAT[name]
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(printed) == len({tuple(row[key] for key in keys) for row in printed}) == rows
    assert all(0 < row["p50_us"] <= row["p99_us"] for row in printed)


def test_a_smoke_run_of_the_decision_log():
    """A row for a request with neither, with the log and with a shadow; each row that is written is read again."""
    command = [sys.executable, str(BENCHMARKS / "decision_log.py"), "--smoke", "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [row["with"] for row in printed] == ["neither", "log", "shadow"] * 2
    assert all(row["path_us"] > 0 and row["beside_us"] > 0 for row in printed)
    assert all(row["row_bytes"] > 50 for row in printed if row["with"] == "log")


def _benchmark(name):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_smoke_run_of_the_plugins(capsys):
    """Every type that is implemented has its microseconds, at every size, or a reason why it hasn't."""
    command = [sys.executable, str(BENCHMARKS / "plugins.py"), "--smoke", "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert main(["plugins", "--json"]) == 0
    implemented = {each["type"] for each in json.loads(capsys.readouterr().out) if each["status"] == "implemented"}
    assert implemented - set(printed) == set(_benchmark("plugins").WITHOUT)
    assert all(set(row) == {"10", "100", "1000"} and min(row.values()) > 0 for row in printed.values())


def test_a_plugin_that_takes_too_long():
    """The benchmark says which, and ends with status 1; the figures are printed all the same."""
    command = [
        sys.executable,
        str(BENCHMARKS / "plugins.py"),
        "--json",
        "--only",
        "queue-scorer",
        "session-id-producer",
    ]
    within = subprocess.run([*command, "--limit", "1000000"], check=True, capture_output=True, text=True)
    assert within.stderr == ""
    above = subprocess.run([*command, "--limit", "0.001"], check=False, capture_output=True, text=True)
    assert above.returncode == 1
    assert json.loads(above.stdout).keys() == {"queue-scorer", "session-id-producer"}
    assert above.stderr.startswith("above 0.001 us at 100 endpoints: queue-scorer ")


def test_a_smoke_run_of_the_replay():
    """CPU time of a replay, and of each of its requests."""
    command = [sys.executable, str(BENCHMARKS / "replay.py"), "--smoke", "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [row["requests"] for row in printed] == [20]
    assert all(row["cpu_s"] > 0 and row["us_a_request"] > 0 for row in printed)


def test_a_smoke_run_of_the_routing():
    """A row for each policy, with the keys of `epp replay`'s report."""
    command = [sys.executable, str(BENCHMARKS / "routing.py"), "--smoke", "--json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [row["policy"] for row in printed] == ["random", "least-request", "default"]
    times = ("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms", "e2e_p90_ms", "itl_p90_ms")
    others = {"workload", "engines", "load", "policy", "hit_ratio", "max_over_mean_load"}
    assert all(set(row) == {*times, *others} and min(row[key] for key in times) > 0 for row in printed)


def test_the_routing_benchmark_judges_by_pairs():
    """A ratio is over the seeds of both; worse is what is worse beyond chance."""
    routing = _benchmark("routing")
    theirs = [{"ttft_p90_ms": value} for value in (100.0, 200.0, 300.0)]
    alike = [{"ttft_p90_ms": value} for value in (80.0, 230.0, 310.0)]
    slower = [{"ttft_p90_ms": value} for value in (110.0, 221.0, 332.0)]
    mean, low, high = routing.ratio(slower, theirs)
    assert low < mean < high
    assert mean == pytest.approx(1.1, abs=0.01)
    place = ("chat", 8, 0.5)
    assert routing.lost({place: {"default": alike, "lmetric": theirs}}, "default") == []
    assert len(routing.lost({place: {"default": slower, "lmetric": theirs}}, "default")) == 1
    assert routing.best({"default": alike, "lmetric": theirs, "random": slower}) == "lmetric"
