"""``epp plugins new NAME``: writes a plugin in a file of its own, with its test."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from epp.cli.plugin_templates import KINDS, plugin_text, test_text

_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def main(arguments: Sequence[str]) -> int:
    """The exit status is 0, 1 if a file is in the way, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    module = options.name.replace("-", "_")
    class_name = "".join(word.capitalize() for word in module.split("_"))
    folder = Path(options.folder)
    texts = {
        folder / f"{module}.py": plugin_text(options.kind, module, class_name),
        folder / f"test_{module}.py": test_text(options.kind, module, class_name),
    }
    if found := [str(path) for path in texts if path.exists()]:
        print(f"epp plugins new: {', '.join(found)}: there already; nothing was written", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
        print(path)
    plugin = folder / f"{module}.py"
    print(f"\nnext: epp plugins test {plugin}    python -m pytest {folder / f'test_{module}.py'}")
    print(f"then, in a configuration beside it: plugins: [{{type: ./{plugin.name}}}]")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="epp plugins new", description=__doc__)
    parser.add_argument("name", type=_name, metavar="NAME", help="of the plugin, such as shortest-scorer")
    parser.add_argument("--kind", choices=tuple(KINDS), default="scorer", help="what it is (%(default)s)")
    parser.add_argument("--folder", default=".", metavar="DIR", help="where the files go (here)")
    return parser


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: lower-case words with hyphens, such as shortest-scorer")
    return text
