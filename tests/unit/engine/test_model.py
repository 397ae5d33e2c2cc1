"""The scheduler model: batching, chunked prefill, prefix cache, preemption, and what a step costs."""

from array import array
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.engine.blocks import BlockStored, parts
from epp.engine.model import Model, ModelConfig, Request, StepResult
from epp.engine.profiles import PROFILES, StepCost, table
from epp.engine.text import Text

COST = StepCost(base=1.0, prefill_token=0.01, decode_sequence=0.1, kv_token=0.001)
CONFIG = ModelConfig(COST, num_blocks=16, block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64)


def request(
    name: str, prompt: str = "abcdefgh", output: int = 2, lora: str | None = None, cache_salt: str | None = None
) -> Request:
    """A request whose prompt's characters are tokens."""
    return asking(name, array("I", map(ord, prompt)), output, lora, cache_salt)


def asking(
    name: str, prompt: "array[int]", output: int, lora: str | None = None, cache_salt: str | None = None
) -> Request:
    """A request with these tokens as its prompt."""
    text = Text(prompt, CONFIG.block_size, output, lora=lora, cache_salt=cache_salt)
    return Request(name, len(prompt), output, text, lora=lora)


def answer_of(one: Request) -> "array[int]":
    """The tokens of the answer."""
    assert isinstance(one.contents, Text)
    return one.contents.answer(0, one.output_tokens)


def run(model: Model, *requests: Request, steps: int = 200) -> list[StepResult]:
    """Adds the requests and steps until the model is empty."""
    for one in requests:
        model.add(one, 0.0)
    results: list[StepResult] = []
    while len(model):
        assert len(results) < steps, f"no end in sight: {model!r}"
        results.append(step(model, float(len(results))))
    return results


def tokens_of(results: list[StepResult]) -> Counter[str]:
    """How many tokens each request got."""
    tokens: Counter[str] = Counter()
    for result in results:
        for sequence in result.produced:
            tokens[sequence.request.request_id] += result.steps
    return tokens


def admissions(results: list[StepResult]) -> dict[str, int]:
    """How much of its prompt each request found in the cache."""
    return {s.request.request_id: s.cached_tokens for result in results for s in result.batch.admissions}


def ended(results: list[StepResult]) -> list[tuple[str, str | None]]:
    """Who ended, and why, in order."""
    return [(s.request.request_id, s.finish_reason) for result in results for s in result.finished]


def step(model: Model, now: float = 0.0) -> StepResult:
    """Both halves of a step, which ends when its batch says."""
    batch = model.schedule(now)
    return model.update(batch, now + batch.duration)


@pytest.mark.parametrize(
    ("prompt", "output", "batches"),
    [
        pytest.param(8, 1, [(8, 0, 0)], id="prefill gives the first token"),
        pytest.param(8, 3, [(8, 0, 0), (0, 1, 8), (0, 1, 9)], id="then one a step"),
        pytest.param(40, 1, [(16, 0, 0), (16, 0, 16), (8, 0, 32)], id="a long prompt is prefilled in chunks"),
        pytest.param(8, 0, [(8, 0, 0)], id="an embedding ends with its prefill"),
    ],
)
def test_one_request(prompt: int, output: int, batches: list[tuple[int, int, int]]) -> None:
    results = run(Model(CONFIG), request("a", "x" * prompt, output))
    assert [(r.batch.prefill_tokens, r.batch.decode_sequences, r.batch.kv_tokens) for r in results] == batches
    assert [r.batch.duration for r in results] == [pytest.approx(COST.seconds(*batch)) for batch in batches]
    assert tokens_of(results)["a"] == output
    assert ended(results) == [("a", "length")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"time_factor": 3.0}, 3 * COST.seconds(8, 0, 0), id="time factor"),
        pytest.param({"jitter": 100.0}, 1.7 * COST.seconds(8, 0, 0), id="jitter is bounded"),
    ],
)
def test_duration_is_scaled(changes: dict[str, float], expected: float) -> None:
    class Up(Random):
        def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
            return mu + sigma

    (result,) = run(Model(replace(CONFIG, **changes), Up()), request("a", output=1))  # type: ignore[arg-type]
    assert result.batch.duration == pytest.approx(expected)


def test_jitter_comes_from_the_seed() -> None:
    config = replace(CONFIG, jitter=0.2)
    runs = [[r.batch.duration for r in run(Model(config, Random(seed)), request("a", output=9))] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_decode_and_prefill_share_a_step() -> None:
    """A running request keeps its token a step while another one's prompt takes the rest of the budget."""
    model = Model(CONFIG)
    run_first = request("a", output=4)
    model.add(run_first, 0.0)
    step(model)
    model.add(request("b", "x" * 32, 1), 0.0)
    batch = model.schedule(1.0)
    assert (batch.prefill_tokens, batch.decode_sequences) == (15, 1)


def test_at_most_max_num_seqs_run_and_the_others_wait_in_order() -> None:
    model = Model(replace(CONFIG, max_num_seqs=2))
    for name in "abcd":
        model.add(request(name, name * 4, 3), 0.0)
    step(model)
    assert [s.request.request_id for s in model.running] == ["a", "b"]
    assert [s.request.request_id for s in model.waiting] == ["c", "d"]


def test_queue_time_is_the_time_until_admission() -> None:
    model = Model(replace(CONFIG, max_num_seqs=1))
    model.add(request("a", output=1), 10.0)
    model.add(request("b", output=1), 10.5)
    waited = {
        s.request.request_id: s.admitted - s.arrived for now in (11.0, 12.0) for s in step(model, now).batch.admissions
    }
    assert waited == {"a": 1.0, "b": 1.5}


def test_state_changes_only_when_the_step_is_over() -> None:
    """While a step computes, its requests count as running and their blocks as used, as on a real engine's page."""
    model = Model(CONFIG)
    model.add(request("a", output=1), 0.0)
    batch = model.schedule(0.0)
    assert (len(model.running), model.pool.used) == (1, 2)
    model.update(batch, 1.0)
    assert (len(model.running), model.pool.used) == (0, 0)


@pytest.mark.parametrize(
    ("first", "second", "cached"),
    [
        pytest.param("abcdefghijkl", "abcdefghijkl", 8, id="never the whole prompt"),
        pytest.param("abcdefghijkl", "abcdefghijklm", 12, id="all of it if something follows"),
        pytest.param("abcdefghijkl", "abcdefXhijkl", 4, id="up to the first block that differs"),
        pytest.param("abcdefg", "abcdefgh", 4, id="full blocks only"),
        pytest.param("abcdefgh", "Xbcdefgh", 0, id="nothing after a differing head"),
    ],
)
def test_prefix_cache(first: str, second: str, cached: int) -> None:
    model = Model(CONFIG)
    run(model, request("a", first, 1))
    results = run(model, request("b", second, 1))
    assert admissions(results) == {"b": cached}
    assert results[0].batch.prefill_tokens == len(second) - cached


def test_adapters_and_salts_do_not_share_blocks() -> None:
    model = Model(CONFIG)
    run(model, request("a", "abcdefghijkl"))
    for name, options in (("b", {"lora": "x"}), ("c", {"cache_salt": "s"})):
        assert admissions(run(model, request(name, "abcdefghijkl", **options))) == {name: 0}
    assert admissions(run(model, request("d", "abcdefghijkl", lora="x"))) == {"d": 8}


def test_twins_of_one_step_share_the_blocks_that_it_computes() -> None:
    """vLLM enters blocks into the cache when the step that fills them is scheduled."""
    model = Model(replace(CONFIG, max_num_batched_tokens=64))
    results = run(model, request("a", "abcdefghi", 1), request("b", "abcdefghi", 1))
    assert admissions(results) == {"a": 0, "b": 8}
    assert results[0].batch.prefill_tokens == 9 + 1


def test_a_late_twin_hits_the_chunks_computed_so_far() -> None:
    model = Model(replace(CONFIG, max_num_batched_tokens=20))
    model.add(request("a", "abcd" * 8, 1), 0.0)
    step(model)
    model.add(request("b", "abcd" * 8, 1), 1.0)
    assert [s.cached_tokens for s in step(model, 1.0).batch.admissions] == [28]


def test_generated_blocks_are_cached_for_the_next_turn() -> None:
    model = Model(CONFIG)
    first = request("a", "abcdefgh", 9)
    run(model, first)
    turn = asking("b", array("I", [*map(ord, "abcdefgh"), *answer_of(first), 1]), 1)
    assert admissions(run(model, turn)) == {"b": 16}


def test_the_last_token_of_an_answer_is_never_computed() -> None:
    """Its KV would be needed only by a next token, so the block that it would fill isn't cached."""
    model = Model(CONFIG)
    first = request("a", "abcdefgh", 4)
    run(model, first)
    turn = asking("b", array("I", [*map(ord, "abcdefgh"), *answer_of(first), 1]), 1)
    assert admissions(run(model, turn)) == {"b": 8}


def test_when_blocks_run_out_the_last_admitted_recomputes() -> None:
    model = Model(replace(CONFIG, num_blocks=8, max_model_len=32, max_num_batched_tokens=32))
    results = run(model, request("a", "a" * 12, 12), request("b", "b" * 12, 12))
    assert tokens_of(results) == {"a": 12, "b": 12}
    assert [s.request.request_id for result in results for s in result.batch.preempted] == ["b"]
    assert [name for name, _ in ended(results)] == ["a", "b"]
    assert [s.preemptions for result in results for s in result.finished] == [0, 1]
    assert len([a for result in results for a in result.batch.admissions]) == 2, "admitted once, as vLLM counts"


def test_a_prompt_waits_until_all_of_it_has_room() -> None:
    model = Model(replace(CONFIG, num_blocks=8, max_model_len=32))
    model.add(request("a", "a" * 16, 8), 0.0)
    model.add(request("b", "b" * 20, 1), 0.0)
    step(model)
    assert [s.request.request_id for s in model.waiting] == ["b"]
    assert tokens_of(run(model))["b"] == 1


@pytest.mark.parametrize("when", ["waiting", "running", "computing", "gone"])
def test_abort(when: str) -> None:
    model = Model(CONFIG)
    model.add(request("a", output=9), 0.0)
    model.add(request("b", "b" * 8, 9), 0.0)
    batch = model.schedule(0.0) if when == "computing" else None
    if when in {"running", "gone"}:
        step(model)
    if when == "gone":
        assert model.abort("a")
    assert (model.abort("a") is not None) is (when != "gone")
    if batch:
        assert [s.request.request_id for s in model.update(batch, 1.0).produced] == ["b"]
    assert tokens_of(run(model))["a"] == 0
    assert model.pool.used == 0


def test_an_id_may_come_again_while_the_aborted_one_is_still_computed() -> None:
    model = Model(CONFIG)
    model.add(request("a"), 0.0)
    batch = model.schedule(0.0)
    model.abort("a")
    model.add(request("a"), 0.0)
    assert model.update(batch, 1.0).produced == ()
    assert tokens_of(run(model)) == {"a": 2}


def test_adapters_beyond_the_limit_are_passed_over() -> None:
    model = Model(replace(CONFIG, max_loras=1))
    for name, lora in (("a", "x"), ("b", "y"), ("c", "x"), ("d", None)):
        model.add(request(name, name * 4, 2, lora=lora), 0.0)
    step(model)
    assert [s.request.request_id for s in model.running] == ["a", "c", "d"]
    assert model.deferred == 1
    assert tokens_of(run(model))["b"] == 2


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param(request("a", "x" * 60, 5), "65 tokens", id="longer than the context"),
        pytest.param(request("a", "", 5), "5 tokens", id="no prompt"),
        pytest.param(request("used"), "in use", id="id in use"),
    ],
)
def test_add_refuses(bad: Request, words: str) -> None:
    model = Model(CONFIG)
    model.add(request("used"), 0.0)
    with pytest.raises(ValueError, match=words):
        model.add(bad, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"num_blocks": 2}, "64 needs more than the 8 tokens", id="context larger than the cache"),
        pytest.param({"max_num_seqs": 0}, "max_num_seqs is 0", id="no sequences"),
    ],
)
def test_config_refuses(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


ARRIVALS = st.lists(
    st.tuples(
        st.text("ab", min_size=1, max_size=30),  # prompt
        st.integers(0, 20),  # output
        st.integers(0, 3),  # steps until the next arrival
        st.booleans(),  # abort it after that
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(arrivals=ARRIVALS, blocks=st.integers(13, 30), seqs=st.integers(1, 5), budget=st.integers(1, 40))
def test_every_request_gets_its_tokens_whatever_arrives(
    arrivals: list[tuple[str, int, int, bool]], blocks: int, seqs: int, budget: int
) -> None:
    """No request starves or gets too much, no limit is passed, no block is lost, and a second run is the same."""
    config = ModelConfig(COST, blocks, 4, seqs, budget, 50)
    first = _play(Model(config), arrivals, config)
    assert first == _play(Model(config), arrivals, config)


def _play(model: Model, arrivals: list[tuple[str, int, int, bool]], config: ModelConfig) -> list[tuple[object, ...]]:
    results: list[StepResult] = []
    expected: dict[str, int] = {}
    for index, (prompt, output, steps, abort) in enumerate(arrivals):
        name = str(index)
        model.add(request(name, prompt, output), 0.0)
        results += [_checked_step(model, config) for _ in range(steps)]
        if not (abort and model.abort(name)):
            expected[name] = output
    while len(model):
        assert len(results) < 5_000
        results.append(_checked_step(model, config))
    counts = tokens_of(results)
    assert {name: counts[name] for name in expected} == expected
    assert model.pool.used == 0
    for admitted in (s for result in results for s in result.batch.admissions):
        assert 0 <= admitted.cached_tokens < admitted.request.prompt_tokens
    return [(r.batch.duration, len(r.produced), *ended([r])) for r in results]


def _checked_step(model: Model, config: ModelConfig) -> StepResult:
    batch = model.schedule(0.0)
    assert sum(count for _, count in batch.scheduled) <= config.max_num_batched_tokens
    assert len(model.running) <= config.max_num_seqs
    assert bool(batch.scheduled) == bool(len(model)), "a model with requests always computes something"
    blank = sum(sequence.blocks - sequence.committed for sequence in model.running)
    assert model.pool.used == blank + sum(map(len, {run for s in model.running for run in parts(s.runs)}))
    assert all(not sequence.blocks for sequence in model.waiting)
    return model.update(batch, batch.duration)


def test_an_adapter_is_loaded_into_a_slot_before_its_first_step() -> None:
    cost = replace(COST, adapter_load=5.0)
    model = Model(replace(CONFIG, cost=cost, max_loras=1))
    loaded = [
        sum(result.batch.adapters_loaded for result in run(model, request(str(number), str(number) * 4, 2, lora=lora)))
        for number, lora in enumerate(("x", "x", None, "x", "y", "x"))
    ]
    assert loaded == [1, 0, 0, 0, 1, 1], "one slot: y drives x out"
    model = Model(replace(CONFIG, cost=cost))
    first, second = run(model, request("a", lora="x"))
    assert first.batch.duration == pytest.approx(COST.seconds(8, 0, 0) + 5.0)
    assert second.batch.duration == pytest.approx(COST.seconds(0, 1, 8))


def test_equal_steps_of_decoding_come_as_one_batch() -> None:
    model = Model(CONFIG)
    model.add(request("a", "a" * 5, 10), 0.0)
    model.add(request("b", "b" * 6, 7), 0.0)
    step(model)
    batch = model.schedule(1.0, most_steps=100)
    assert batch.steps == 6, "until b ends"
    alone = [COST.seconds(0, 2, 5 + 6 + 2 * done) for done in range(6)]
    assert [batch.elapsed(n) for n in range(7)] == [pytest.approx(sum(alone[:n])) for n in range(7)]
    assert [batch.steps_by(batch.elapsed(n) + 0.5) for n in range(7)] == list(range(7))
    result = model.update(batch, 2.0, steps=4)
    assert [(s.produced, s.computed) for s in result.produced] == [(5, 9), (5, 10)]
    assert not result.finished
    assert model.schedule(2.0, most_steps=100).steps == 2


def test_blocks_that_run_out_end_a_run_of_steps() -> None:
    model = Model(replace(CONFIG, num_blocks=8, max_model_len=32))
    model.add(request("a", "a" * 12, 20), 0.0)
    model.add(request("b", "b" * 4, 20), 0.0)
    step(model)
    while not model.schedule(0.0, most_steps=1 << 20).preempted:
        batch = model.schedule(0.0, most_steps=1 << 20)
        model.update(batch, batch.duration)
        assert model.pool.used <= 8


def test_contents_end_where_the_caller_says() -> None:
    """A replay knows the blocks of a prompt by their hashes, and nothing of the answers."""
    model = Model(CONFIG)
    run(model, Request("a", 10, 9, [7, 8]))
    assert admissions(run(model, Request("b", 10, 1, [7, 8]))) == {"b": 8}
    assert admissions(run(model, Request("c", 10, 1, [7, 9]))) == {"c": 4}
    assert admissions(run(model, Request("d", 10, 1))) == {"d": 0}


def test_events_are_recorded_if_asked_for() -> None:
    model = Model(replace(CONFIG, kv_events=True))
    run(model, request("a", "abcdefgh", 6))
    stored = model.take_events()
    assert [(event.start, event.stop) for event in stored if isinstance(event, BlockStored)] == [(0, 2), (2, 3)]
    assert model.take_events() == []
    quiet = Model(CONFIG)
    run(quiet, request("a"))
    assert quiet.take_events() == []


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_valid_and_listed(name: str) -> None:
    config = ModelConfig.of(PROFILES[name])
    assert config.max_num_seqs <= config.max_num_batched_tokens
    assert f"\n{name} " in table()
