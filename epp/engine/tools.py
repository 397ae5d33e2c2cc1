"""Calls of tools that an answer makes: which tool, and arguments that fit its JSON schema, drawn from a seed.

A chat with tools whose last message is not a tool's result gets one call; after a result it gets text, so that an agent
loop ends. ``tool_choice`` "required", or a function's name, always gives a call, "none" never.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import msgspec

_WORDS = ("alpha", "bravo", "delta", "echo", "golf", "hotel", "india", "kilo", "lima", "oscar", "papa", "tango")
_MOST_DEPTH = 5


class ToolChoiceError(ValueError):
    """``tools`` or ``tool_choice`` can't be followed; the message says why."""


class FunctionCall(msgspec.Struct):
    """Name and arguments of a call; the arguments are JSON as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """As it stands in a message."""

    id: str
    type: str
    function: FunctionCall


def choose_call(
    tools: Sequence[Any] | None, choice: Any, messages: Sequence[Mapping[str, Any]], seed: int
) -> ToolCall | None:
    """The call that the answer makes; None = it is text.

    Raises:
        ToolChoiceError: a tool has no function with a name, or the choice is unknown.
    """
    functions = {_function(tool)["name"]: _function(tool) for tool in tools or ()}
    named = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else None
    if named is not None:
        if named not in functions:
            raise ToolChoiceError(f"tool_choice names {named!r}, which is not among the tools")
        return _call(functions[named], seed)
    if choice not in (None, "auto", "none", "required"):
        raise ToolChoiceError(f"tool_choice is {choice!r}; it may be 'auto', 'none', 'required' or name a function")
    if choice == "required" and not functions:
        raise ToolChoiceError("tool_choice is 'required', but there are no tools")
    after_result = messages[-1].get("role") == "tool"
    if not functions or choice == "none" or (choice != "required" and after_result):
        return None
    return _call(functions[Random(seed).choice(sorted(functions))], seed)


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ToolChoiceError("each of the tools needs a function with a name")
    return function


def _call(function: Mapping[str, Any], seed: int) -> ToolCall:
    rng = Random(seed)
    arguments = _value(function.get("parameters") or {"type": "object"}, rng, 0)
    text = msgspec.json.encode(arguments).decode()
    return ToolCall(f"chatcmpl-tool-{rng.getrandbits(64):016x}", "function", FunctionCall(function["name"], text))


def _value(schema: Any, rng: Random, depth: int) -> Any:
    """Something that the schema allows; of an object, the properties that it requires."""
    if not isinstance(schema, Mapping) or depth > _MOST_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return _value(schema[several][0], rng, depth + 1)
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "string":
            return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 3)))
        case "integer":
            low = int(schema.get("minimum", 0))
            return rng.randint(low, max(low, int(schema.get("maximum", low + 100))))
        case "number":
            least = float(schema.get("minimum", 0.0))
            return round(rng.uniform(least, max(least, float(schema.get("maximum", least + 100.0)))), 2)
        case "boolean":
            return rng.random() < 0.5
        case "array":
            count = max(int(schema.get("minItems", 1)), 1)
            return [_value(schema.get("items", {"type": "string"}), rng, depth + 1) for _ in range(count)]
        case "object" | None if kind == "object" or "properties" in schema:
            properties = schema.get("properties") or {}
            names = schema.get("required") or list(properties)
            return {name: _value(properties.get(name, {"type": "string"}), rng, depth + 1) for name in names}
    return None
