"""The decision log's format: what is written comes back, in frames that can be cut off anywhere."""

import gzip
import math
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from epp.errors import ConfigError, ServiceUnavailable
from epp.keys import INFLIGHT_REQUESTS
from epp.observe import wire
from epp.observe.entries import Entry, Server, plain, read_log, read_logs
from epp.observe.frames import LENGTH, MAGIC, framed, is_log
from epp.observe.record import Comparison, Record, Seen
from epp.observe.rows import LONGEST_ID, Rows
from epp.plugin import Outcome, Usage
from epp.shadow import taken_elsewhere
from epp.testing import candidates, pool
from tests.unit.observe.parts import decided, endpoints, record

CHAINS = (np.array([1, 2, 2**64 - 1], np.uint64), np.array([], np.uint64))
OUTCOME = Outcome(200, "10.0.0.3:8000", "done", 0.25, 1.5, 900, True, Usage(7, 8, None))


def ended(id_: str = "r-1", **fields: object) -> Record:
    """A request that has ended, with all that a log keeps."""
    seen = Seen(prompt_bytes=800, max_tokens=16, streaming=True, chains=CHAINS)
    return record(id_, **({"seen": seen, "outcome": OUTCOME, "target_model": "n", "priority": -1} | fields))


def written(file: Path, *records: Record, most: int = 32) -> list[Entry]:
    rows = Rows(block_tokens=64, space=5, most_candidates=most)
    frames = [framed([rows.opening(0.0)]), *(framed(rows.encode(each)) for each in records)]
    file.write_bytes(MAGIC + b"".join(frames))
    return list(read_log(file))


def test_an_entry_says_what_the_record_did(tmp_path):
    """Every field of a request that was routed and has ended."""
    decision = decided()
    (entry,) = written(tmp_path / "log", ended(decision=decision))
    assert (entry.id, entry.kind, entry.arrived) == ("r-1", "routed", 1.5e9)
    assert (entry.model, entry.target_model, entry.fairness_id, entry.priority) == ("m", "n", "default-flow", -1)
    assert (entry.size, entry.prompt_bytes, entry.max_tokens, entry.streaming) == (100, 800, 16, True)
    assert (entry.block_tokens, entry.space, entry.decided_in, entry.error) == (64, 5, 0.0002, None)
    assert [chain.tolist() for chain in entry.chains] == [[1, 2, 2**64 - 1], []]
    assert entry.servers == tuple(Server(f"default/pod-{n}", f"10.0.0.{n + 1}:8000") for n in range(3))
    assert entry.fresh.tolist() == [True, True, True]
    assert entry.ages.tolist() == [1000.0] * 3
    assert entry.signals["waiting"].tolist() == [0.0, 0.0, 4.0]
    assert entry.signals["inflight_requests"].tolist() == [0.0, 0.0, 2.0]
    (stage,) = entry.stages
    assert (stage.profile, stage.scorers, stage.weights) == (
        "default",
        ("queue-scorer", "active-request-scorer"),
        (2, 1),
    )
    assert stage.pick == (0,)
    assert np.isnan(stage.scores[:, 1]).all(), "the second one is filtered out"
    assert math.isnan(stage.totals[1])
    totals = decision.stages[0].totals
    assert totals is not None
    assert stage.totals[[0, 2]].tolist() == totals.tolist()
    assert (entry.primary, entry.sent_to, entry.candidates) == ("default", "10.0.0.1:8000", 3)
    assert msgspec.structs.asdict(entry.outcome) == msgspec.structs.asdict(OUTCOME)
    assert (entry.shadow, entry.against_shadow, entry.against_ours) == ((), None, None)


def test_who_is_stale_is_told(tmp_path):
    """Whose metrics were missing can be seen, and their values are NaN."""
    stale = endpoints(stale=[False, False, True])
    (entry,) = written(tmp_path / "log", ended(decision=decided(stale)))
    assert entry.fresh.tolist() == [True, True, False]
    assert math.isnan(entry.signals["waiting"][2])


def test_a_refused_request(tmp_path):
    """It has no decision, and says why."""
    error = ServiceUnavailable("nobody", reason="rejected-no-endpoints")
    (entry,) = written(tmp_path / "log", record(decision=None, error=error, model=""))
    assert (entry.kind, entry.servers, entry.stages, entry.sent_to) == ("refused", (), (), None)
    assert entry.error == (503, "ServiceUnavailable", "rejected-no-endpoints")
    assert entry.chains == ()


def test_an_observed_request_and_a_shadow(tmp_path):
    """Where it went is where the other picker has sent it; both comparisons come back."""
    against = Comparison("10.0.0.1:8000", agreed=False, regret=0.5)
    nobody = Comparison(None, agreed=False, regret=None)
    fields = {"observed": "10.0.0.3:8000", "against_ours": against, "against_shadow": nobody, "shadow": decided()}
    (entry,) = written(tmp_path / "log", ended(**fields))
    assert (entry.kind, entry.sent_to) == ("observed", "10.0.0.3:8000")
    assert (entry.against_ours, entry.against_shadow) == (against, nobody)
    assert entry.shadow[0].pick == (0,)


def test_of_many_candidates_the_best_are_written(tmp_path):
    """And whoever was picked, or took the request; positions are among those that are written."""
    load = {"waiting": list(range(100)), "inflight_requests": [0] * 100, "labels": [{"llm-d.ai/role": "decode"}] * 100}
    made = pool(**load)
    ours = decided(candidates(of=made))
    taken = taken_elsewhere(ours, made, 90)
    (entry,) = written(tmp_path / "log", ended(decision=taken, ours=ours, observed="10.0.0.91:8000"), most=4)
    assert entry.candidates == 100
    assert [server.id for server in entry.servers] == [
        "default/pod-0",
        "default/pod-1",
        "default/pod-2",
        "default/pod-3",
        "default/pod-90",
    ]
    assert entry.signals["waiting"].tolist() == [0, 1, 2, 3, 90]
    assert entry.servers[entry.stages[0].pick[0]].id == "default/pod-0"
    assert entry.stages[0].totals.tolist()[:2] == sorted(entry.stages[0].totals.tolist(), reverse=True)[:2]


def test_names_are_written_once(tmp_path):
    """A second request of the same kind takes less room; a changed pool is named anew."""
    rows = Rows(64, 5, 32)
    rows.opening(0.0)
    first, second = rows.encode(ended()), rows.encode(ended())
    assert (len(first), len(second)) == (2, 1)
    assert len(second[0]) == len(first[1])
    other = rows.encode(ended(decision=decided(endpoints(names=["a", "b", "c"]))))
    assert len(other) == 2


def test_names_begin_anew(tmp_path, monkeypatch):
    """Clients choose models' names: neither the writer nor the reader keeps them all."""
    monkeypatch.setattr("epp.observe.rows.MOST_NAMES", 20)
    models = [f"model-{number}" for number in range(50)]
    entries = written(tmp_path / "log", *(ended(model=model) for model in models))
    assert [entry.model for entry in entries] == models
    assert all(entry.servers[0].id == "default/pod-0" for entry in entries)


def test_long_ids_are_cut(tmp_path):
    """Clients choose them."""
    (entry,) = written(tmp_path / "log", ended("x" * 10_000))
    assert entry.id == "x" * LONGEST_ID


def test_a_file_that_is_being_written(tmp_path):
    """Whatever part of the last frame is there, the entries before it are read."""
    file = tmp_path / "log"
    written(file, ended("r-1"), ended("r-2"))
    whole = file.read_bytes()
    last = len(framed(Rows(64, 5, 32).encode(ended("r-2"))[1:]))
    for cut in (1, 2, last - 1):
        file.write_bytes(whole[:-cut])
        assert [entry.id for entry in read_log(file)] == ["r-1"]


def test_gzipped_files_are_read(tmp_path):
    """As whoever keeps old ones may have made them."""
    file = tmp_path / "log"
    written(file, ended("r-1"))
    (tmp_path / "log.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert [entry.id for entry in read_log(tmp_path / "log.gz")] == ["r-1"]


def test_a_rotated_set_is_read_oldest_first(tmp_path):
    """FILE.2, FILE.1, FILE."""
    for name, id_ in (("log", "c"), ("log.1", "b"), ("log.2", "a"), ("log.4", "left behind")):
        written(tmp_path / name, ended(id_))
    assert [entry.id for entry in read_logs(tmp_path / "log")] == ["a", "b", "c"]


NEWER = wire.encode(wire.Opening(wire.FORMAT + 1, "9.9", 0.0, 64, 0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no decision log: write one with epp serve --decision-log"),
        (b'{"a": 1}\n', "no decision log"),
        (MAGIC + framed([NEWER]), "format 2, written by epp 9.9; this version reads formats up to 1"),
    ],
    ids=["empty", "json", "newer"],
)
def test_what_is_no_log(tmp_path, content, message):
    """It is said which file, and why."""
    file = tmp_path / "log"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        list(read_log(file))
    assert str(file) in str(error.value)


def framed_rows(*ids: str) -> list[bytes]:
    """The parts of a file: its beginning, then a frame for each row."""
    rows = Rows(64, 5, 32)
    opening = rows.opening(0.0)
    first, *others = ids
    frames = [framed([opening, *rows.encode(ended(first))]), *(framed(rows.encode(ended(id_))) for id_ in others)]
    return [MAGIC, *frames]


def read(file: Path, parts: list[bytes], compress: bool = False) -> tuple[list[str], list[str]]:
    """The ids that can be read of a file of these parts, and what is said of it."""
    content = b"".join(parts)
    file.write_bytes(gzip.compress(content) if compress else content)
    told: list[str] = []
    return [entry.id for entry in read_log(file, told.append)], told


def ends_early(frame: bytes) -> bytes:
    """A frame whose content ends in three bytes, too few for the length of a message."""
    packed = zlib.compress(zlib.decompress(frame[LENGTH.size :]) + b"abc")
    return LENGTH.pack(len(packed)) + packed


DAMAGES = {
    "content": lambda frame: frame[:40] + bytes(each ^ 0xFF for each in frame[40:50]) + frame[50:],
    "no zlib": lambda frame: LENGTH.pack(3) + b"abc",
    "too long": lambda frame: LENGTH.pack(2**32 - 1) + frame[LENGTH.size :],
    "too short": lambda frame: LENGTH.pack(20) + frame[LENGTH.size :],
    "no length": lambda frame: frame[LENGTH.size :],
    "no message": lambda frame: framed([b"\xc1"]),
    "ends early": ends_early,
    "cut": lambda frame: frame[:-5],
}


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_frame_is_passed_over(tmp_path, damage, compress):
    """Whatever is wrong with it, the others are read, and it is said where it is."""
    parts = framed_rows("a", "b", "c", "d")
    at = sum(map(len, parts[:3]))
    parts[3] = damage(parts[3])
    ids, told = read(tmp_path / "log", parts, compress)
    assert ids == ["a", "b", "d"]
    assert told[0].startswith(f"{tmp_path / 'log'}: at byte {at}: ")
    assert told[0].endswith(": left out")
    assert len(told) == 1 or (damage is DAMAGES["too short"] and len(told) == 2), told


@pytest.mark.parametrize("keep", [1, 5, 30])
def test_a_gzip_that_is_cut_off(tmp_path, keep):
    """Is read up to there; the last bytes of gzip's own are missing, or more."""
    file = tmp_path / "log"
    read(file, framed_rows("a", "b", "c"), compress=True)
    whole = file.read_bytes()
    file.write_bytes(whole[:-keep])
    told: list[str] = []
    ids = [entry.id for entry in read_log(file, told.append)]
    assert ids == ["a", "b", "c"][: len(ids)]
    assert len(ids) == 3 or keep > 8
    assert "its gzip is cut off: left out" in told[0]


def test_a_gzip_that_is_damaged(tmp_path):
    """What comes before the damage is read, wherever it is."""
    file = tmp_path / "log"
    parts = framed_rows(*(f"r-{number}" for number in range(50)))
    read(file, parts, compress=True)
    whole = bytearray(file.read_bytes())
    read_before = 0
    for place in range(20, len(whole), 97):
        damaged = bytes(whole[:place]) + bytes(each ^ 0x55 for each in whole[place : place + 8]) + whole[place + 8 :]
        file.write_bytes(damaged)
        told: list[str] = []
        if is_log(file):
            found = [entry.id for entry in read_log(file, told.append)]
            assert told
            assert found == sorted(set(found), key=lambda id_: int(id_[2:]))
            read_before = max(read_before, len(found))
    assert read_before > 25


def test_without_its_names_no_row_is_misread(tmp_path):
    """What a lost frame has named is missing; names that come later keep their numbers, and their rows are read."""
    rows = Rows(64, 5, 32)
    opening = rows.opening(0.0)
    models = ["m-0", "m-1", "m-2", "m-0", "m-1"]
    frames = [framed([opening, *rows.encode(ended("r", model=models[0]))])]
    frames += [framed(rows.encode(ended("r", model=model))) for model in models[1:]]
    (tmp_path / "log").write_bytes(MAGIC + frames[0] + b"damaged!" + b"".join(frames[2:]))
    told: list[str] = []
    assert [entry.model for entry in read_log(tmp_path / "log", told.append)] == ["m-0", "m-2", "m-0"]
    assert "1 requests more can't be understood without what is damaged" in told[1]


def test_without_an_opening_nothing_is_misread(tmp_path):
    """Rows of lost names are left out up to the next opening, which comes by itself now and then."""
    rows = Rows(64, 5, 32, most_bytes=1500)
    opening = rows.opening(0.0)
    models = [f"m-{number}" for number in range(40)]
    encoded = [rows.encode(ended(model, model=model)) for model in models]
    opened = [number for number, each in enumerate(encoded) if len(each) == 3]
    assert len(opened) > 2
    frames = [framed([opening, *encoded[0]]), *map(framed, encoded[1:])]
    frames[opened[0]] = frames[opened[0]][:-4]
    (tmp_path / "log").write_bytes(MAGIC + b"".join(frames))
    told: list[str] = []
    found = [(entry.id, entry.model) for entry in read_log(tmp_path / "log", told.append)]
    assert found == [(model, model) for model in (*models[: opened[0]], *models[opened[1] :])]
    assert f"{opened[1] - opened[0] - 1} requests more" in told[1]


def test_one_damaged_file_of_several(tmp_path):
    """The others are read; so they are beside the empty file of a process that has served nobody yet."""
    for name, id_ in (("log.1", "c"), ("log.2", "b"), ("log.3", "a")):
        written(tmp_path / name, ended(id_))
    (tmp_path / "log").write_bytes(b"")
    (tmp_path / "log.2").write_bytes(b"X" + (tmp_path / "log.2").read_bytes()[1:])
    told: list[str] = []
    assert [entry.id for entry in read_logs(tmp_path / "log", told.append)] == ["a", "c"]
    assert told == [f"{tmp_path / 'log.2'}: is no decision log, or its beginning is damaged: left out"]


def test_there_is_no_file(tmp_path):
    """It is said which."""
    with pytest.raises(ConfigError, match=r"log: No such file"):
        list(read_log(tmp_path / "log"))


def test_later_versions_may_append(tmp_path):
    """An element that this version doesn't know is skipped."""
    rows = Rows(64, 5, 32)
    opening = rows.opening(0.0)
    *names, row = rows.encode(ended("r-1"))
    longer = msgspec.msgpack.encode([*msgspec.msgpack.decode(row), {"new": 1}])
    (tmp_path / "log").write_bytes(MAGIC + framed([opening, *names, longer]))
    assert [entry.id for entry in read_log(tmp_path / "log")] == ["r-1"]


def test_entries_as_json(tmp_path):
    """Plain data, without NaN."""
    (entry,) = written(tmp_path / "log", ended(against_ours=Comparison("a:1", agreed=True, regret=0.0)))
    found = msgspec.json.decode(msgspec.json.encode(plain(entry)))
    assert found["stages"][0]["totals"][1] is None
    assert found["chains"] == [[1, 2, 2**64 - 1], []]
    assert found["outcome"]["usage"]["prompt_tokens"] == 7
    assert found["against_ours"] == {"other": "a:1", "agreed": True, "regret": 0.0}
    assert INFLIGHT_REQUESTS.name in found["signals"]
