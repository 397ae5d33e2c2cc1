"""Reads decision logs: yesterday's traffic, to be run under another configuration.

A log has no text, but for each prompt the hashes of its blocks, each of which names all that comes before it too. Here
each block is a text of its own under that number, so prompts share what they have shared. What follows the last whole
block, and every answer, is a text that nobody else has: which later prompt repeats an answer, its blocks tell.
"""

from collections.abc import Iterable
from pathlib import Path

from epp.errors import ConfigError
from epp.observe import frames, wire
from epp.observe.entries import Entry, read_logs
from epp.replay.lengths import lengths
from epp.replay.options import DEFAULT_PROFILE
from epp.replay.workload import TOKEN_BYTES, Piece, Turn, Workload

_OWN = 1 << 62
_OVERLOADED = frozenset({429, 503})
"""A request that was refused for the state of the pool may be served by another policy; others could be by none."""


def is_log(file: Path) -> bool:
    """Whether a file begins as a decision log does, perhaps gzipped; of an empty one, what was rotated away from it.

    False if it can't be read.
    """
    written = next((each for each in (file, *wire.rotated(file)) if each.is_file() and each.stat().st_size), file)
    return frames.is_log(written)


def load(file: Path, profile: str = DEFAULT_PROFILE) -> Workload:
    """Reads a decision log, with what has been rotated away from it.

    Lengths are those that the picker goes by, 4 bytes a token. An answer is as long as the engine's usage says, or
    else as `epp.replay.lengths` estimates; the workload's remarks say so, and what of the log can't be read.

    Args:
        file: the log; `FILE.1` and so on belong to it.
        profile: of the engines in the replay, for the estimates.

    Raises:
        ConfigError: it can't be read, or has no request with a prompt.
    """
    remarks: list[str] = []
    entries = sorted((entry for entry in read_logs(file, remarks.append) if _counts(entry)), key=lambda e: e.arrived)
    if not entries:
        raise ConfigError("; ".join([f"{file}: there are no requests with prompts in it", *remarks]))
    answers, estimated = lengths(entries, profile)
    blocks: dict[int, Piece] = {}
    turns = [
        Turn(
            entry.arrived - entries[0].arrived,
            tuple(_prompt(entry, number, blocks)),
            Piece(_OWN + 2 * number, answer),
        )
        for number, (entry, answer) in enumerate(zip(entries, answers, strict=True))
    ]
    return Workload(file.name, tuple(turns), (*remarks, *(f"{file.name}: {each}" for each in estimated)))


def _counts(entry: Entry) -> bool:
    served = entry.error is None or entry.error[0] in _OVERLOADED
    return served and entry.prompt_bytes >= TOKEN_BYTES


def _prompt(entry: Entry, number: int, blocks: dict[int, Piece]) -> Iterable[Piece]:
    """The blocks of all its prompts, and what is left over; equal blocks are one object."""
    tokens = entry.prompt_bytes // TOKEN_BYTES
    for chain in entry.chains:
        for content in chain.tolist():
            yield blocks.setdefault(content, Piece(content, entry.block_tokens))
            tokens -= entry.block_tokens
    if tokens > 0:
        yield Piece(_OWN + 2 * number + 1, tokens)
