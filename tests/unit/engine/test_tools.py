"""Calls of tools fit their schemas, whatever these ask for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.engine.tools import ToolChoiceError, choose_call

USER = [{"role": "user", "content": "x"}]
RESULT = [*USER, {"role": "tool", "content": "y"}]


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("choice", "messages", "called"),
    [
        pytest.param(None, USER, True, id="left to the model"),
        pytest.param("auto", USER, True, id="auto"),
        pytest.param("auto", RESULT, False, id="after a result"),
        pytest.param("required", RESULT, True, id="required even then"),
        pytest.param("none", USER, False, id="none"),
        pytest.param({"type": "function", "function": {"name": "b"}}, RESULT, True, id="by name"),
    ],
)
def test_when_a_tool_is_called(choice: Any, messages: list[dict[str, Any]], called: bool) -> None:
    call = choose_call([tool("a"), tool("b")], choice, messages, 1)
    assert (call is not None) == called
    if isinstance(choice, dict):
        assert call is not None
        assert call.function.name == "b"


def test_every_tool_has_its_turn() -> None:
    calls = [choose_call([tool("a"), tool("b")], None, USER, seed) for seed in range(20)]
    assert {call.function.name for call in calls if call} == {"a", "b"}


def test_without_tools_the_answer_is_text() -> None:
    assert choose_call(None, "auto", USER, 1) is None


def test_a_seed_gives_one_call() -> None:
    tools = [tool("a", type="object", properties={"x": {"type": "string"}})]
    assert choose_call(tools, None, USER, 5) == choose_call(tools, None, USER, 5)
    assert choose_call(tools, None, USER, 5) != choose_call(tools, None, USER, 6)


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([{"type": "function"}], None, "a function with a name"),
        (["weather"], None, "a function with a name"),
        ([tool("a")], {"function": {"name": "b"}}, "'b'"),
        ([tool("a")], "always", "'always'"),
        (None, "required", "no tools"),
    ],
)
def test_what_cannot_be_followed(tools: Any, choice: Any, words: str) -> None:
    with pytest.raises(ToolChoiceError, match=words):
        choose_call(tools, choice, USER, 1)


LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "boolean"}),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(), st.integers(0, 9)
    ),
    st.just({"type": "number", "minimum": 1.5, "maximum": 2.5}),
    st.builds(lambda values: {"enum": values}, st.lists(st.integers(), min_size=1)),
    st.just({"const": 7}),
    st.just({"type": ["string", "null"]}),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "minItems": 2}, inner),
        st.builds(
            lambda properties: {"type": "object", "properties": properties, "required": sorted(properties)},
            st.dictionaries(st.sampled_from("abc"), inner),
        ),
        st.builds(lambda one: {"anyOf": [one, {"type": "null"}]}, inner),
    ),
    max_leaves=4,
)


@given(schema=SCHEMAS, seed=st.integers(0, 2**64 - 1))
def test_arguments_fit_the_schema(schema: dict[str, Any], seed: int) -> None:
    call = choose_call([tool("a", type="object", properties={"x": schema}, required=["x"])], "required", USER, seed)
    assert call is not None
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"x"}
    assert fits(arguments["x"], schema)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """A validator for what ``SCHEMAS`` makes."""
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    match schema["type"]:
        case "string" | ["string", "null"]:
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer" | "number":
            return bool(schema["minimum"] <= value <= schema["maximum"])
        case "array":
            return len(value) >= 2 and all(fits(item, schema["items"]) for item in value)
        case _:
            return value.keys() == set(schema["required"]) and all(
                fits(item, schema["properties"][name]) for name, item in value.items()
            )
