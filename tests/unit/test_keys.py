"""Keys are compared by identity, so equal arguments must give one object."""

import math

import pytest

from epp.keys import pool_key, request_key

MAKERS = {
    "a number": lambda: pool_key("a", missing=1.0, unit="s"),
    "NaN": lambda: pool_key("b", missing=float("nan"), source="metrics"),
    "another NaN": lambda: pool_key("c", missing=math.nan),
    "a request's": lambda: request_key("d", "producer"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_equal_arguments_give_one_key(make):
    """Also where the missing value is NaN, which equals nothing."""
    assert make() is make()


def test_different_producers_have_different_keys():
    """The same name by another producer is another column."""
    assert request_key("d", "one") is not request_key("d", "two")
