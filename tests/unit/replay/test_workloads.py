"""Readers of traces, generated workloads, and what prompts share."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

from epp.errors import ConfigError
from epp.replay import SHAPES, Piece, Turn, Workload, generate, mooncake
from epp.replay.generated import listing
from epp.replay.sources import is_file, workload
from epp.replay.workload import text

LINES = (
    {"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]},
    {"timestamp": 2500, "input_length": 1024, "output_length": 1, "hash_ids": [1, 4]},
)


def trace(folder: Path, *lines: object, name: str = "some.jsonl") -> Path:
    file = folder / name
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return file


@pytest.mark.parametrize("name", ["some.jsonl", "some.jsonl.gz"])
def test_a_trace_is_read(tmp_path, name):
    """Full blocks, and a last one of what is left; times in seconds; the name without the endings."""
    found = mooncake.load(trace(tmp_path, *LINES, "", name=name))
    assert found.name == "some"
    assert [turn.at for turn in found.turns] == [0.0, 2.5]
    assert found.turns[0].prompt == (Piece(1, 512), Piece(2, 512), Piece(3, 76))
    assert [turn.answer.tokens for turn in found.turns] == [7, 1]
    assert found.turns[0].answer.text != found.turns[1].answer.text
    assert found.texts.ideal_hit_ratio() == 512 / 2124
    assert found.texts.ideal_hit_ratio(0.5) == 512 / 1024


def test_a_trace_is_brought_into_the_order_of_its_times(tmp_path):
    assert [turn.prompt_tokens for turn in mooncake.load(trace(tmp_path, *reversed(LINES))).turns] == [1100, 1024]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "some.jsonl:2: not in Mooncake's format"),
        ({"timestamp": 1}, "some.jsonl:2: not in Mooncake's format: Object missing required field"),
        (LINES[0] | {"hash_ids": [1, 2]}, "some.jsonl:2: 1100 tokens are 3 blocks of 512, but hash_ids has 2"),
        (LINES[0] | {"output_length": 0}, "some.jsonl:2: input_length and output_length must be at least 1"),
    ],
    ids=["no JSON", "a field less", "blocks missing", "no answer"],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    with pytest.raises(ConfigError, match="(?s)" + said.replace(".", r"\.")):
        mooncake.load(trace(tmp_path, LINES[0], line))


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "no requests"), (b"\x1f\x8b damaged", "can't be read")], ids=["empty", "no gzip"]
)
def test_a_file_without_requests_is_refused(tmp_path, content, said):
    (tmp_path / "some").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        mooncake.load(tmp_path / "some")


def test_a_damaged_gzip_is_refused(tmp_path):
    """It is said from which line on it can't be read, wherever the damage is."""
    file = trace(tmp_path, *LINES * 200, name="some.gz")
    whole = file.read_bytes()
    for content in (whole[:-9], whole[:80], whole[:60] + b"\xff" * 20 + whole[80:]):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"some\.gz: can't be read beyond line \d+: "):
            mooncake.load(file)


def test_the_published_trace_is_read():
    """With the share of tokens that it is known for, seen a little closer than by whole blocks (64.0 %)."""
    file = Path(__file__).parents[4] / "shared" / "data" / "traces" / "mooncake_synthetic.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"there is no {file}: the traces are not part of the project")
    found = mooncake.load(file)
    assert len(found) == 3993
    assert round(found.texts.ideal_hit_ratio(), 2) == 0.65


# --- generated


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_generated_by_its_seed(name):
    """Equal seeds give equal requests, other seeds others; in the order of their times."""
    one, same, other = generate(name, 2, 7), generate(name, 2, 7), generate(name, 2, 8)
    assert [vars_of(turn) for turn in one.turns] == [vars_of(turn) for turn in same.turns]
    assert [vars_of(turn) for turn in one.turns] != [vars_of(turn) for turn in other.turns]
    assert all(a.at <= b.at for a, b in pairwise(one.turns))


def vars_of(turn: Turn) -> tuple[object, ...]:
    return (turn.at, turn.prompt, turn.answer, turn.follows)


@pytest.mark.parametrize(
    ("said", "hits", "prompt", "answer"),
    [
        ("shared-prompts", (0.6, 0.7), (7200, 7200), (1000, 1000)),
        ("long-documents", (0.8, 0.9), (100_000, 100_000), (1000, 1000)),
        ("chat", (0.7, 0.9), (1000, 3000), (200, 300)),
        ("agents", (0.8, 0.95), (45_000, 75_000), (850, 1100)),
        ("unshared", (0, 0), (2500, 3200), (250, 320)),
        ("bursts", (0, 0), (2000, 2000), (200, 200)),
    ],
)
def test_shapes_have_the_lengths_and_the_sharing_that_they_are_described_by(said, hits, prompt, answer):
    """Ranges of what one endless cache would have, and of the mean tokens of prompt and answer."""
    found = generate(said, 4, 1)
    count = len(found)
    assert hits[0] <= found.texts.ideal_hit_ratio() <= hits[1]
    assert prompt[0] <= sum(turn.prompt_tokens for turn in found.turns) / count <= prompt[1]
    assert answer[0] <= sum(turn.answer.tokens for turn in found.turns) / count <= answer[1]


def test_a_workload_grows_with_the_engines():
    assert (
        len(generate("chat", 4, 0)) == 4 * len(generate("chat", 1, 0)) == 4 * len(generate("chat:requests=300", 1, 0))
    )


def test_a_session_goes_on_where_it_was():
    """A turn that follows another has its prompt and its answer as a prefix, unless it began anew."""
    turns = generate("chat", 1, 3).turns
    following = [(turns[turn.follows], turn) for turn in turns if turn.follows is not None]
    assert len(following) > len(turns) / 2
    assert all(after.prompt[:-1] == (*before.prompt, before.answer) for before, after in following)
    assert all(after.at > before.at for before, after in following)


def test_the_load_of_sessions_is_even():
    """Neither a slow start nor a long tail: each quarter of the time has about a quarter of the requests."""
    turns = generate("chat:requests=1000", 2, 0).turns
    quarter = (turns[-1].at - turns[0].at) / 4
    counts = [sum(index <= (turn.at - turns[0].at) / quarter < index + 1 for turn in turns) for index in range(4)]
    assert all(420 < count < 580 for count in counts)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("chats", "'chats' is no file, and no workload: there are shared-prompts"),
        ("chat:session=3", "workload chat has no number 'session': it has requests, sessions"),
        ("chat:sessions=some", "workload chat: sessions=some: int is due"),
        ("chat:sessions=0", "workload chat: sessions=0 must be above 0"),
        ("unshared:rate=nan", "workload unshared: rate=nan must be above 0"),
        ("agents:most=50000", "agents: most=50000 leaves no room"),
    ],
)
def test_what_cannot_be_generated_is_refused(said, problem):
    with pytest.raises(ConfigError, match=problem):
        workload(said, 2, 0)


def test_a_limit_cuts_the_end_off():
    assert len(workload("chat", 2, 0, limit=17)) == 17


def test_files_and_shapes_are_told_apart(tmp_path):
    file = trace(tmp_path, *LINES)
    assert (is_file(str(file)), is_file("chat:sessions=3")) == (True, False)
    assert len(workload(str(file), 2, 0)) == 2


def test_the_shapes_can_be_listed():
    """What is listed can be given back."""
    names = [line for line in listing().splitlines() if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in names] == list(SHAPES)
    assert len(generate(names[2], 1, 0)) == len(generate("chat", 1, 0))


# --- texts


def test_text_has_four_bytes_a_token_and_begins_alike():
    """Equal numbers are equal text, a shorter piece is the beginning of a longer one."""
    assert len(text((Piece(5, 3), Piece(6, 100)))) == 412
    assert text((Piece(5, 100),)).startswith(text((Piece(5, 33),)))
    assert text((Piece(5, 8),)) != text((Piece(6, 8),))
    assert text((Piece(2**64 + 5, 8),)) == text((Piece(5, 8),))


def contents(*prompts: tuple[Piece, ...], block: int = 4) -> list[list[int]]:
    turns = tuple(Turn(index, prompt, Piece(900 + index, 4)) for index, prompt in enumerate(prompts))
    texts = Workload("w", turns).texts
    return [texts.contents(index, turn, block) for index, turn in enumerate(turns)]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ((Piece(1, 8), Piece(2, 8)), (Piece(1, 8), Piece(2, 8)), 4),
        ((Piece(1, 8), Piece(2, 8)), (Piece(1, 8), Piece(3, 8)), 2),
        ((Piece(1, 8), Piece(2, 8)), (Piece(3, 8), Piece(2, 8)), 0),
        ((Piece(1, 6), Piece(2, 8)), (Piece(1, 6), Piece(3, 8)), 1),
        ((Piece(1, 6), Piece(2, 8)), (Piece(1, 7), Piece(2, 8)), 1),
        ((Piece(1, 16),), (Piece(1, 8),), 2),
        ((Piece(1, 4), Piece(900, 4)), (Piece(1, 4), Piece(900, 4)), 2),
    ],
    ids=["equal", "another end", "another beginning", "inside a block", "shifted", "cut off", "twice"],
)
def test_blocks_have_the_same_content_as_far_as_contexts_agree(first, second, shared):
    """Blocks that end in or after a difference differ; full ones have a content each, the answer's included."""
    one, two = contents(first, second)
    assert len(one) == (sum(piece.tokens for piece in first) + 4) // 4
    assert [a == b for a, b in zip(one, two, strict=False)][: shared + 1] == ([True] * shared + [False])[
        : min(len(one), len(two))
    ]
    assert len(set(one)) == len(one)


def test_the_next_turn_finds_the_answer():
    """The answer's blocks are those of the prompt that repeats it."""
    asked, answered = Piece(1, 8), Piece(2, 8)
    turns = (Turn(0, (asked,), answered), Turn(1, (asked, answered, Piece(3, 8)), Piece(4, 4)))
    texts = Workload("w", turns).texts
    assert texts.contents(0, turns[0], 4) == texts.contents(1, turns[1], 4)[:4]
    assert texts.ideal_hit_ratio() == 16 / 32


@pytest.mark.parametrize(
    ("times", "problem"), [((), "there are no requests"), ((1, 0), "not in the order")], ids=["none", "order"]
)
def test_a_workload_is_checked(times, problem):
    with pytest.raises(ValueError, match=problem):
        Workload("w", tuple(Turn(at, (Piece(1, 1),), Piece(2, 1)) for at in times))


def test_the_pace_of_a_workload():
    """Requests over the time that they span; of a burst the number."""
    turns = tuple(Turn(at, (Piece(1, 1),), Piece(2, 1)) for at in (0, 1, 4))
    assert Workload("w", turns).rate == 0.75
    assert Workload("w", turns[:1] * 5).rate == 5
