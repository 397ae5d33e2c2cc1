"""The decision log as values: what a request looked like, what was known, what was decided, what became of it.

`read_log(file)` gives the entries of one file, `read_logs(file)` those of a rotated set, oldest first. Prompts and
answers are in none of them: of a prompt there are its length and the chained hashes of its blocks, under a secret that
goes with the process which wrote them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.observe import wire
from epp.observe.frames import Lost, is_log
from epp.observe.record import Comparison
from epp.request import Outcome, Usage

log = logging.getLogger(__name__)

Singles = NDArray[np.float32]
Hashes = NDArray[np.uint64]
Kind = Literal["routed", "observed", "refused"]


class Server(msgspec.Struct, frozen=True):
    """A candidate: its id (`namespace/name`), and its address as `ip:port`."""

    id: str
    hostport: str


class Stage(msgspec.Struct, frozen=True, eq=False):
    """One run of one profile over the entry's `n` candidates.

    Attributes:
        profile: its name.
        scorers: the scorers' names.
        weights: theirs, in the same order.
        scores: what each said, as it entered the total, shape (scorers, n); NaN for who had been filtered out.
        totals: the weighted sums, shape (n,); NaN for who had been filtered out.
        pick: positions of the chosen among the candidates, best first; () if nobody was left.
    """

    profile: str
    scorers: tuple[str, ...]
    weights: tuple[float, ...]
    scores: Singles
    totals: Singles
    pick: tuple[int, ...]


class Entry(msgspec.Struct, frozen=True, eq=False):
    """One request.

    Attributes:
        id: `x-request-id`, cut after 64 characters; not unique.
        kind: "routed" by this picker, "observed" beside another one, or "refused".
        arrived: seconds since the epoch.
        model: that the client names; "" for none.
        target_model: that is asked for it.
        fairness_id: whom it is accounted to.
        priority: negative is sheddable.
        size: bytes of the body; None if it wasn't seen.
        prompt_bytes: the length of all prompts together; 4 bytes are about a token.
        max_tokens: the most tokens to generate; None if the client doesn't say.
        streaming: whether the client asks for a streamed answer.
        block_tokens: tokens in a block of `chains`, at 4 bytes each.
        space: chains of different spaces can't be compared: they were hashed under different secrets.
        chains: of each prompt the hashes of its whole blocks; hash i names the whole prefix up to block i.
        decided_in: seconds that the decision took; None if there was none.
        candidates: how many endpoints there were to choose from.
        servers: those that were written down: the best by the primary profile's totals, and every pick.
        fresh: whose last scheduled scrape had succeeded, shape (n,).
        ages: seconds since each one's last scrape, shape (n,); NaN for never.
        signals: what the decision read, by name, each of shape (n,); a produced one is called `producer/name`.
        stages: the runs of profiles.
        primary: the name of the profile whose pick is the destination.
        sent_to: `ip:port` of where it went: the first choice, or where another picker has sent it.
        shadow: what the shadow's profiles decided; () without a shadow.
        against_shadow: the destination against the shadow's.
        against_ours: of an observed request, the other picker's destination against ours.
        error: status, code and reason of what the client was told, if we refused it.
        outcome: what became of it.
    """

    id: str
    kind: Kind
    arrived: float
    model: str
    target_model: str
    fairness_id: str
    priority: int
    size: int | None
    prompt_bytes: int
    max_tokens: int | None
    streaming: bool
    block_tokens: int
    space: int
    chains: tuple[Hashes, ...]
    decided_in: float | None
    candidates: int
    servers: tuple[Server, ...]
    fresh: NDArray[np.bool_]
    ages: Singles
    signals: Mapping[str, Singles]
    stages: tuple[Stage, ...]
    primary: str | None
    sent_to: str | None
    shadow: tuple[Stage, ...]
    against_shadow: Comparison | None
    against_ours: Comparison | None
    error: tuple[int, str, str | None] | None
    outcome: Outcome


Told = Callable[[str], None]
"""Hears, in a sentence each, what of a log can't be read."""


def read_logs(file: Path, told: Told = log.warning) -> Iterator[Entry]:
    """The entries of a log and of what has been rotated away from it, oldest first.

    A rotated file that is no decision log is passed over.

    Args:
        file: the log; it may be empty if there are others, as that of a process which has served nobody is.
        told: see `Told`.

    Raises:
        ConfigError: there is no such file, it is no decision log, or one of them is of a later format than this.
    """
    older = wire.rotated(file)
    for each in reversed(older):
        if is_log(each):
            yield from read_log(each, told)
        elif not _is_empty(each):
            told(f"{each}: is no decision log, or its beginning is damaged: left out")
    if not (older and _is_empty(file)):
        yield from read_log(file, told)


def _is_empty(file: Path) -> bool:
    try:
        return not file.stat().st_size
    except OSError:
        return False


def read_log(file: Path, told: Told = log.warning) -> Iterator[Entry]:
    """The entries of one file, in the order in which the requests ended; it may be gzipped, and may still be written.

    What is damaged is left out, and with it the rows after it that can't be understood without it.

    Args:
        file: the file.
        told: see `Told`.

    Raises:
        ConfigError: it can't be read, is no decision log, or one of a later format than this.
    """
    reader = _Reader()
    for read in wire.messages(file):
        if isinstance(read, Lost):
            reader.lost()
            told(f"{file}: at byte {read.at}: {read.why}: left out")
        else:
            yield from filter(None, map(reader.read, read.messages))
    if reader.orphans:
        told(f"{file}: {reader.orphans} requests more can't be understood without what is damaged: left out")


class _Reader:
    """Makes entries of messages.

    State: the opening that holds, and the names since then.

    Attributes:
        orphans: rows whose opening or names are missing.
    """

    def __init__(self) -> None:
        self._opening: wire.Opening | None = None
        self._names: dict[int, str] = {}
        self.orphans = 0

    def lost(self) -> None:
        """Some messages can't be read."""
        if self._opening is not None and not self._opening.number:
            self._opening = None  # an epp that didn't number: whose names they are that follow can't be told

    def read(self, message: wire.Message) -> Entry | None:
        """The entry, if the message is a row that can be understood."""
        if isinstance(message, wire.Opening):
            self._opening, self._names = message, {}
        elif isinstance(message, wire.Names):
            first = len(self._names) if message.first is None else message.first
            self._names.update(enumerate(message.texts, first))
        elif self._opening is not None and self._opening.number == message.opening:
            try:
                return _entry(message, self._opening, self._names)
            except (LookupError, ValueError):  # a name that isn't there, or arrays that don't fit together
                self.orphans += 1
        else:
            self.orphans += 1
        return None


def _entry(row: wire.Row, opening: wire.Opening, names: Mapping[int, str]) -> Entry:
    servers = tuple(_server(names[name]) for name in np.frombuffer(row.servers, "<u4"))
    n = len(servers)
    outcome, error = row.outcome, row.error
    return Entry(
        id=row.id,
        kind=_KINDS[row.kind],
        arrived=row.arrived,
        model=names[row.model],
        target_model=names[row.target_model],
        fairness_id=names[row.fairness_id],
        priority=row.priority,
        size=row.size,
        prompt_bytes=row.prompt_bytes,
        max_tokens=row.max_tokens,
        streaming=row.streaming,
        block_tokens=opening.block_tokens,
        space=opening.space,
        chains=tuple(np.frombuffer(chain, "<u8") for chain in row.chains),
        decided_in=row.decided_in,
        candidates=row.candidates,
        servers=servers,
        fresh=np.frombuffer(row.fresh, np.bool_) if row.fresh else np.ones(n, np.bool_),
        ages=np.frombuffer(row.ages, "<f4"),
        signals={names[name]: np.frombuffer(column, "<f4") for name, column in row.signals},
        stages=tuple(_stage(stage, names, n) for stage in row.stages),
        primary=None if row.primary is None else names[row.primary],
        sent_to=None if row.sent_to is None else names[row.sent_to],
        shadow=tuple(_stage(stage, names, n) for stage in row.shadow),
        against_shadow=_comparison(row.against_shadow, names),
        against_ours=_comparison(row.against_ours, names),
        error=None if error is None else (error.status, names[error.code], _name(names, error.reason)),
        outcome=Outcome(
            status=outcome.status,
            served_by=_name(names, outcome.served_by),
            cause=_name(names, outcome.cause),
            first_byte=outcome.first_byte,
            duration=outcome.duration,
            response_bytes=outcome.response_bytes,
            streaming=outcome.streaming,
            usage=Usage(*outcome.usage),
        ),
    )


_KINDS: tuple[Kind, ...] = ("routed", "observed", "refused")


def _server(text: str) -> Server:
    endpoint_id, _, hostport = text.rpartition(" ")
    return Server(endpoint_id, hostport)


def _stage(stage: wire.Stage, names: Mapping[int, str], n: int) -> Stage:
    return Stage(
        profile=names[stage.profile],
        scorers=tuple(names[name] for name in stage.scorers),
        weights=tuple(stage.weights),
        scores=np.frombuffer(stage.scores, "<f4").reshape(len(stage.scorers), n),
        totals=np.frombuffer(stage.totals, "<f4"),
        pick=tuple(stage.pick),
    )


def _comparison(said: wire.Comparison | None, names: Mapping[int, str]) -> Comparison | None:
    return None if said is None else Comparison(_name(names, said.other), said.agreed, said.regret)


def _name(names: Mapping[int, str], index: int | None) -> str | None:
    return None if index is None else names[index]


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as plain data for JSON; numbers that aren't known are null."""
    found: dict[str, Any] = msgspec.structs.asdict(entry)
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, msgspec.Struct):
        return {name: _plain(each) for name, each in msgspec.structs.asdict(value).items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
