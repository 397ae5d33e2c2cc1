"""The decision log's writer, on real files: batches, rotation, a disk that is full."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import msgspec
import pytest

from epp.errors import BadRequest, ConfigError
from epp.observe import decision_log, wire
from epp.observe.decision_log import DecisionLog, LogOptions
from epp.observe.entries import read_log, read_logs
from epp.observe.metrics import Metrics
from epp.pool import Pool
from epp.testing import request
from tests.unit.observe.parts import one, record, samples


class Timer:
    """Holds what is to be called later, until the test does."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        assert seconds == decision_log.DELAY
        self.due.append(function)

    def fire(self) -> None:
        due, self.due = self.due, []
        for function in due:
            function()


class Writing:
    """A log, its timer and its counters."""

    def __init__(self, file: Path, **limits: int) -> None:
        self.timer, self.metrics = Timer(), Metrics(Pool(), "pool")
        rows = self.metrics.families["llm_d_epp_decision_log_rows_total"]
        self.log = DecisionLog(LogOptions(file, **limits), rows, self.timer.later, lambda: 1.0, Random(1))

    def write(self, *ids: str) -> None:
        for id_ in ids:
            self.log.write(record(id_))

    def written(self) -> None:
        """Waits until the thread has written what it was given."""
        self.log.flush()
        while self.log._writing is not None:
            decision_log.wait([self.log._writing[0]])
            self.log.flush()

    def counted(self, result: str) -> float:
        return one(samples(self.metrics), "llm_d_epp_decision_log_rows_total", result=result)


def ids(file: Path) -> list[str]:
    return [entry.id for entry in read_log(file)]


def test_rows_are_gathered_and_written_together(tmp_path):
    """Nothing is written at once; the timer is set once for all that waits."""
    writing = Writing(tmp_path / "log")
    writing.write("a", "b")
    assert (tmp_path / "log").read_bytes() == b""
    assert len(writing.timer.due) == 1
    writing.timer.fire()
    writing.written()
    assert ids(tmp_path / "log") == ["a", "b"]
    assert (writing.counted("written"), writing.counted("dropped")) == (2, 0)
    writing.write("c")
    writing.log.close()
    assert ids(tmp_path / "log") == ["a", "b", "c"]
    assert writing.counted("written") == 3


def test_what_was_neither_decided_nor_refused_is_left_out(tmp_path):
    """Such as a client that has gone before its request was whole."""
    writing = Writing(tmp_path / "log")
    writing.log.write(record("gone", decision=None))
    writing.log.write(record("refused", decision=None, error=BadRequest("no")))
    writing.log.close()
    assert ids(tmp_path / "log") == ["refused"]


def test_prompts_are_hashed(tmp_path):
    """Equal beginnings have equal hashes, other models others, and nothing of the text is in the file."""
    writing = Writing(tmp_path / "log")
    shared = "sixty-four tokens are 256 bytes." * 16
    for id_, prompt, model in (("a", "one", "m"), ("b", "two", "m"), ("c", "one", "n")):
        noted = record(id_)
        writing.log.see(noted, request([shared + prompt * 100, "short"], model=model))
        writing.log.write(noted)
    writing.log.close()
    read = [each for each in wire.messages(tmp_path / "log") if isinstance(each, wire.Messages)]
    plain = b"".join(msgspec.msgpack.encode(message) for each in read for message in each.messages)
    assert b"default/pod-0" in plain
    assert not [word for word in (b"sixty-four", b"one", b"two", b"short") if word in plain]
    a, b, c = read_log(tmp_path / "log")
    assert (a.prompt_bytes, a.block_tokens) == (len(shared) + 305, 64)
    assert [len(chain) for chain in a.chains] == [3, 0]
    assert a.chains[0][:2].tolist() == b.chains[0][:2].tolist()
    assert a.chains[0][2] != b.chains[0][2]
    assert not set(a.chains[0].tolist()) & set(c.chains[0].tolist())
    assert a.space == b.space
    other = Writing(tmp_path / "other")
    noted = record("a")
    other.log._hasher._secret += 1  # as another process has another one
    other.log.see(noted, request(shared, model="m"))
    other.log.close()
    assert noted.seen is not None
    assert noted.seen.chains[0][0] != a.chains[0][0]


def test_files_are_rotated(tmp_path):
    """Each can be read by itself; no more are kept than asked for, and no row is lost between two of them."""
    file = tmp_path / "log"
    writing = Writing(file, max_bytes=2000, max_files=3)
    wanted = [f"request-{number}" for number in range(200)]
    for id_ in wanted:
        writing.write(id_)
        writing.written()
    writing.log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert ids(tmp_path / "log.1")
    assert all(2000 <= (tmp_path / name).stat().st_size < 3000 for name in ("log.1", "log.2"))
    found = [entry.id for entry in read_logs(file)]
    assert found == wanted[-len(found) :]
    assert writing.counted("written") == 200


def test_rows_that_come_while_the_thread_writes(tmp_path):
    """Those that were encoded before the file turned out to be full are its last ones."""
    file = tmp_path / "log"
    writing = Writing(file, max_bytes=1, max_files=100)
    for number in range(10):
        writing.write(f"{number}-a")
        writing.log.flush()
        writing.write(f"{number}-b")  # the thread has not been heard of yet
        writing.written()
    writing.log.close()
    assert [entry.id for entry in read_logs(file)] == [f"{number}-{part}" for number in range(10) for part in "ab"]
    assert len(list(tmp_path.iterdir())) >= 10


def test_one_file_only(tmp_path):
    """It begins anew when it is full."""
    writing = Writing(tmp_path / "log", max_bytes=1, max_files=1)
    for id_ in ("a", "b", "c"):
        writing.write(id_)
        writing.written()
    writing.log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert ids(tmp_path / "log") == ["c"]


def test_a_restart_keeps_what_is_there(tmp_path):
    """The file of the process before is rotated away; one without a row is not."""
    file = tmp_path / "log"
    first = Writing(file)
    first.write("a")
    first.log.close()
    for _ in range(3):
        Writing(file).log.close()
    assert ids(tmp_path / "log.1") == ["a"]
    assert not (tmp_path / "log.2").exists()
    second = Writing(file)
    second.write("b")
    second.log.close()
    assert [entry.id for entry in read_logs(file)] == ["a", "b"]


def test_other_files_are_not_overwritten(tmp_path):
    """Who names the wrong file keeps it."""
    file = tmp_path / "log"
    file.write_text("precious")
    with pytest.raises(ConfigError, match=r"--decision-log .*log: is no decision log: name another file"):
        Writing(file)
    assert file.read_text() == "precious"


def test_a_folder_that_is_not_there(tmp_path):
    """It is said at the start."""
    with pytest.raises(ConfigError, match=r"--decision-log .*: can't be written: No such file or directory"):
        Writing(tmp_path / "missing" / "log")


def test_what_waits_is_bounded(tmp_path, monkeypatch):
    """Rows beyond that are dropped and counted; afterwards it goes on."""
    monkeypatch.setattr(decision_log, "MOST_WAITING", 2000)
    writing = Writing(tmp_path / "log")
    writing.write(*[f"r-{number}" for number in range(50)])
    dropped = writing.counted("dropped")
    assert 30 < dropped < 49
    writing.written()
    writing.write("later")
    writing.log.close()
    assert len(ids(tmp_path / "log")) == 50 - dropped + 1
    assert ids(tmp_path / "log")[-1] == "later"


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(tmp_path, caplog):
    """What can't be written is counted as dropped and logged once; half a frame doesn't spoil what follows."""
    file = tmp_path / "log"
    writing = Writing(file)
    writing.write("a")
    writing.written()
    whole = file.stat().st_size
    with no_file_longer_than(whole + 20):
        writing.write("b")
        writing.log.flush()
        writing.write("with the names of b")
        writing.written()
        writing.write("c")
        writing.written()
    assert file.stat().st_size == whole
    assert (writing.counted("written"), writing.counted("dropped")) == (1, 3)
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "nothing is kept until it can be written" in logged.getMessage()
    writing.write("d")
    writing.log.close()
    assert ids(file) == ["a", "d"]
    assert writing.counted("written") == 2
