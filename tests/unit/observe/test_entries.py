"""The decision log's format: what is written comes back, in frames that can be cut off anywhere."""

import gzip
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from epp.errors import ConfigError, ServiceUnavailable
from epp.keys import INFLIGHT_REQUESTS
from epp.observe import wire
from epp.observe.entries import Entry, Server, plain, read_log, read_logs
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
    frames = [wire.framed([rows.opening(0.0)]), *(wire.framed(rows.encode(each)) for each in records)]
    file.write_bytes(wire.MAGIC + b"".join(frames))
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
    last = len(wire.framed(Rows(64, 5, 32).encode(ended("r-2"))[1:]))
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
        (wire.MAGIC + wire.LENGTH.pack(3) + b"abc", "damaged"),
        (wire.MAGIC + wire.framed([b"\xc1"]), "damaged"),
        (wire.MAGIC + wire.framed(Rows(64, 5, 32).encode(ended())), "doesn't begin with its opening"),
        (wire.MAGIC + wire.framed([NEWER]), "format 2, written by epp 9.9; this version reads formats up to 1"),
    ],
    ids=["empty", "json", "garbage", "no message", "no opening", "newer"],
)
def test_what_is_no_log(tmp_path, content, message):
    """It is said which file, and why."""
    file = tmp_path / "log"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        list(read_log(file))
    assert str(file) in str(error.value)


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
    (tmp_path / "log").write_bytes(wire.MAGIC + wire.framed([opening, *names, longer]))
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
