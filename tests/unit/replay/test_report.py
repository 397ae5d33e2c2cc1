"""`epp replay` as a command: the report's files, the same bytes every time, and what it says about mistakes."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from epp.cli.replay import main
from epp.errors import ConfigError
from epp.replay import Engines, Policy, View, capacity, generate, simulate
from epp.replay.capacity import PRECISION, WITHIN, estimate
from epp.replay.result import FIGURES, PLACE, WARM_UP, quantile, row
from epp.replay.runs import Source, figures, replay
from epp.replay.study import OWN_PACE, Plan, cases, run

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
RANDOM = (
    f"{HEAD}plugins: [{{type: random-picker}}]\nschedulingProfiles:\n"
    "- {name: a, plugins: [{pluginRef: random-picker}]}"
)
PREFIX = (
    f"{HEAD}plugins: [{{type: prefix-cache-scorer}}, {{type: active-request-scorer}}]\nschedulingProfiles:\n"
    "- {name: a, plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: active-request-scorer}]}"
)
SHAPE = "shared-prompts:groups=4,shared=600,own=60,answer=12"


@pytest.fixture
def configs(tmp_path: Path) -> list[str]:
    (tmp_path / "chance.yaml").write_text(RANDOM)
    (tmp_path / "prefix.yaml").write_text(PREFIX)
    return ["-c", str(tmp_path / "chance.yaml"), "-c", f"affine={tmp_path / 'prefix.yaml'}"]


def arguments(configs: list[str], out: Path, *more: str) -> list[str]:
    return [SHAPE, *configs, "--profile", "tiny", "--capacity", "30", "--seeds", "2", "--out", str(out), *more]


class Images(HTMLParser):
    """Finds what a page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.cells = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in {"src", "href"}]
        self.cells += tag == "td"


def test_a_report_has_rows_plots_and_one_page_that_needs_nothing_else(configs, tmp_path, capsys):
    """Each case once, with the keys of the routing benchmark; the table says the same."""
    assert main(arguments(configs, tmp_path / "out", "--jobs", "1", "--engines", "2,3", "--load", "0.5,1")) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [list(row) for row in rows] == [[*PLACE, *FIGURES]] * 8
    places = [tuple(row[key] for key in PLACE[1:]) for row in rows]
    assert places == [(n, load, policy) for n in (2, 3) for load in (0.5, 1.0) for policy in ("chance", "affine")]
    assert all(row["hit_ratio"] > 0 and row["ttft_p50_ms"] <= row["ttft_p90_ms"] <= row["ttft_p99_ms"] for row in rows)
    pictures = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert len(pictures) == 10
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    page = Images()
    page.feed((tmp_path / "out" / "index.html").read_text())
    assert [source[:22] for source in page.sources] == ["data:image/png;base64,"] * 10
    assert page.cells == 8 * 9
    shown = capsys.readouterr().out
    assert "2 engines (times in ms)" in shown
    assert re.search(r"1\s+affine\s", shown)
    assert "A load of 1 is 30 requests a second, as was said." in shown


def test_equal_seeds_give_equal_reports_to_the_byte(configs, tmp_path):
    """In other processes, with another hash seed, and however many processes take part."""
    made = []
    for number, jobs in ((1, "1"), (2, "2")):
        command = [sys.executable, "-m", "epp", "replay", *arguments(configs, tmp_path / str(number))]
        command += ["--jobs", jobs, "--engines", "2", "--load", "1"]
        environment = os.environ | {"PYTHONHASHSEED": str(number)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        made.append({file.name: file.read_bytes() for file in (tmp_path / str(number)).iterdir()})
        assert done.stderr == ""
    assert len(made[0]) == 7
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["nowhere"], "'nowhere' is no file, and no workload: there are shared-prompts"),
        (["chat", "-c", "nowhere.yaml"], "configuration nowhere.yaml: can't be read"),
        (["chat", "-c", "default", "-c", "default"], "two configurations are called default: name one with NAME=FILE"),
        (["chat:sessions=x"], "sessions=x: int is due"),
    ],
    ids=["workload", "configuration", "twice", "number"],
)
def test_mistakes_are_named(change, said, tmp_path, capsys):
    assert main([*change, "--no-plots", "--capacity", "1", "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--load", "abc"], "argument --load: 'abc' is no number: numbers above 0 are due, with commas between them"),
        (["--load", "0"], "0 is not above 0: numbers above 0 are due"),
        (["--speeds", "1,,2"], "'' is no number: numbers above 0 are due"),
        (["--engines", "8,x"], "argument --engines: 'x' is no whole number: whole numbers are due, with commas"),
        (["--engines", "0"], "0 is not at least 1"),
        (["--engines", "2,2"], "2,2 names one twice"),
        (["--capacity", "fast"], "'fast' is no number: requests a second are due, or 'own'"),
        (["--jitter", "much"], "argument --jitter: 'much' is no number"),
        (["--jitter", "1"], "1 is not from 0 to below 1"),
        (["--jobs", "1.5"], "argument --jobs: '1.5' is no whole number"),
        ([], "the following arguments are required: TRACE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused(flags, said, capsys):
    """It is said what is due."""
    with pytest.raises(SystemExit) as ended:
        main(["chat", *flags] if flags else [])
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert "usage: epp replay" in errors
    assert said in errors


def test_a_folder_that_cannot_be_written_is_named(configs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status = main(
        [SHAPE, *configs, "--profile", "tiny", "--capacity", "30", "--no-plots", "--out", str(tmp_path / "file")]
    )
    assert status == 1
    assert "--out" in capsys.readouterr().err


def test_the_workloads_are_listed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--list"])
    assert ended.value.code == 0
    assert "unshared:requests=" in capsys.readouterr().out


# --- studies


def plan(**changes: object) -> Plan:
    given: dict[str, object] = {
        "sources": (Source(SHAPE),),
        "engines": (Engines(2, "tiny"),),
        "policies": (Policy("affine", PREFIX, "test"),),
        "loads": (1.0,),
        "seeds": (0,),
        "view": View(),
    }
    return Plan(**(given | changes))  # type: ignore[arg-type]


def test_a_load_of_the_own_pace_is_as_it_was():
    """What a decision log is replayed at, to see what another configuration would have made of the day."""
    report = run(plan(capacity=OWN_PACE, loads=(1.0, 2.0)), 1)
    own = generate(SHAPE, 2, 0)
    assert report.panels[0].rate == own.rate
    arrived = report.panels[0].results[2.0]["affine"][0].requests.arrived
    assert arrived.tolist() == [turn.at / 2 for turn in own.turns]


def test_the_capacity_is_the_most_that_the_best_policy_can_take():
    """At that rate its TTFT p90 is within five times the unloaded one, and a little above it is not."""
    policies = [Policy("chance", RANDOM, "test"), Policy("affine", PREFIX, "test")]
    engines, workload = (
        Engines(2, "tiny", jitter=0.0),
        generate("shared-prompts:groups=30,shared=600,own=60,answer=12", 2, 0),
    )
    asked = []
    found = capacity(policies, workload, engines, told=asked.append)
    assert found.policy == "affine"
    assert set(asked) == {len(workload)}
    limit = WITHIN * found.unloaded

    def ttft(policy: Policy, rate: float) -> float:
        return quantile(simulate(policy, workload, engines, rate).requests.since(WARM_UP).ttft, 0.9)

    assert ttft(policies[1], found.rate) <= limit < ttft(policies[1], found.rate * (1 + PRECISION))
    assert ttft(policies[0], found.rate) > limit
    assert 0.1 < found.rate / estimate(workload, engines) < 10


def test_a_capacity_that_is_not_there_is_said():
    """Two conversations at a time never fill an engine, however fast they are played."""
    alone = generate("chat:requests=20,sessions=1,system=50,think=0.1", 1, 0)
    with pytest.raises(ConfigError, match="say it with --capacity"):
        capacity([Policy("affine", PREFIX, "test")], alone, Engines(1, "tiny"))


def test_what_should_be_known_is_remarked(tmp_path):
    """Plugins at fault, requests refused, what the loader has warned of."""
    (tmp_path / "broken.py").write_text("class Broken:\n    def score(self, request, c):\n        raise ValueError\n")
    text = PREFIX.replace("prefix-cache-scorer}, {type", "./broken.py}, {type").replace("prefix-cache-scorer", "broken")
    broken = Policy("broken", text, tmp_path / "config.yaml")
    remarks = run(plan(policies=(broken,), capacity=20.0), 1).remarks
    assert remarks == ["broken: the plugin broken: raised, 40 times: it was left out there."]


def test_rows_can_be_had_without_what_they_come_from():
    """The same as from the results, in the order of the cases."""
    todo = cases(plan(capacity=20.0, loads=(0.5, 1.0), seeds=(0, 1)), [])
    assert figures(todo, 1) == [row(result, case.load) for case, result in zip(todo, replay(todo, 1), strict=True)]
