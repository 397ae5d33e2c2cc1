"""request-attribute-reporter: tells the data plane what a request has cost, by the usage in its response.

What it does
    When the response has ended, it evaluates an expression over the usage that the engine has reported, and has the
    number written into the request's dynamic metadata, for access logs, rate limits or billing. Nothing is written if
    the condition isn't true, or if the expression can't be evaluated, such as when the usage lacks what it reads.

    Expressions are in CEL, as far as it makes sense for numbers:

    - `usage.prompt_tokens`, `usage.completion_tokens`, `usage.total_tokens`, `usage.cached_tokens`,
      `usage.prompt_tokens_details.cached_tokens`, and by other APIs' names `usage.input_tokens`, `usage.output_tokens`,
      `usage.cache_read_input_tokens`;
    - `has(usage.completion_tokens)`;
    - numbers, `true`, `false`, parentheses, `+ - * / %`, `== != < <= > >=`, `&& || !`, `a ? b : c`;
    - `int(x)`, `double(x)`. The quotient of two whole numbers is whole, as in CEL.

Reads
    The usage in the response's body, where the body mode shows it and a parser can read it.

Writes
    Dynamic metadata, with the last reply to the response. Envoy takes a namespace that its ext_proc filter lists under
    `metadata_options.receiving_namespaces`; `envoy.lb` needs to be there for the destination as well.

Parameters
    - `attributes`: exactly one, of `key`, with `namespace` (envoy.lb) and `name`; `expression`, a number; and
      `condition`, a truth value.

Example:
    plugins:
    - type: request-attribute-reporter
      parameters:
        attributes:
        - key:
            name: x-request-cost
          expression: usage.prompt_tokens + 4 * usage.completion_tokens
          condition: has(usage.completion_tokens)
    - type: queue-scorer
    schedulingProfiles:
    - name: default
      plugins:
      - pluginRef: queue-scorer

Where it departs from llm-d, and why
    - It has CEL's part for numbers, not its texts, lists and functions. What an expression reads, and whether it is a
      number, is checked at load.
    - Whole numbers and fractions mix; in CEL they don't.
    - `usage` is what a parser makes of the response's, under OpenAI's names and others' alike, and nothing else.
"""

import operator
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, Field

import epp.plugin
from epp.plugin import Decision, Outcome, Request, Usage

Number = int | float
Values = Mapping[str, Number]
"""The usage by dotted path; what isn't known is absent."""

Kind = Literal["number", "truth"]


Value = Callable[[Values], Any]


class Term(NamedTuple):
    """A part of an expression: of which kind it is, and how to get its value."""

    kind: Kind
    value: Value


PATHS: Final = {
    "prompt_tokens": "prompt",
    "input_tokens": "prompt",
    "completion_tokens": "completion",
    "output_tokens": "completion",
    "total_tokens": "total",
    "cached_tokens": "cached",
    "cache_read_input_tokens": "cached",
    "prompt_tokens_details.cached_tokens": "cached",
    "input_tokens_details.cached_tokens": "cached",
}

_TOKEN: Final = re.compile(r"\s*(?:(\d+\.\d*|\.\d+|\d+)|([A-Za-z_][\w.]*)|(&&|\|\||[=!<>]=|[-+*/%!<>?:()]))", re.ASCII)
_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _divided(left: Number, right: Number) -> Number:
    if isinstance(left, int) and isinstance(right, int):
        whole = abs(left) // abs(right)
        return whole if (left < 0) == (right < 0) else -whole
    return left / right


def _remainder(left: Number, right: Number) -> Number:
    return left - right * int(left / right)


_SUMS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {"*": operator.mul, "/": _divided, "%": _remainder}


def _either(one: Value, two: Value) -> Term:
    return Term("truth", lambda values: one(values) or two(values))


def _both(one: Value, two: Value) -> Term:
    return Term("truth", lambda values: one(values) and two(values))


def _applied(kind: Kind, function: Callable[[Any, Any], Any], one: Value, two: Value) -> Term:
    return Term(kind, lambda values: function(one(values), two(values)))


class Expression:
    """A parsed expression; `evaluate` gives its value.

    Raises:
        ValueError: the text is none, or not of that kind; the message says where.
    """

    def __init__(self, text: str, kind: Kind) -> None:
        self._text = text
        self._tokens = self._split()
        self._at = 0
        term = self._choice()
        if self._peek():
            raise self._error("an operator is due")
        self._value = self._of(term, kind).value

    def evaluate(self, values: Values) -> Any:
        """The value; None where something that it needs isn't known, or it can't be computed."""
        try:
            return self._value(values)
        except (KeyError, ZeroDivisionError, OverflowError):
            return None

    def _split(self) -> list[str]:
        tokens, at, text = [], 0, self._text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise ValueError(f"the expression can't be read from {text[at:]!r} on")
            tokens.append(match[0].strip())
            at = match.end()
        return tokens

    def _error(self, what: str) -> ValueError:
        rest = " ".join(self._tokens[self._at :]) or "its end"
        return ValueError(f"{what} in the expression at {rest!r}")

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if not token or (wanted and token not in wanted):
            raise self._error(" or ".join(repr(each) for each in wanted) + " is due" if wanted else "something is due")
        self._at += 1
        return token

    def _of(self, term: Term, kind: Kind) -> Term:
        if term.kind != kind:
            raise self._error(f"a {kind} is due, not a {term.kind},")
        return term

    def _choice(self) -> Term:
        condition = self._either()
        if self._peek() != "?":
            return condition
        test = self._of(condition, "truth").value
        self._take("?")
        then = self._choice()
        self._take(":")
        other = self._of(self._choice(), then.kind)
        return Term(then.kind, lambda v: then.value(v) if test(v) else other.value(v))

    def _either(self) -> Term:
        left = self._both()
        while self._peek() == "||":
            self._take()
            one, two = self._of(left, "truth").value, self._of(self._both(), "truth").value
            left = _either(one, two)
        return left

    def _both(self) -> Term:
        left = self._compared()
        while self._peek() == "&&":
            self._take()
            one, two = self._of(left, "truth").value, self._of(self._compared(), "truth").value
            left = _both(one, two)
        return left

    def _compared(self) -> Term:
        left = self._applied(_SUMS, lambda: self._applied(_PRODUCTS, self._signed))
        compare = _COMPARISONS.get(self._peek())
        if compare is None:
            return left
        one = left.value if self._take() in {"==", "!="} else self._of(left, "number").value
        two = self._of(self._applied(_SUMS, lambda: self._applied(_PRODUCTS, self._signed)), left.kind).value
        return _applied("truth", compare, one, two)

    def _applied(self, operators: Mapping[str, Callable[[Any, Any], Any]], operand: Callable[[], Term]) -> Term:
        left = operand()
        while (apply := operators.get(self._peek())) is not None:
            self._take()
            one, two = self._of(left, "number").value, self._of(operand(), "number").value
            left = _applied("number", apply, one, two)
        return left

    def _signed(self) -> Term:
        if self._peek() == "!":
            self._take()
            negated = self._of(self._signed(), "truth").value
            return Term("truth", lambda v: not negated(v))
        if self._peek() == "-":
            self._take()
            minus = self._of(self._signed(), "number").value
            return Term("number", lambda v: -minus(v))
        return self._single()

    def _single(self) -> Term:
        token = self._take()
        if token == "(":  # noqa: S105 (a bracket)
            inner = self._choice()
            self._take(")")
            return inner
        if token in {"true", "false"}:
            return Term("truth", lambda _: token == "true")  # noqa: S105 (a truth value)
        if token[0].isdigit() or token[0] == ".":
            number: Number = int(token) if token.isdigit() else float(token)
            return Term("number", lambda _: number)
        return self._named(token)

    def _named(self, token: str) -> Term:
        if token in {"has", "int", "double"}:
            self._take("(")
            found = self._path(self._take()) if token == "has" else ""  # noqa: S105 (a function)
            inner = None if found else self._of(self._choice(), "number").value
            self._take(")")
            if inner is None:
                return Term("truth", lambda v: found in v)
            convert = int if token == "int" else float  # noqa: S105 (a function)
            return Term("number", lambda v: convert(inner(v)))
        path = self._path(token)
        return Term("number", lambda v: v[path])

    def _path(self, token: str) -> str:
        root, _, path = token.partition(".")
        if root != "usage" or path not in PATHS:
            self._at -= 1
            known = ", ".join(f"usage.{name}" for name in PATHS)
            raise self._error(f"{token!r} is nothing that can be read; there are {known},")
        return PATHS[path]


def values_of(usage: Usage) -> Values:
    """What is known of a response's usage."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    total = prompt + completion if prompt is not None and completion is not None else None
    named = {"prompt": prompt, "completion": completion, "total": total, "cached": usage.cached_tokens}
    return {name: value for name, value in named.items() if value is not None}


class MetadataKey(epp.plugin.Parameters):
    """`key` of an attribute."""

    namespace: str = "envoy.lb"
    name: str = Field(min_length=1)


class Attribute(epp.plugin.Parameters):
    """One entry of `attributes`."""

    key: MetadataKey
    expression: Annotated[str, Field(min_length=1), AfterValidator(lambda text: Expression(text, "number") and text)]
    condition: Annotated[str, AfterValidator(lambda text: Expression(text or "true", "truth") and text)] = ""


class RequestAttributeReporter:
    """Tells the data plane what a request has cost, by the usage in its response."""

    class Parameters(epp.plugin.Parameters):
        """See the module's manual."""

        attributes: tuple[Attribute, ...] = Field(min_length=1, max_length=1)

    def __init__(self, parameters: Parameters) -> None:
        (attribute,) = parameters.attributes
        self._key = attribute.key
        self._expression = Expression(attribute.expression, "number")
        self._condition = Expression(attribute.condition or "true", "truth")

    def response_metadata(
        self, request: Request, decision: Decision, outcome: Outcome
    ) -> Mapping[str, Mapping[str, float]]:
        """The number under its namespace and name, if it can be had."""
        values = values_of(outcome.usage)
        if not self._condition.evaluate(values):
            return {}
        number = self._expression.evaluate(values)
        if number is None or not isfinite(number):
            return {}
        return {self._key.namespace or "envoy.lb": {self._key.name: float(number)}}
