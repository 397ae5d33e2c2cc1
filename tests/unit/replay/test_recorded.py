"""Decision logs as workloads, from real files of the real writer."""

from random import Random

import pytest

from epp.errors import BadRequest, ConfigError, ResourceExhausted
from epp.observe.decision_log import DecisionLog, LogOptions
from epp.observe.metrics import Metrics
from epp.observe.record import Record
from epp.plugin import Outcome, Usage
from epp.pool import Pool
from epp.replay import recorded
from epp.replay.sources import workload
from epp.testing import request
from tests.unit.observe.parts import record

SYSTEM = "You are a helpful assistant who answers in a sentence or two. " * 20  # 1,240 bytes: four blocks and a part


def written(folder, *requests):
    """A log of requests, each of: seconds, prompt, and what is to be changed in its record."""
    file = folder / "decisions.log"
    rows = Metrics(Pool(), "pool").families["llm_d_epp_decision_log_rows_total"]
    log = DecisionLog(LogOptions(file), rows, lambda *_: None, lambda: 1.0, Random(1))
    for wall, prompt, fields in requests:
        noted: Record = record(f"r-{wall}", **fields)
        noted.wall = wall
        log.see(noted, request(prompt))
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
