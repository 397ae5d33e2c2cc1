"""`epp demo` as a user runs it: engines, picker and a real Envoy, short; and that it leaves nothing behind."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DEADLINE = 100.0
KEYS = {"requests", "failures", "ttft_p50_ms", "ttft_p99_ms", "hit_ratio", "per_endpoint"}
SHORT = ("--duration", "3", "--engines", "2")


@asynccontextmanager
async def demo(tmp_path: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The demo as a process, with its temporary files in a folder of the test's."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "epp", "demo", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        async with asyncio.timeout(DEADLINE):
            yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()
        assert processes_of(tmp_path) == [], "every child is ended"


def processes_of(tmp_path: Path) -> list[str]:
    """The command lines of the processes whose temporary folder is this one."""
    mark = f"TMPDIR={tmp_path}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # ended meanwhile, or not ours
    return found


def files_in(folder: Path) -> list[str]:
    """Everything in a folder and below."""
    return [str(path) for path in folder.rglob("*")]


async def until(stream: asyncio.StreamReader | None, pattern: str) -> re.Match[str]:
    """Reads lines up to the first one that matches."""
    assert stream is not None
    while line := (await stream.readline()).decode():
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"the output ended without {pattern!r}")


async def test_a_short_run_answers_everything_and_reports_both_passes(tmp_path: Path) -> None:
    async with demo(tmp_path, *SHORT, "--json", "-") as process:
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    report = json.loads(output)
    assert report.keys() == KEYS | {"random"}
    assert report["random"].keys() == KEYS
    for figures in (report, report["random"]):
        assert figures["failures"] == 0
        assert figures["requests"] == sum(figures["per_endpoint"].values()) > 20
        assert len(figures["per_endpoint"]) == 2
        assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p99_ms"]
    assert 0 <= report["random"]["hit_ratio"] < report["hit_ratio"] <= 1
    assert files_in(tmp_path) == [], "logs are removed after a success"


async def test_kept_up_it_answers_until_sigterm(tmp_path: Path) -> None:
    async with demo(tmp_path, "--duration", "1", "--engines", "1", "--keep") as process:
        curl = await until(process.stdout, r"curl -N (http://\S+) -H .* -d '(.*)'")
        answer = await asyncio.create_subprocess_exec(
            *("curl", "-sN", curl[1], "-H", "Content-Type: application/json", "-d", curl[2]),
            stdout=asyncio.subprocess.PIPE,
        )
        assert (await answer.communicate())[0].endswith(b"data: [DONE]\n\n")
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_interrupted_it_ends_its_processes(tmp_path: Path, number: signal.Signals) -> None:
    async with demo(tmp_path, "--duration", "60") as process:
        await until(process.stdout, r"picker .* [1-9]\d* answered")
        assert len(processes_of(tmp_path)) == 6, "the demo, three engines, the picker and Envoy"
        process.send_signal(number)
        _, errors = await process.communicate()
        assert process.returncode == 130
        assert errors.decode() == "epp demo: interrupted\n"


async def test_a_picker_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text("kind: Nonsense\n")
    async with demo(tmp_path, *SHORT, "--config", str(config)) as process:
        _, errors = await process.communicate()
        assert process.returncode == 1
    assert "the picker (epp serve) ended while it started" in errors.decode()
    assert "Nonsense" in errors.decode()
    logs = re.search(r"its output: (\S+)", errors.decode())
    assert logs is not None
    assert logs[1] in files_in(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--engines", "0"), "0 is not at least 1", id="no engines"),
        pytest.param(("--rate", "-1"), "-1 is not above 0", id="negative rate"),
        pytest.param(("--config", "nowhere.yaml"), "there is no file nowhere.yaml", id="no such file"),
    ],
)
async def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    async with demo(tmp_path, *arguments) as process:
        _, errors = await process.communicate()
        assert process.returncode == 2
    assert words in errors.decode()
