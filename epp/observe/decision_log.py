"""Writes the decision log: one compact row a request that was decided or refused, at its end.

Rows are gathered for a while and written by a thread, a frame at a time, so that a slow disk holds up nobody. What
waits to be written is bounded: beyond that rows are dropped, and counted.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from random import Random

from epp.errors import ConfigError
from epp.observe import wire
from epp.observe.frames import MAGIC, framed
from epp.observe.record import Record, Seen
from epp.observe.rows import Rows
from epp.observe.series import Family
from epp.plugin import BYTES_PER_TOKEN, Request
from epp.prefix import Hasher

log = logging.getLogger(__name__)

Later = Callable[[float, Callable[[], None]], object]

DELAY = 0.25
"""Seconds that rows are gathered for; they compress together."""

MOST_WAITING = 16 * 2**20
"""Bytes of rows that may wait to be written."""

BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class LogOptions:
    """Where the log is, and how much of it is kept.

    Attributes:
        file: the log; `FILE.1` is the one before, and so on.
        max_bytes: a file that has reached so many is rotated away.
        max_files: how many files there are at most, the one that is written included.
        candidates: how many candidates of a decision are written down.
    """

    file: Path
    max_bytes: int = 100 * 2**20
    max_files: int = 10
    candidates: int = 32


class Files:
    """The rotated files, for one thread at a time. A frame that can't be written whole leaves no part behind."""

    def __init__(self, options: LogOptions) -> None:
        self._file, self._most = options.file, options.max_files
        self._opened: FileIO | None = None
        self._size = 0

    def __repr__(self) -> str:
        return f"<Files {self._file}: {self._size} bytes>"

    def prepare(self) -> None:
        """Rotates away what a process before has written.

        Raises:
            ConfigError: the file can't be written, or is something else than a decision log.
        """
        try:
            if self._file.exists() and self._file.stat().st_size:
                with self._file.open("rb") as there:
                    if there.read(len(MAGIC)) != MAGIC:
                        raise ConfigError(f"--decision-log {self._file}: is no decision log: name another file")
                self._rotate()
            self._open()
        except OSError as error:
            raise ConfigError(f"--decision-log {self._file}: can't be written: {error.strerror or error}") from error

    def append(self, messages: list[bytes], *, anew: bool) -> int:
        """Writes a frame; how long the file is then.

        Args:
            messages: encoded.
            anew: begins a new file with it.

        Raises:
            OSError: it can't be written.
        """
        frame = framed(messages)
        if anew and self._size:
            self.close()
            self._rotate()
        opened = self._opened or self._open()
        data = frame if self._size else MAGIC + frame
        written = 0
        try:
            while written < len(data):  # a disk that fills up takes a part first, and then refuses
                written += opened.write(data[written:])
        except OSError:
            opened.truncate(self._size)
            opened.seek(self._size)
            raise
        self._size += len(data)
        return self._size

    def close(self) -> None:
        """Closes the file."""
        opened, self._opened, self._size = self._opened, None, 0
        if opened is not None:
            opened.close()

    def _open(self) -> FileIO:
        self._opened = FileIO(self._file, "w")
        self._size = 0
        return self._opened

    def _rotate(self) -> None:
        for older in wire.rotated(self._file)[max(self._most - 2, 0) :]:
            older.unlink()
        for older in reversed(wire.rotated(self._file)):
            older.replace(self._numbered(int(older.name.rpartition(".")[2]) + 1))
        if self._most > 1:
            self._file.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._file.with_name(f"{self._file.name}.{number}")


class DecisionLog:
    """The log of one process; see the module.

    Args:
        options: see `LogOptions`.
        records: the family that counts rows by result.
        later: calls a function after so many seconds, as an event loop's `call_later` does.
        wall: seconds since the epoch.
        random: makes the secret of the hashes.

    Raises:
        ConfigError: the file can't be written.
    """

    def __init__(
        self,
        options: LogOptions,
        records: Family,
        later: Later,
        wall: Callable[[], float],
        random: Random,
    ) -> None:
        self._options, self._later, self._wall = options, later, wall
        self._counts = {result: records.value(result) for result in ("written", "dropped")}
        self._hasher = Hasher(random.getrandbits(64))
        self._rows = Rows(BLOCK_TOKENS, random.getrandbits(63), options.candidates)
        self._files = Files(options)
        self._files.prepare()
        self._thread = ThreadPoolExecutor(1, "decision-log")
        self._writing: tuple[Future[int], _Batch] | None = None
        self._ticking = False
        self._failing = False
        self._gathered = self._batch(anew=False)

    def __repr__(self) -> str:
        return f"<DecisionLog {self._options.file}: {self._gathered.rows} rows waiting>"

    @property
    def busy(self) -> bool:
        """Whether anything waits to be written, or is being written."""
        return self._writing is not None or self._gathered.rows > 0

    def see(self, record: Record, request: Request) -> None:
        """Keeps of a request what the log wants and what goes with the prompts: their length and hashes."""
        body = request.body
        seed = self._hasher.seed(body.model, body.cache_salt)
        chains = tuple([self._hasher.chain(seed, prompt, BLOCK_TOKENS * BYTES_PER_TOKEN) for prompt in body.prompts])
        record.seen = Seen(request.prompt_bytes, body.max_tokens, body.stream, chains)

    def write(self, record: Record) -> None:
        """Enters a request that has ended; one that was neither decided nor refused is left out."""
        if record.decision is None and record.error is None:
            return
        batch, writing = self._gathered, self._writing
        if batch.bytes + (writing[1].bytes if writing is not None else 0) >= MOST_WAITING:
            self._counts["dropped"].inc()
            return
        batch.add(self._rows.encode(record))
        self._tick()

    def flush(self) -> None:
        """Hands what has been gathered to the thread, unless that is still writing."""
        full = False
        if self._writing is not None and self._writing[0].done():
            full = self._collect(*self._writing)
        if self._writing is None and self._gathered.rows:
            batch, self._gathered = self._gathered, self._batch(anew=True) if full else _Batch()
            self._writing = (self._thread.submit(self._files.append, batch.messages, anew=batch.anew), batch)
        elif full:
            self._gathered = self._batch(anew=True)
        if self._writing is not None:
            self._tick()

    def drain(self) -> None:
        """Writes all that waits, and waits until it is written."""
        while self.busy:
            if self._writing is not None:
                wait([self._writing[0]])
            self.flush()

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self.drain()
        self._thread.shutdown()
        self._files.close()

    def _tick(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._later(DELAY, self._ticked)

    def _ticked(self) -> None:
        self._ticking = False
        self.flush()

    def _batch(self, *, anew: bool) -> "_Batch":
        return _Batch([self._rows.opening(self._wall())], anew=anew)

    def _collect(self, done: "Future[int]", batch: "_Batch") -> bool:
        """Takes note of what has become of a batch; whether the file has reached its length with it."""
        self._writing = None
        error = done.exception()
        if error is None:
            self._counts["written"].inc(batch.rows)
            self._failing = False
            return done.result() >= self._options.max_bytes and not self._gathered.anew
        # What has been gathered meanwhile can't be read without the names that are lost.
        self._counts["dropped"].inc(batch.rows + self._gathered.rows)
        if not self._failing:
            log.error("--decision-log %s: nothing is kept until it can be written: %s", self._options.file, error)
        self._failing = True
        self._gathered = self._batch(anew=batch.anew or self._gathered.anew)
        return False


class _Batch:
    """Messages that become one frame.

    Attributes:
        anew: it begins a new file.
        rows: how many requests there are among them.
        bytes: how long they are together.
    """

    __slots__ = ("anew", "bytes", "messages", "rows")

    def __init__(self, messages: Sequence[bytes] = (), *, anew: bool = False) -> None:
        self.messages, self.anew, self.rows, self.bytes = list(messages), anew, 0, 0

    def add(self, messages: Sequence[bytes]) -> None:
        """Adds one request's."""
        self.messages += messages
        self.bytes += sum(map(len, messages))
        self.rows += 1
