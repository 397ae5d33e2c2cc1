"""Reads decision logs: yesterday's traffic, to be run under another configuration.

A log has no text, but for each prompt the hashes of its blocks, each of which names all that comes before it too. Here
each block is a text of its own under that number, so prompts share what they have shared. What follows the last whole
block, and every answer, is a text that nobody else has: which later prompt repeats an answer, its blocks tell.
"""

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from epp.errors import ConfigError
from epp.observe import wire
from epp.observe.entries import Entry, read_logs
from epp.replay.files import opened
from epp.replay.workload import TOKEN_BYTES, Piece, Turn, Workload

_OWN = 1 << 62
_OVERLOADED = frozenset({429, 503})
"""A request that was refused for the state of the pool may be served by another policy; others could be by none."""

_ANSWER = 256
"""Tokens of an answer if the log knows the length of none."""


def is_log(file: Path) -> bool:
    """Whether a file begins as a decision log does, perhaps gzipped; False if it can't be read."""
    try:
        with opened(file) as content:
            return content.read(len(wire.MAGIC)) == wire.MAGIC
    except (OSError, EOFError):
        return False


def load(file: Path) -> Workload:
    """Reads a decision log, with what has been rotated away from it.

    Lengths are those that the picker goes by, 4 bytes a token. An answer is as long as the engine's usage says, or
    else the median of those that are known, or `max_tokens` if that is less.

    Args:
        file: the log; `FILE.1` and so on belong to it.

    Raises:
        ConfigError: it can't be read, or has no request with a prompt.
    """
    entries = sorted((entry for entry in read_logs(file) if _counts(entry)), key=lambda entry: entry.arrived)
    if not entries:
        raise ConfigError(f"{file}: there are no requests with prompts in it")
    known = [tokens for entry in entries if (tokens := entry.outcome.usage.completion_tokens)]
    usual = round(median(known)) if known else _ANSWER
    blocks: dict[int, Piece] = {}
    turns = [
        Turn(
            entry.arrived - entries[0].arrived,
            tuple(_prompt(entry, number, blocks)),
            Piece(_OWN + 2 * number, _answer(entry, usual)),
        )
        for number, entry in enumerate(entries)
    ]
    return Workload(file.name, tuple(turns))


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


def _answer(entry: Entry, usual: int) -> int:
    said = entry.outcome.usage.completion_tokens
    return said or max(1, min(usual, entry.max_tokens or usual))
