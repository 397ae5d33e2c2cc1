"""The decision log as bytes; docs/decision-log.md has the table.

    file    = MAGIC, frames
    frame   = length of what follows (4 bytes, little-endian), zlib of messages
    message = its length (4 bytes, little-endian), msgpack

An `Opening` begins every file, and begins the names anew where it stands. `Names` are numbered from 0 in the order in
which they come; rows refer to them by number. Messages are arrays whose first element says which one it is; later
versions may append elements, which older readers skip, or raise `FORMAT` if they must not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from epp.errors import ConfigError
from epp.observe.frames import Lost, frames

FORMAT = 1


class _Message(msgspec.Struct, array_like=True, gc=False, eq=False):
    """The base of what is written: an array of its fields."""


class Opening(_Message, tag=0, tag_field="t"):
    """What holds for all rows up to the next opening: see `epp.observe.entries.Entry`. `number` is one higher each."""

    format: int
    version: str
    started: float
    block_tokens: int
    space: int
    number: int = 0


class Names(_Message, tag=1, tag_field="t"):
    """Names that rows refer to. `first` is the number of the first one."""

    texts: list[str]
    first: int | None = None


class Stage(_Message):
    """`scores`, `totals`: float32, little-endian, as `epp.observe.entries.Stage` has them."""

    profile: int
    scorers: list[int]
    weights: list[float]
    scores: bytes
    totals: bytes
    pick: list[int]


class Comparison(_Message):
    """See `epp.observe.entries.Comparison`."""

    other: int | None
    agreed: bool
    regret: float | None


class Refusal(_Message):
    """What the client was told."""

    status: int
    code: int
    reason: int | None


class Ended(_Message):
    """See `epp.request.Outcome`; `usage` is prompt, completion and cached tokens."""

    status: int | None
    served_by: int | None
    cause: int | None
    first_byte: float | None
    duration: float | None
    response_bytes: int | None
    streaming: bool | None
    usage: tuple[int | None, int | None, int | None]


class Row(_Message, tag=2, tag_field="t"):
    """One request: see `epp.observe.entries.Entry`. Arrays are little-endian; `fresh` is empty where all are."""

    id: str
    kind: int
    arrived: float
    model: int
    target_model: int
    fairness_id: int
    priority: int
    size: int | None
    prompt_bytes: int
    max_tokens: int | None
    streaming: bool
    chains: list[bytes]
    decided_in: float | None
    candidates: int
    servers: bytes
    fresh: bytes
    ages: bytes
    signals: list[tuple[int, bytes]]
    stages: list[Stage]
    primary: int | None
    sent_to: int | None
    shadow: list[Stage]
    against_shadow: Comparison | None
    against_ours: Comparison | None
    error: Refusal | None
    outcome: Ended
    opening: int = 0


Message = Opening | Names | Row

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def rotated(file: Path) -> list[Path]:
    """What has been rotated away from a file, `FILE.1` first, which is the youngest."""
    found: list[Path] = []
    while (older := file.with_name(f"{file.name}.{len(found) + 1}")).exists():
        found.append(older)
    return found


class Messages(NamedTuple):
    """Those of the frame that begins at this offset."""

    at: int
    messages: list[Message]


def messages(file: Path) -> Iterator[Messages | Lost]:
    """The messages of a file, frame by frame, and what can't be read; see `epp.observe.frames.frames`.

    Raises:
        ConfigError: the file can't be read, or isn't a decision log that this version understands.
    """
    for frame in frames(file):
        if isinstance(frame, Lost):
            yield frame
            continue
        try:
            found = [_decode(each) for each in frame.messages]
        except msgspec.MsgspecError as error:
            yield Lost(frame.at, f"the frame that begins there is damaged: {error}")
            continue
        newer = next((each for each in found if isinstance(each, Opening) and each.format > FORMAT), None)
        if newer is not None:
            raise ConfigError(
                f"{file}: is of format {newer.format}, written by epp {newer.version}; this version reads formats "
                f"up to {FORMAT}: read it with a newer one"
            )
        yield Messages(frame.at, found)
