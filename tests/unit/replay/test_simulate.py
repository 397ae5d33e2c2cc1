"""Replays: the real path and plugins against simulated engines, in virtual time."""

from dataclasses import replace

import numpy as np
import pytest

from epp.errors import ConfigError
from epp.replay import Engines, Piece, Policy, Requests, Result, Turn, View, Workload, generate, mean_row, row, simulate
from epp.replay.result import FIGURES, PLACE, Gaps

TINY = Engines(4, "tiny")
SMALL = "shared-prompts:groups=4,shared=800,own=100,answer=30,rate=20"


def policy(*plugins: str, name: str = "test", origin: object = "test", more: str = "") -> Policy:
    """A configuration of plugins, all of them in one profile with the weight 1."""
    types = "".join(f"- type: {plugin}\n" for plugin in plugins)
    refs = "".join(f"  - {{pluginRef: {plugin.split('/')[-1].removesuffix('.py')}, weight: 1}}\n" for plugin in plugins)
    head = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
    text = f"{head}plugins:\n{types}{more}schedulingProfiles:\n- name: default\n  plugins:\n{refs}"
    return Policy(name, text, origin)


LEAST = policy("active-request-scorer")
PREFIX = policy("prefix-cache-scorer", "active-request-scorer", name="prefix")
RANDOM = policy("random-picker", name="random")


def turns(*entries: tuple[float, int, int]) -> Workload:
    """Requests without anything in common: seconds, tokens of prompt and answer."""
    return Workload("w", tuple(Turn(at, (Piece(i, p),), Piece(1000 + i, a)) for i, (at, p, a) in enumerate(entries)))


def same(one: Result, other: Result) -> bool:
    fields = ("arrived", "endpoint", "admitted", "first_token", "ended", "cached_tokens")
    return all(np.array_equal(getattr(one.requests, f), getattr(other.requests, f)) for f in fields)


def test_one_request_takes_the_time_that_its_steps_cost():
    """By the engine's cost: a prefill of 100 tokens, then 9 steps that read 100 to 108 tokens."""
    engines = replace(TINY, jitter=0.0)
    cost = engines.config(0).cost
    requests = simulate(LEAST, turns((0, 100, 10)), engines, 1.0).requests
    first = cost.seconds(100, 0, 0)
    assert requests.first_token[0] == pytest.approx(first)
    assert requests.ended[0] == pytest.approx(first + sum(cost.seconds(0, 1, 100 + step) for step in range(9)))
    assert (requests.cached_tokens[0], requests.answer_tokens[0]) == (0, 10)


@pytest.mark.parametrize(
    "shape", [SMALL, "chat:requests=40,sessions=10,system=300,most=4000", "bursts:size=8,bursts=2"]
)
def test_every_request_is_served_in_the_order_of_its_life(shape):
    workload = generate(shape, 4, 1)
    result = simulate(PREFIX, workload, TINY, workload.rate)
    requests = result.requests
    assert result.refused == 0
    assert result.assigned.sum() == len(workload)
    assert (requests.arrived <= requests.admitted).all()
    assert (requests.admitted < requests.first_token).all()
    assert (requests.first_token <= requests.ended).all()
    assert requests.answer_tokens.tolist() == [turn.answer.tokens for turn in workload.turns]
    gaps = sum(turn.answer.tokens - 1 for turn in workload.turns)
    assert gaps - result.preemptions <= result.gaps.tokens.sum() <= gaps


def test_equal_seeds_give_equal_results():
    """To the last bit; another seed gives another one."""
    workload = generate(SMALL, 4, 1)
    first, again, other = (simulate(PREFIX, workload, TINY, 20.0, seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)
    assert row(first, 0.5) == row(again, 0.5)


def test_affinity_finds_the_prefix_where_chance_does_not():
    """The engines' own caches say what was found, not the picker's index."""
    workload, engines = generate(SMALL, 4, 1), replace(TINY, count=8)
    affine, chance = (simulate(each, workload, engines, 20.0).requests.hit_ratio for each in (PREFIX, RANDOM))
    assert chance + 0.2 < affine <= workload.texts.ideal_hit_ratio()


def test_the_next_turn_finds_the_answer_in_the_cache():
    """All of the conversation but its last, unfinished block."""
    asked, answered = Piece(1, 512), Piece(2, 128)
    talk = Workload("w", (Turn(0, (asked,), answered), Turn(1, (asked, answered, Piece(3, 64)), Piece(4, 8), 0)))
    requests = simulate(PREFIX, talk, TINY, talk.rate).requests
    assert requests.endpoint[0] == requests.endpoint[1]
    assert 512 + 128 - 16 <= requests.cached_tokens[1] <= 512 + 128


def test_a_turn_waits_for_the_answer_that_it_follows():
    """It comes at its time if the answer is there by then, or else the moment that it ends."""
    workload = Workload(
        "w",
        (
            Turn(0.0, (Piece(1, 100),), Piece(2, 500)),
            Turn(0.1, (Piece(1, 100), Piece(2, 500)), Piece(3, 2), follows=0),
            Turn(50.0, (Piece(5, 100),), Piece(6, 2), follows=1),
        ),
    )
    requests = simulate(LEAST, workload, TINY, workload.rate).requests
    assert requests.arrived[1] == requests.ended[0] > 0.1
    assert requests.arrived[2] == 50.0


def test_times_are_scaled_to_the_rate():
    workload = turns((0, 100, 2), (10, 100, 2), (40, 100, 2))
    assert simulate(LEAST, workload, TINY, workload.rate * 4).requests.arrived.tolist() == [0.0, 2.5, 10.0]


def test_the_picker_knows_the_engines_by_scrapes_alone():
    """A queue that has formed since the last scrape is not seen; nor is any without scrapes."""
    busy = turns(*[(0.0, 2000, 400)] * 40, *[(1.0 + 0.2 * step, 16, 2) for step in range(20)])
    queues = policy("queue-scorer", "running-requests-size-scorer")
    often = simulate(queues, busy, TINY, busy.rate)
    assert len(set(often.requests.endpoint[40:].tolist())) > 1
    herd = simulate(queues, busy, TINY, busy.rate, view=View(scrape=replace(View().scrape, interval=100.0)))
    spread = [np.bincount(result.requests.endpoint[:40], minlength=4).max() for result in (often, herd)]
    assert spread[0] <= spread[1]
    blind = simulate(queues, busy, TINY, busy.rate, view=View(scrapes=False))
    assert blind.assigned.sum() == len(busy)


@pytest.mark.parametrize(
    ("responses", "heard"), [("bodies", "headers first done"), ("headers", "headers done"), ("none", "done")]
)
def test_the_picker_sees_as_much_of_responses_as_it_is_shown(tmp_path, responses, heard):
    """With bodies the usage, too; what was charged is released at the end in any case."""
    (tmp_path / "listening.py").write_text(
        "from pathlib import Path\n\n\nclass Listening:\n"
        f"    file = Path({str(tmp_path / 'heard')!r})\n\n"
        "    def note(self, text):\n"
        "        with self.file.open('a') as out:\n            out.write(text + ' ')\n\n"
        "    def score(self, request, c):\n        return c.fresh * 1.0\n\n"
        "    def response_headers(self, request, decision, served):\n"
        "        self.note('headers')\n        return {}\n\n"
        "    def first_byte(self, request, decision, now):\n        self.note('first')\n\n"
        "    def done(self, request, decision, outcome, now):\n"
        "        self.note('done')\n        self.note(str(outcome.usage.completion_tokens))\n"
    )
    listening = policy("./listening.py", origin=tmp_path / "config.yaml")
    simulate(listening, turns((0, 100, 7)), TINY, 1.0, view=View(responses=responses))
    assert (tmp_path / "heard").read_text() == f"{heard} {7 if responses == 'bodies' else None} "


def test_engines_of_unequal_speed():
    """The slow one takes twice the time; a policy that looks at what is in flight gives it less."""
    engines = replace(TINY, count=2, speeds=(1.0, 0.5), jitter=0.0)
    alone = [simulate(LEAST, turns((0, 500, 20)), replace(engines, speeds=(s,)), 1.0).requests.e2e[0] for s in (1, 0.5)]
    assert alone[1] == pytest.approx(2 * alone[0])
    workload = turns(*[(0.02 * step, 500, 100) for step in range(200)])
    assigned = simulate(LEAST, workload, engines, workload.rate).assigned
    assert assigned[0] > 1.3 * assigned[1]


def test_a_burst_between_two_scrapes_is_spread():
    """200 at once over 20 engines: nobody has more than 1.3 times its share by their count in flight."""
    burst = generate("bursts:bursts=1,size=10,prompt=200,answer=20", 20, 0)
    assigned = simulate(LEAST, burst, replace(TINY, count=20), burst.rate).assigned
    assert assigned.sum() == 200
    assert assigned.max() <= 13


def test_refused_requests_are_counted_and_in_no_figure(tmp_path):
    """A filter that lets nobody through while anything runs: 429, and the reply of the next turn is not waited for."""
    (tmp_path / "nobody.py").write_text(
        "from epp.plugin import INFLIGHT_REQUESTS\n\n\nclass NobodyBusy:\n    load_based = True\n\n"
        "    def keep(self, request, c):\n        return c[INFLIGHT_REQUESTS] < 1\n"
    )
    strict = policy("./nobody.py", name="strict", origin=tmp_path / "config.yaml")
    strict = replace(strict, text=strict.text.replace("pluginRef: nobody", "pluginRef: nobody-busy"))
    result = simulate(strict, turns((0, 100, 50), (0.001, 100, 50), (30, 100, 50)), replace(TINY, count=1), 0.1)
    assert (result.refused, result.assigned.tolist()) == (1, [2])
    assert result.requests.endpoint.tolist() == [0, -1, 0]
    assert len(result.requests.ttft) == 2


def test_faults_of_plugins_are_told(tmp_path):
    """A plugin that raises is left out, as in life, and the result says so."""
    (tmp_path / "broken.py").write_text("class Broken:\n    def score(self, request, c):\n        raise ValueError\n")
    result = simulate(policy("./broken.py", origin=tmp_path / "config.yaml"), turns((0, 100, 5)), TINY, 1.0)
    assert result.faults == {"broken: raised": 1}


def test_custom_metrics_of_the_engine_are_read():
    """One that a scrape doesn't have at hand comes off the engine's whole page: whoever has answered more gets more."""
    text = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: metrics-data-source
- type: core-metrics-extractor
  parameters:
    engineConfigs:
    - name: vllm
      customMetrics:
      - {attributeKey: answered, metricSpec: "vllm:request_success_total{finished_reason=stop}"}
- type: endpoint-attribute-scorer
  parameters:
    attributeKey: answered
    algorithm: {type: linear_higher_is_better, normalization: {fixedRange: {min: 0, max: 100}}}
schedulingProfiles:
- name: default
  plugins: [{pluginRef: endpoint-attribute-scorer, weight: 1}]
dataLayer:
  injectDefaults: false
  sources:
  - {pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}
"""
    result = simulate(Policy("custom", text, "test"), turns(*[(step, 100, 5) for step in range(10)]), TINY, 1.0)
    assert sorted(result.assigned) == [0, 0, 0, 10]


@pytest.mark.parametrize(
    ("workload", "rate", "problem"),
    [
        (turns((0, 1_000_000, 1)), 1.0, "w has a request of 1000001 tokens, and the KV cache of tiny holds 16384"),
        (turns((0, 10, 1)), 0.0, "must be above 0"),
    ],
    ids=["too long", "no rate"],
)
def test_what_cannot_be_replayed_is_refused(workload, rate, problem):
    with pytest.raises(ConfigError, match=problem):
        simulate(LEAST, workload, TINY, rate)


@pytest.mark.parametrize(
    ("engines", "problem"),
    [
        ({"count": 0}, "0 engines"),
        ({"count": 1, "profile": "tinny"}, "no engine profile 'tinny': there are tiny"),
        ({"count": 1, "speeds": (1.0, 0.0)}, "speeds must be above 0"),
    ],
)
def test_engines_are_checked(engines, problem):
    with pytest.raises(ConfigError, match=problem):
        Engines(**engines)


@pytest.mark.parametrize(
    ("said", "name"),
    [("default", "default"), ("mine=default", "mine"), ("FILE", "some"), ("mine=FILE", "mine")],
)
def test_a_policy_is_a_configuration_with_a_name(said, name, tmp_path):
    (tmp_path / "some.yaml").write_text(LEAST.text)
    found = Policy.of(said.replace("FILE", str(tmp_path / "some.yaml")))
    assert found.name == name
    assert "EndpointPickerConfig" in found.text


def test_a_configuration_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: can't be read"):
        Policy.of(str(tmp_path / "nowhere.yaml"))


# --- figures


def result_of(**columns: list[float]) -> Result:
    requests = Requests.blank(len(columns["arrived"]))
    for name, values in columns.items():
        getattr(requests, name)[:] = values
    return Result("p", "w", 2, 1.0, 0, requests, Gaps(np.array([0.03, 0.01, 0.02]), np.array([1, 89, 10])))


def test_a_row_has_the_figures_of_those_that_came_after_the_warm_up():
    """By hand: ten requests, the first left out; the loads are of the whole."""
    found = result_of(
        arrived=[*range(10)],
        endpoint=[0, 1] * 5,
        first_token=[9, *(at + 0.1 for at in range(1, 10))],
        ended=[10, *(at + 1 for at in range(1, 10))],
        prompt_tokens=[100] * 10,
        cached_tokens=[0] + [50] * 9,
    )
    figures = row(found, 0.5)
    assert list(figures) == [*PLACE, *FIGURES]
    assert (figures["ttft_p50_ms"], figures["ttft_p99_ms"], figures["e2e_p90_ms"]) == (100.0, 100.0, 1000.0)
    assert (figures["itl_p90_ms"], figures["hit_ratio"]) == (20.0, 0.5)
    assert figures["max_over_mean_load"] == round(14 / 9.5, 4)
    assert row(found, 0.5, warm_up=0)["ttft_p99_ms"] == pytest.approx(8199.0)


def test_a_row_of_nothing_has_nulls():
    found = row(result_of(arrived=[0.0]), 1.0, warm_up=0)
    assert [found[name] for name in FIGURES] == [None, None, None, None, 20.0, None, None]


def test_seeds_make_one_row():
    rows = [{**dict.fromkeys(PLACE, "x"), **dict.fromkeys(FIGURES, value)} for value in (1.0, 2.0, 4.0)]
    assert mean_row(rows)["ttft_p90_ms"] == 2.3333
    assert mean_row([*rows, {**rows[0], "hit_ratio": None}])["hit_ratio"] is None
