"""`epp migrate`: manifests of the old inference APIs become those of the new ones.

InferencePool v1alpha2 becomes v1, InferenceModel becomes InferenceObjective and InferenceModelRewrite,
InferenceObjective and InferenceModelRewrite of inference.networking.x-k8s.io become llm-d.ai's, and references to
InferencePools in other objects follow. Everything else is passed through as it is; comments are lost. What can't be
converted without a loss is refused, with its place.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from epp.errors import ConfigError
from epp.migrate import migrate
from epp.settings import read_file


def main(arguments: Sequence[str]) -> int:
    """Prints YAML; 0, 1 if something can't be converted (then nothing is printed), 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        migration = migrate([_source(file) for file in options.files or ["-"]])
    except (ConfigError, UnicodeDecodeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(migration.text, end="")
    for note in migration.notes:
        print(f"note: {note}", file=sys.stderr)
    if not migration.converted:
        print("note: nothing of it is of the old inference APIs; it is passed through", file=sys.stderr)
    return 0


def _source(file: str) -> tuple[str, str]:
    """A file's name for messages, and its text."""
    if file == "-":
        return "standard input", sys.stdin.read()
    return file, read_file(Path(file))


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("epp migrate", description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("files", metavar="FILE", nargs="*", help="YAML or JSON; - or none for standard input")
    return parser
