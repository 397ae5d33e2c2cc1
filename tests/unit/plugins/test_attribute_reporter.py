"""Expressions over the usage, worked out by hand; what is reported of them."""

import pytest
from epp_plugins.attribute_reporter import Expression, RequestAttributeReporter, values_of
from pydantic import ValidationError

from epp.plugin import Outcome, Usage
from epp.testing import candidates, decided, request

USAGE = Usage(prompt_tokens=100, completion_tokens=7, cached_tokens=64)


def evaluated(text, usage=USAGE, kind="number"):
    return Expression(text, kind).evaluate(values_of(usage))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("usage.prompt_tokens", 100),
        ("usage.input_tokens + usage.output_tokens", 107),
        ("usage.total_tokens", 107),
        ("usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens", 36),
        ("1 + 2 * 3 - 4", 3),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("-7 % 3", -1),
        ("7 / 2.0", 3.5),
        ("double(7) / 2", 3.5),
        ("int(3.9) + int(-3.9)", 0),
        ("--2", 2),
        (".5 + 1.", 1.5),
        ("usage.prompt_tokens > 99 ? 1 : 2", 1),
        ("false ? 1 : true ? 2 : 3", 2),
        ("(has(usage.prompt_tokens) ? usage.prompt_tokens : 0)\n + 1", 101),
    ],
)
def test_numbers(text, expected):
    """Arithmetic as in CEL: whole quotients are cut off towards 0."""
    assert evaluated(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("has(usage.prompt_tokens) && has(usage.completion_tokens)", True),
        ("has(usage.cached_tokens) && usage.cached_tokens > 64", False),
        ("usage.cached_tokens >= 64 || false", True),
        ("!(1 == 2) && 1 != 2 && 1 <= 1 && !(1 < 1)", True),
        ("true == false", False),
        ("false && usage.total_tokens / 0 > 1", False),
        ("true || usage.total_tokens / 0 > 1", True),
    ],
)
def test_truths(text, expected):
    """What isn't needed isn't computed."""
    assert evaluated(text, kind="truth") is expected


@pytest.mark.parametrize(
    "text", ["usage.completion_tokens", "usage.total_tokens", "usage.prompt_tokens / 0", "usage.prompt_tokens % 0"]
)
def test_what_cannot_be_computed(text):
    """A usage that lacks something, and a division by 0, give nothing."""
    assert evaluated(text, Usage(prompt_tokens=3)) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "something is due"),
        ("1 +", "something is due in the expression at 'its end'"),
        ("1 2", "an operator is due in the expression at '2'"),
        ("(1", "')' is due"),
        ("1 ? 2 : 3", "a truth is due, not a number"),
        ("true", "a number is due, not a truth"),
        ("true + 1", "a number is due"),
        ("true ? 1 : false", "a number is due, not a truth"),
        ("1 == true", "a number is due, not a truth"),
        ("true < false", "a number is due"),
        ("usage.prompt", "'usage.prompt' is nothing that can be read; there are usage.prompt_tokens"),
        ("request.size", "is nothing that can be read"),
        ("usage", "is nothing that can be read"),
        ("has(1)", "is nothing that can be read"),
        ("size('x')", "can't be read from"),
        ("__import__", "is nothing that can be read"),
    ],
)
def test_bad_expressions(text, message):
    """What is wrong is said at load, and where."""
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace("+", r"\+").replace(")'", r"\)'")):
        Expression(text, "number")


def reporter(expression, condition="", **key):
    parameters = {"attributes": [{"key": {"name": "cost"} | key, "expression": expression, "condition": condition}]}
    return RequestAttributeReporter(RequestAttributeReporter.Parameters.model_validate(parameters))


def reported(made, usage=USAGE):
    c = candidates(count=1)
    return made.response_metadata(request(), decided(c, 0), Outcome(usage=usage))


@pytest.mark.parametrize(
    ("made", "usage", "expected"),
    [
        pytest.param(reporter("usage.total_tokens"), USAGE, {"envoy.lb": {"cost": 107.0}}, id="default namespace"),
        pytest.param(reporter("1", namespace="mine"), Usage(), {"mine": {"cost": 1.0}}, id="another namespace"),
        pytest.param(reporter("usage.total_tokens"), Usage(), {}, id="no usage"),
        pytest.param(reporter("1", "has(usage.cached_tokens)"), Usage(), {}, id="condition"),
        pytest.param(reporter("1", "usage.cached_tokens > 1"), Usage(), {}, id="condition without a value"),
        pytest.param(reporter("1.0 * 9" + "0" * 400), USAGE, {}, id="too large"),
    ],
)
def test_reports(made, usage, expected):
    """A number under its name, or nothing."""
    assert reported(made, usage) == expected


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        [{"key": {"name": "a"}, "expression": "1"}] * 2,
        [{"key": {"name": ""}, "expression": "1"}],
        [{"key": {"name": "a"}, "expression": "true"}],
        [{"key": {"name": "a"}, "expression": "1", "condition": "1"}],
        [{"key": {"name": "a"}}],
    ],
)
def test_bad_parameters(attributes):
    """Exactly one attribute, of which everything can be read."""
    with pytest.raises(ValidationError):
        RequestAttributeReporter.Parameters.model_validate({"attributes": attributes})
