"""Decision logs as workloads, from real files of the real writer."""

from random import Random

import msgspec
import numpy as np
import pytest

from epp.cli.replay import main
from epp.errors import BadRequest, ConfigError, ResourceExhausted
from epp.observe.decision_log import DecisionLog, LogOptions
from epp.observe.metrics import Metrics
from epp.observe.record import Record
from epp.plugin import Outcome, Usage
from epp.pool import Pool
from epp.replay import Engines, Policy, generate, recorded, simulate
from epp.replay.sources import workload
from epp.replay.workload import text
from epp.testing import request
from tests.unit.observe.parts import record

SYSTEM = "You are a helpful assistant who answers in a sentence or two. " * 20  # 1,240 bytes: four blocks and a part


def written(folder, *requests, name="decisions.log", max_tokens=None):
    """A log of requests, each of: seconds, prompt, and what is to be changed in its record."""
    file = folder / name
    rows = Metrics(Pool(), "pool").families["llm_d_epp_decision_log_rows_total"]
    log = DecisionLog(LogOptions(file), rows, lambda *_: None, lambda: 1.0, Random(1))
    for wall, prompt, fields in requests:
        noted: Record = record(f"r-{wall}", **fields)
        noted.wall = wall
        log.see(noted, request(prompt))
        noted.seen = msgspec.structs.replace(noted.seen, max_tokens=max_tokens)
        log.write(noted)
    log.close()
    return file


def answered(tokens):
    return {"outcome": Outcome(usage=Usage(completion_tokens=tokens))}


def test_a_log_is_read(tmp_path):
    """In the order of arrival, with the lengths of prompts and answers, and what prompts have shared."""
    file = written(tmp_path, (105.5, SYSTEM + "b" * 760, answered(30)), (100.0, SYSTEM + "a" * 1000, answered(20)))
    found = workload(str(file), 2, 0)
    assert [turn.at for turn in found.turns] == [0.0, 5.5]
    assert [turn.prompt_tokens for turn in found.turns] == [560, 500]
    assert [turn.answer.tokens for turn in found.turns] == [20, 30]
    assert found.turns[0].prompt[:4] == found.turns[1].prompt[:4]
    assert found.turns[0].prompt[4] != found.turns[1].prompt[4]
    assert found.texts.ideal_hit_ratio() == 256 / 1060


def test_an_answer_of_unknown_length_is_as_long_as_the_usual_one(tmp_path):
    """But never longer than was allowed."""
    requests = [(float(number), "x" * 400, answered(tokens)) for number, tokens in enumerate((10, 40, 70, None))]
    turns = recorded.load(written(tmp_path, *requests)).turns
    assert [turn.answer.tokens for turn in turns] == [10, 40, 70, 40]


def recording(folder, shape, rate, share_known, *, speed=1.0):
    """A replay on two engines, and the log of it; every so-many-th answer's length is known."""
    made = generate(shape, 2, 1)
    requests = simulate(Policy.of("default"), made, Engines(2, speeds=(speed,)), rate, 1).requests
    rows = [
        (
            float(requests.arrived[number]),
            text(turn.prompt).decode(),
            {
                "outcome": Outcome(
                    status=200,
                    duration=float(requests.ended[number] - requests.arrived[number]),
                    served_by=f"10.0.0.{requests.endpoint[number] + 1}:8000",
                    usage=Usage(completion_tokens=turn.answer.tokens if number % share_known == 0 else None),
                )
            },
        )
        for number, turn in enumerate(made.turns)
    ]
    return requests, written(folder, *rows)


def test_without_usage_a_replay_takes_as_long_as_was_recorded(tmp_path):
    """The durations tell the lengths, by the speed of the engines that make them again."""
    requests, log = recording(tmp_path, "chat:requests=60,sessions=40", 14.0, 10**9)
    found = recorded.load(log)
    true = requests.answer_tokens[1:].mean()
    assert sum(turn.answer.tokens for turn in found.turns) / len(found) == pytest.approx(true, rel=0.1)
    again = simulate(Policy.of("default"), found, Engines(2), found.rate, 1).requests
    for share in (0.5, 0.9):
        assert np.quantile(again.e2e, share) == pytest.approx(np.quantile(requests.e2e, share), rel=0.1)
    (remark,) = found.remarks
    assert "no usage for 119 of its 120 answers, their lengths are estimated: 119 by their durations" in remark


def test_lengths_that_are_known_tell_those_that_are_not(tmp_path):
    """Engines half as fast as the replay's make no answer half as long."""
    requests, log = recording(tmp_path, "chat:requests=60,sessions=40", 5.0, 8, speed=0.5)
    found = recorded.load(log)
    mean = sum(turn.answer.tokens for turn in found.turns) / len(found)
    assert mean == pytest.approx(requests.answer_tokens.mean(), rel=0.15)
    assert "105 by their durations, and the durations and lengths of 15 that are known" in found.remarks[0]
    order = np.argsort(requests.arrived, kind="stable")
    assert found.turns[0].answer.tokens == requests.answer_tokens[order][0]


def test_a_stream_that_was_seen_counts_from_its_first_byte(tmp_path):
    """What came before, such as a queue, makes no tokens; nor does an answer get longer than was allowed."""
    seen = Outcome(status=200, streaming=True, first_byte=60.0, duration=62.0)
    queued = Outcome(status=200, duration=62.0)
    turns = recorded.load(written(tmp_path, (0.0, "x" * 400, {"outcome": seen}))).turns
    assert turns[0].answer.tokens == pytest.approx(2.0 / 0.0065, rel=0.02)
    for max_tokens, tokens in ((None, pytest.approx(62.0 / 0.0065, rel=0.02)), (100, 100)):
        file = written(
            tmp_path, (0.0, "x" * 400, {"outcome": queued}), name=f"queued-{max_tokens}", max_tokens=max_tokens
        )
        assert recorded.load(file).turns[0].answer.tokens == tokens


def test_what_was_estimated_or_lost_is_said(tmp_path, capsys):
    """On the error output, below the table and on the page."""
    first, second = ((float(number), f"{number}" * 4000, {}) for number in range(2))
    log = written(tmp_path, first)
    log.rename(tmp_path / "decisions.log.1")
    older = written(tmp_path, second, name="older").read_bytes()
    (tmp_path / "decisions.log.2").write_bytes(older + b"\x05")
    log.write_bytes(b"")
    out = tmp_path / "report"
    given = [str(log), "--capacity=own", "--load=1", "--engines=1", "--no-plots", "--jobs=1", f"--out={out}"]
    assert main(given) == 0
    shown, errors = capsys.readouterr()
    lost = "decisions.log.2: at byte"
    estimated = "no usage for 2 of its 2 answers, their lengths are estimated: 2 as 256 tokens, for want of any better"
    for text_ in (" ".join(shown.split()), errors, (out / "index.html").read_text()):
        assert lost in text_
        assert estimated in text_


def test_requests_that_no_policy_could_serve_are_left_out(tmp_path):
    """What was refused for the state of the pool comes again."""
    refused = [
        (1.0, "x" * 400, {"decision": None, "error": error}) for error in (BadRequest("no"), ResourceExhausted("full"))
    ]
    turns = recorded.load(written(tmp_path, (0.0, "x" * 800, {}), *refused)).turns
    assert [turn.prompt_tokens for turn in turns] == [200, 100]


def test_a_log_without_prompts_is_refused(tmp_path):
    file = written(tmp_path, (0.0, "", {}))
    with pytest.raises(ConfigError, match="no requests with prompts"):
        recorded.load(file)


def test_what_is_no_log_is_told_apart(tmp_path):
    (tmp_path / "trace").write_text("{}")
    assert not recorded.is_log(tmp_path / "trace")
    assert not recorded.is_log(tmp_path / "nowhere")
    assert recorded.is_log(written(tmp_path, (0.0, "x" * 400, {})))
