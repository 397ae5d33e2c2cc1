"""What a comparison leaves behind: `report.json`, PNG plots, `index.html`."""

import json
import re
from pathlib import Path

from epp.errors import ConfigError
from epp.replay.page import page
from epp.replay.study import Report


def write(report: Report, folder: Path, *, plots: bool = True) -> list[Path]:
    """Writes everything into a folder, which is made if it isn't there; the files.

    Raises:
        ConfigError: the folder can't be written to.
        ModuleNotFoundError: matplotlib isn't there, and plots are wanted.
    """
    drawn = _draw(report) if plots else {}
    contents = {"report.json": report_json(report).encode(), "index.html": page(report, drawn).encode()}
    for (workload, engines), pictures in drawn.items():
        contents |= {f"{_slug(workload)}-{engines}-{kind}.png": png for kind, png in pictures.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"--out {folder}: can't be written: {error.strerror or error}") from error
    return [folder / name for name in contents]


def _draw(report: Report) -> dict[tuple[str, int], dict[str, bytes]]:
    from epp.replay.plots import draw

    return {(panel.workload, panel.engines): draw(panel) for panel in report.panels}


def report_json(report: Report) -> str:
    """`{"rows": [...]}`, see `result.row`."""
    return json.dumps({"rows": report.rows}, indent=1) + "\n"


def _slug(workload: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.=-]+", "-", workload)
