"""Reads traces in Mooncake's format: a JSON object a line, gzipped or not.

`timestamp` (ms), `input_length` and `output_length` (tokens), and `hash_ids`: the prompt's blocks of 512 tokens in
order, the last one perhaps not full, equal numbers for equal text (FAST'25, https://github.com/kvcache-ai/Mooncake).
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from epp.errors import ConfigError
from epp.replay.files import opened
from epp.replay.workload import Piece, Turn, Workload

BLOCK = 512
"""Tokens of a block in the published traces."""

_ANSWERS = 1 << 62
"""Answers are texts of their own: the trace doesn't tell which later prompt repeats one."""


class _Line(msgspec.Struct, gc=False):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


_decode = msgspec.json.Decoder(_Line).decode


def load(file: Path, block: int = BLOCK) -> Workload:
    """Reads a trace.

    Args:
        file: gzipped or not.
        block: tokens of a block.

    Raises:
        ConfigError: the file can't be read, or a line is not in the format; the message names the line.
    """
    pieces: dict[int, Piece] = {}
    turns = [_turn(file, number, line, block, pieces) for number, line in _lines(file)]
    if not turns:
        raise ConfigError(f"{file}: there are no requests in it")
    turns.sort(key=lambda turn: turn.at)
    return Workload(_name(file), tuple(turns))


def _name(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".jsonl")


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that aren't empty, with their numbers."""
    number = 0
    try:
        with opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file}: can't be read beyond line {number}: {error}") from error


def _turn(file: Path, number: int, line: bytes, block: int, pieces: dict[int, Piece]) -> Turn:
    """One request; equal blocks are one object."""
    try:
        said = _decode(line)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}:{number}: not in Mooncake's format: {error}") from error
    full, rest = divmod(said.input_length, block)
    if said.input_length < 1 or said.output_length < 1:
        raise ConfigError(f"{file}:{number}: input_length and output_length must be at least 1")
    if len(said.hash_ids) != full + bool(rest):
        raise ConfigError(
            f"{file}:{number}: {said.input_length} tokens are {full + bool(rest)} blocks of {block}, "
            f"but hash_ids has {len(said.hash_ids)}"
        )
    prompt = [pieces.setdefault(text, Piece(text, block)) for text in said.hash_ids]
    if rest:
        prompt[-1] = Piece(said.hash_ids[-1], rest)
    return Turn(said.timestamp / 1000, tuple(prompt), Piece(_ANSWERS + number, said.output_length))
