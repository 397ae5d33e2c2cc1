"""The image's recipe has the properties that KServe, and a cluster that trusts nobody, ask for."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
MAY_NOT_MOUNT = 98

READ_ONLY = f"""
for folder in /tmp "$1"; do
    mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit {MAY_NOT_MOUNT}
done
mount -o remount,bind,ro / || exit {MAY_NOT_MOUNT}
for folder in / /tmp "$1"; do
    if touch "$folder/.writable" 2>/dev/null; then rm "$folder/.writable"; exit 99; fi
done
shift
exec "$@"
"""
"""A shell script: takes a folder and a command, and runs the command where nothing on disk can be written."""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, in order, each with its argument on one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in whole.splitlines() if line.strip())
    return [(name, " ".join(argument.split())) for name, argument in pairs]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, without the ARG that comes before the first."""
    result: list[list[tuple[str, str]]] = []
    for name, argument in instructions():
        if name == "FROM":
            result.append([])
        if result:
            result[-1].append((name, argument))
    return result


def arguments(stage: Sequence[tuple[str, str]], wanted: str) -> list[str]:
    return [argument for name, argument in stage if name == wanted]


def test_there_are_two_stages_from_one_slim_base_of_no_particular_registry() -> None:
    assert ("ARG", "BASE=python:3.12-slim") in instructions()
    assert [arguments(stage, "FROM") for stage in stages()] == [["${BASE} AS build"], ["${BASE}"]]


def test_no_host_is_named() -> None:
    """A registry's or an index's host is the builder's choice."""
    for name in ("Dockerfile", ".dockerignore", "requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text, name
        assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text), name


def test_every_download_is_pinned_by_hash() -> None:
    """Each pip call either checks hashes or may not download; nothing else fetches anything."""
    commands = [part for run in arguments(stages()[0], "RUN") for part in run.split(" && ")]
    pip = [command for command in commands if re.search(r"\bpip\b.* (install|wheel)\b", command)]
    assert len(pip) == 4
    assert all("--no-deps" in command for command in pip)
    assert all(("--require-hashes" in command) != ("--no-index" in command) for command in pip)
    assert not re.search(r"\b(curl|wget|apt|apt-get|git|ADD)\b", (ROOT / "Dockerfile").read_text())


def test_the_lock_is_what_gets_installed() -> None:
    assert any("--require-hashes --requirement requirements.lock" in run for run in arguments(stages()[0], "RUN"))
    direct = {re.split(r"[^\w.-]", line)[0] for line in requires("endpoint-picker") or () if "extra" not in line}
    assert direct <= pinned((ROOT / "requirements.lock").read_text())


def test_what_builds_the_package_is_in_the_developers_lock() -> None:
    """The stage picks hatchling and all that it needs out of it."""
    (script,) = [run for run in arguments(stages()[0], "RUN") if run.startswith("sed")]
    command = script.split(" > ")[0]
    picked = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    needed = {re.split(r"[^\w-]", line)[0] for line in requires("hatchling") or () if "python_version" not in line}
    assert pinned(picked) == needed | {"hatchling"}


def pinned(lock: str) -> set[str]:
    """The packages in a lock file; every one has a version and at least one hash, and nothing else is there."""
    entry = r"([\w.-]+)==[^\s\\]+(?: ;[^\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", lock)
    return set(re.findall(entry, lock))


def test_the_final_stage_only_takes_what_was_built() -> None:
    """No compiler and no package manager has run in it; its only commands show that it can start."""
    final = stages()[1]
    assert arguments(final, "COPY") == ["--from=build /app /app"]
    assert [json.loads(run) for run in arguments(final, "RUN")] == [
        ["/bin/sleep", "0"],
        ["/app/epp", "serve", "--help"],
    ]


def test_app_epp_is_the_entry_point_and_takes_flags() -> None:
    """KServe's command is `/app/epp --flags`; llm-d's charts give flags to the entry point."""
    final = stages()[1]
    assert json.loads(arguments(final, "ENTRYPOINT")[0]) == ["/app/epp"]
    assert not arguments(final, "CMD")
    assert any("ln -s venv/bin/epp /app/epp" in run for run in arguments(stages()[0], "RUN"))


def test_the_user_is_a_number_and_not_root() -> None:
    final = stages()[1]
    assert arguments(final, "USER") == ["65532:65532"]
    names = [name for name, _ in final]
    assert names.index("USER") < names.index("RUN")


def test_nothing_is_written_at_run_time() -> None:
    assert any("compileall" in run and "unchecked-hash" in run for run in arguments(stages()[0], "RUN"))
    environment = dict(pair.split("=", 1) for env in arguments(stages()[1], "ENV") for pair in env.split())
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment["TMPDIR"] == "/dev/shm"


def test_the_ports_are_those_of_the_defaults() -> None:
    assert arguments(stages()[1], "EXPOSE") == ["9002 9003 9090"]


def test_the_context_holds_what_the_recipe_copies_and_nothing_else() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore[0] == "*"
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {source for copy in arguments(stages()[0], "COPY") for source in copy.split()[:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


CODE = "import sys, epp.app, epp.__main__; sys.exit(epp.__main__.main(['serve', '--help']))"
"""Imports every module that a picker needs."""


def start(*wrapper: str, tmpdir: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "TMPDIR": tmpdir}
    command = [*wrapper, sys.executable, "-c", CODE]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def test_it_starts_without_a_folder_for_temporary_files(tmp_path: Path) -> None:
    """Neither TMPDIR nor HOME exists, and nothing is left behind in the working directory."""
    started = start(tmpdir="/nonexistent", cwd=tmp_path)
    assert (started.returncode, started.stderr) == (0, "")
    assert started.stdout.startswith("usage: epp")
    assert list(tmp_path.iterdir()) == []


def test_it_starts_where_nothing_can_be_written() -> None:
    """As in a container with a read-only root and no /tmp; only memory is left."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount file systems read-only")
    started = start(*UNSHARE, "sh", "-c", READ_ONLY, "sh", str(ROOT), tmpdir="/dev/shm", cwd=ROOT)
    if started.returncode == MAY_NOT_MOUNT or started.stderr.startswith("unshare:"):
        pytest.skip(f"may not mount file systems read-only: {started.stderr.strip()}")
    assert (started.returncode, started.stderr) == (0, "")
    assert started.stdout.startswith("usage: epp")
