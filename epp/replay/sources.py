"""From what the command line names to a workload: a file, or a shape's name."""

from dataclasses import replace
from pathlib import Path

from epp.errors import ConfigError
from epp.replay import mooncake, recorded
from epp.replay.generated import SHAPES, generate
from epp.replay.options import DEFAULT_PROFILE
from epp.replay.workload import Workload


def is_file(said: str) -> bool:
    """Whether a file is meant, which is the same for every seed and any number of engines."""
    return said.partition(":")[0] not in SHAPES


def workload(said: str, engines: int, seed: int, limit: int | None = None, profile: str = DEFAULT_PROFILE) -> Workload:
    """The workload that a file or a shape's name stands for.

    Args:
        said: the path of a trace or a decision log, or a name as `generate` takes it.
        engines: that a generated workload is meant for.
        seed: of a generated workload.
        limit: how many requests there are at most, from the start.
        profile: of the engines, for what a decision log doesn't say.

    Raises:
        ConfigError: there is no such thing, or the file can't be read.
    """
    if not is_file(said):
        found = generate(said, engines, seed)
    elif Path(said).is_file():
        file = Path(said)
        found = recorded.load(file, profile) if recorded.is_log(file) else mooncake.load(file)
    else:
        raise ConfigError(f"{said!r} is no file, and no workload: there are {', '.join(SHAPES)}")
    return found if limit is None or len(found) <= limit else replace(found, turns=found.turns[:limit])
