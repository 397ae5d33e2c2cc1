"""docs/doctor.md names every check, and no other."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def made() -> set[str]:
    """The names of checks in the sources: the first argument of what reports a finding."""
    found = set()
    for file in (ROOT / "epp" / "doctor").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and re.match(r"(self\._)?find\.|state$", ast.unparse(node.func)):
                text = ast.unparse(node.args[0])
                found.update(re.findall(r"^f?'([a-z]+(?:\.[a-z_]+)?|\{what\}\.[a-z]+)'$", text))
    return {each.replace("{what}", kind) for each in found for kind in ("pool", "route")}


def test_every_check_is_documented() -> None:
    table = (ROOT / "docs" / "doctor.md").read_text().partition("## The checks")[2].partition("## By hand")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z_.]+)`", row)} == made()
