"""YAML as Kubernetes reads it."""

import pytest

from epp.settings import InvalidConfig
from epp.settings.document import read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("1e3", 1000.0, id="exponent without a dot is a number"),
        pytest.param("1.5", 1.5, id="float"),
        pytest.param("-7", -7, id="int"),
        pytest.param("0x10", 16, id="hexadecimal"),
        pytest.param("2024-01-01", "2024-01-01", id="a date is a string"),
        pytest.param("1:30", "1:30", id="no base 60"),
        pytest.param("64Mi", "64Mi", id="quantity"),
        pytest.param("yes", True, id="yes is true"),
        pytest.param("'5'", "5", id="quoted number is a string"),
        pytest.param("[a, {b: 1}]", ["a", {"b": 1}], id="nested"),
    ],
)
def test_scalars(text, value):
    """A scalar is what Go's decoder takes it for."""
    found = read(f"x: {text}", "f").value["x"]
    assert found == value
    assert type(found) is type(value)


def test_null_is_absent():
    """A key without a value is a key that isn't there."""
    assert read("a:\nb: {c: null, d: 1}\ne: ~", "f").value == {"b": {"d": 1}}


def test_json_is_yaml():
    """A configuration may be JSON."""
    assert read('{"a": {"b": [1, 2]}}', "f").value == {"a": {"b": [1, 2]}}


def test_keys_are_text():
    """Keys that look like numbers or booleans are what JSON would have."""
    assert read("1: a\ntrue: b", "f").value == {"1": "a", "true": "b"}


def test_anchors():
    """What is anchored once can be referred to."""
    assert read("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}", "f").value == {
        "a": {"k": 1},
        "b": {"k": 1},
        "c": {"k": 1, "l": 2},
    }


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        pytest.param("", "must be a mapping", None, id="empty"),
        pytest.param("- a", "must be a mapping", None, id="list"),
        pytest.param("text", "must be a mapping", None, id="scalar"),
        pytest.param("a: 1\n---\nb: 2", "single document", 2, id="two documents"),
        pytest.param("a: 1\nb: [", "not YAML", 2, id="syntax"),
        pytest.param("a: 1\nb: !!python/name:os.system x", "not YAML", 2, id="a tag of Python's"),
        pytest.param("a: 1\n[b]: 2", "a key is text", 2, id="a list as key"),
        pytest.param("a: &x [*x]", "refers to itself", None, id="cycle"),
        pytest.param("a: " + "[" * 600, "nested too deep", None, id="depth"),
    ],
)
def test_not_a_configuration(text, message, line):
    """What can't be read says so, with its line."""
    with pytest.raises(InvalidConfig, match=message) as caught:
        read(text, "f")
    assert caught.value.problems[0].line == line


def test_twice():
    """A key that stands twice is noted at every level, with the line of the first."""
    document = read("a: 1\nb:\n- {c: 1,\n   c: 2}\na: 3", "f")
    assert document.twice == (
        (("b", 0, "c"), "stands twice, first in line 3"),
        (("a",), "stands twice, first in line 1"),
    )


def test_line():
    """A place has the line of its key, or else of what is around it."""
    document = read("a:\n  b:\n  - c: 1\n    d: 2\n", "f")
    assert [document.line(path) for path in [("a",), ("a", "b", 0, "d"), ("a", "x", "y"), ("x",), ()]] == [
        1,
        4,
        1,
        None,
        None,
    ]
