"""Pseudo tokens: equal texts are equal tokens, and an answer comes back as the tokens that it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.engine.tokens import END, answer_length, answer_token, chat_tokens, text_tokens, token_text

TEXTS = st.text(max_size=40)


@given(prefix=TEXTS, left=TEXTS, right=TEXTS)
def test_equal_text_prefixes_are_equal_token_prefixes(prefix: str, left: str, right: str) -> None:
    shared = len(prefix.encode("utf-8", "surrogatepass")) // 4
    assert text_tokens(prefix + left)[:shared] == text_tokens(prefix + right)[:shared]
    assert len(text_tokens(prefix)) == -(-len(prefix.encode("utf-8", "surrogatepass")) // 4)


@given(system=TEXTS, question=TEXTS, follow_up=TEXTS, length=st.integers(1, 30))
def test_an_answer_comes_back_as_the_tokens_it_was(system: str, question: str, follow_up: str, length: int) -> None:
    """The next turn of a chat starts with the tokens of this turn, the generated ones included."""
    turn = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    answer = [answer_token(7, position) for position in range(length)]
    text = b"".join(map(token_text, answer)).decode()
    next_turn = [*turn, {"role": "assistant", "content": text}, {"role": "user", "content": follow_up}]
    expected = [*chat_tokens(turn), *answer, END]
    assert list(chat_tokens(next_turn))[: len(expected)] == expected


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param({"role": "user", "content": "x"}, {"role": "tool", "content": "x"}, id="role"),
        pytest.param({"role": "user", "content": "x"}, {"role": "sage", "content": "x"}, id="unknown role"),
        pytest.param({"role": "user", "content": "x"}, {"role": "user", "content": None}, id="no content"),
        pytest.param(
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/1"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/2"}}]},
            id="another picture",
        ),
        pytest.param(
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            id="tool calls",
        ),
    ],
)
def test_different_messages_are_different_tokens(left: dict[str, object], right: dict[str, object]) -> None:
    assert chat_tokens([left]) != chat_tokens([right])


def test_a_list_of_text_parts_is_the_text() -> None:
    parts = [{"type": "text", "text": "abcd"}, {"type": "text", "text": "efgh"}]
    assert chat_tokens([{"role": "user", "content": parts}]) == chat_tokens([{"role": "user", "content": "abcdefgh"}])


def test_tools_are_part_of_the_prompt() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert len(chat_tokens(messages, [{"type": "function"}])) > len(chat_tokens(messages))


def test_answer_lengths_have_the_mean_asked_for() -> None:
    lengths = [answer_length(seed, 40) for seed in range(5_000)]
    assert min(lengths) >= 1
    assert sum(lengths) / len(lengths) == pytest.approx(40, rel=0.1)
