"""The contract's checks find what is wrong with a plugin, and say so."""

from pathlib import Path

import pytest

from epp.cli import plugin_test
from epp.contract import Broken, cases, check

ROOT = Path(__file__).parents[2]
HEAD = """
import numpy as np
from epp.plugin import WAITING, BadRequest, Body, Candidates, Key, Request, Usage, request_key

KEY = request_key("column", "mine")

class Mine:
    \"\"\"A plugin.\"\"\"
"""
SCORE = HEAD + "    def score(self, request, c):\n        "
KEEP = HEAD + "    def keep(self, request, c):\n        "
PICK = HEAD + "    def pick(self, request, c, totals):\n        "
PRODUCE = HEAD + "    writes = (KEY,)\n    def produce(self, request, c):\n        "
PARSE = (
    HEAD
    + """    paths = ("x",)
    def response(self, *, streaming):
        return None
    def parse(self, path, headers, body):
        """
)
BROKEN = {
    "score: nothing": (SCORE + "np.ones(len(c))", "nothing was returned where scores are due"),
    "score: shape": (SCORE + "return np.ones(len(c) + 1)", r"scores of shape \(\d,\) are due, not"),
    "score: type": (SCORE + "return np.ones(len(c), dtype=int)", "scores of type float64 are due, not int64"),
    "score: range": (SCORE + "return np.nan_to_num(c[WAITING])", r"scores outside of \[0, 1\]"),
    "score: NaN": (SCORE + "return np.full(len(c), np.nan)", "where nothing is missing"),
    "score: missing wins": (
        SCORE + "return 1.0 / (1.0 + np.nan_to_num(c[WAITING]))",
        "an endpoint that lacks a metric, or is stale, gets 1, those that have all at most",
    ),
    "score: stale wins": (
        SCORE + "return (~c.fresh).astype(float)",
        "an endpoint that lacks a metric, or is stale, gets 1, those that have all at most 0",
    ),
    "score: a long prompt": (
        SCORE + "return np.full(len(c), sum(map(len, request.body.prompts)) / 5000 > 1) / 1.0 + 0.5",
        r"scores outside of \[0, 1\]: \[1.5",
    ),
    "score: sleeps": (
        SCORE + "import time; time.sleep(0.01); return np.ones(len(c))",
        "more than its budget of 5000 us: it would be left out",
    ),
    "score: order": (SCORE + "return np.linspace(0, 1, len(c))", "and in the order"),
    "score: state": (
        SCORE + "self.n = getattr(self, 'n', 0) + 1; return np.full(len(c), 1 / self.n)",
        "first .*, then",
    ),
    "score: raises": (SCORE + "return 1 / 0", r"it raises ZeroDivisionError: .*mine.py, line \d+: return 1"),
    "keep: type": (KEEP + "return np.ones(len(c))", "a mask's values of type bool are due, not float64"),
    "keep: order": (KEEP + "return np.arange(len(c)) > 0", "and in the order"),
    "pick: twice": (PICK + "return [0, 0]", "an endpoint was picked twice"),
    "pick: nobody": (PICK + "return []", "nobody was picked"),
    "pick: out of range": (PICK + "return [len(c)]", "are no indices of"),
    "pick: changes totals": (PICK + "totals[0] = 9; return [0]", "it raises ValueError: assignment destination"),
    "produce: other key": (PRODUCE + "return {}", r"are in `writes`, and were not written"),
    "produce: shape": (PRODUCE + "return {KEY: [1.0] * 9}", "values are due for"),
    "parse: raises": (PARSE + "return Body(model=body.decode('ascii'))", "it raises UnicodeDecodeError"),
    "parse: type": (PARSE + "return {}", "a Body or BadRequest is due"),
    "deny: type": (HEAD + "    def deny(self, request, c): return True", "a text or None is due, not True"),
    "attributes: type": (HEAD + "    def attributes(self, headers): return {'a': 1}", "that are texts are due"),
    "observe: headers": (
        HEAD + "    def response_headers(self, request, decision, served): return {'a': 1}",
        "that are texts are due",
    ),
    "no plugin": ("x = 1", "unless there is exactly one"),
    "syntax": ("def", "SyntaxError"),
}


@pytest.mark.parametrize(("text", "message"), [pytest.param(*case, id=name) for name, case in BROKEN.items()])
def test_broken(tmp_path, text, message):
    """Each mistake is found, and told with the case that shows it."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    report = check(str(file), count=100)
    assert report.broken
    with pytest.raises(Broken, match=message):
        report.raise_if_broken()


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        pytest.param(SCORE + "return np.array([sum(range(200)) * 0.0 for _ in c.endpoints])", "is slow", id="slow"),
        pytest.param(SCORE.replace('    """A plugin."""\n', "") + "return np.ones(len(c))", "no docstring", id="bare"),
    ],
)
def test_remarks(tmp_path, text, remark):
    """What is no mistake is a remark, and the contract is kept."""
    file = tmp_path / "mine.py"
    file.write_text(text)
    report = check(str(file), count=5)
    assert not report.broken
    assert [result for result in report.results if result.remark and remark in result.detail]


def test_a_decider_reads_what_its_producer_writes(tmp_path):
    """The producers of what it reads run before it, as they do for a handler that asks for it."""
    reading = "matched_tokens()"
    text = (
        HEAD.replace("import WAITING,", "import WAITING, matched_tokens,")
        + f"""
    reads = ({reading},)
    def disaggregate(self, request, pick, c):
        return bool((c[{reading}] >= 0).all())
"""
    )
    (tmp_path / "mine.py").write_text(text)
    check(str(tmp_path / "mine.py"), count=20).raise_if_broken()


def test_parameters(tmp_path):
    """A plugin is checked with the parameters of its example, or with those that are given."""
    example = str(ROOT / "config/examples/least_tokens.py")
    assert not check(example, count=5).broken
    assert not check(example, {"idleTokens": 5}, count=5).broken
    (loads,) = check(example, {"idle": 5}, count=5).results
    assert "unknown" in loads.detail
    assert loads.broken


def test_cases():
    """The same seed gives the same cases; engines leave things out, and everything that they report occurs."""
    assert [str(case) for case in cases(20)] == [str(case) for case in cases(20)]
    assert [str(case) for case in cases(20)] != [str(case) for case in cases(20, seed=1)]
    several = list(cases(300))
    assert {len(case.candidates) for case in several} == set(range(1, 9))
    assert any(case.candidates.all_fresh for case in several)
    assert any(not case.candidates.fresh.any() for case in several)
    assert all(sorted(case.order) == list(range(len(case.candidates))) for case in several)


def test_a_file_with_two_plugins(tmp_path, capsys, monkeypatch):
    """Both are checked, and one that is broken counts."""
    good = "class Good:\n    def keep(self, request, c):\n        return c.fresh\n"
    bad = "class Bad:\n    def keep(self, request, c):\n        return None\n"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.py").write_text(good + bad)
    assert plugin_test.main(["two.py", "--cases", "5"]) == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("two.py")] == [
        "two.py:Good: Good (filter)",
        "two.py:Bad: Bad (filter)",
    ]
    assert plugin_test.main(["two.py:Good", "--cases", "5"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(["queue-scorer"], 0, "the contract is kept", id="a type"),
        pytest.param(["no-such-scorer"], 1, '"no-such-scorer" is no known type', id="no type"),
        pytest.param(["./nobody.py"], 1, "there is no file", id="no file"),
        pytest.param(["queue-scorer", "--parameters", '{"a": 1}'], 1, "BROKEN", id="bad parameters"),
    ],
)
def test_command(capsys, arguments, status, said):
    """`epp plugins test` prints the report, and its status tells what came of it."""
    assert plugin_test.main([*arguments, "--cases", "5"]) == status
    assert said in capsys.readouterr().out
