"""Pickers: order, ties, and the shares of random choices."""

from collections import Counter

import numpy as np
import pytest
from epp_plugins.pickers import MaxScorePicker, RandomPicker, WeightedRandomPicker

from epp.testing import candidates, context, request

NAN = float("nan")
DRAWS = 4000


def made(cls, count=1, seed=1):
    return cls(cls.Parameters.model_validate({"maxNumOfEndpoints": count}), context(seed=seed))


def picks(picker, totals, times, **columns):
    sent, c, values = request(), candidates(count=len(totals), **columns), np.array(totals, dtype=float)
    return [tuple(map(int, picker.pick(sent, c, values))) for _ in range(times)]


def first(picker, totals):
    return Counter(order[0] for order in picks(picker, totals, DRAWS))


def even(share):
    """A share within five standard deviations of a fair coin's."""
    return pytest.approx(DRAWS * share, abs=5 * (DRAWS * share * (1 - share)) ** 0.5)


@pytest.mark.parametrize(
    ("count", "totals", "expected"),
    [
        pytest.param(1, [0.5, 2.5, 1.5], [1], id="highest"),
        pytest.param(2, [0.5, 2.5, 1.5], [1, 2], id="two highest"),
        pytest.param(9, [0.5, 2.5, 1.5], [1, 2, 0], id="more than there are"),
        pytest.param(0, [0.5, 2.5], [1], id="0 is 1"),
        pytest.param(-3, [0.5, 2.5], [1], id="less than 0 is 1"),
        pytest.param(1, [-5.0, -2.0], [1], id="negative totals"),
        pytest.param(2, [NAN, -2.0], [1, 0], id="NaN is last"),
        pytest.param(1, [NAN, -2.0], [1], id="NaN is not first"),
        pytest.param(1, [7.0], [0], id="one endpoint"),
    ],
)
def test_max_score(count, totals, expected):
    """The highest totals, highest first."""
    assert picks(made(MaxScorePicker, count), totals, 1) == [tuple(expected)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("totals", [[1.0, 3.0, 3.0, 2.0, 3.0], [NAN, NAN, NAN]], ids=["ties", "nothing known"])
def test_ties_are_broken_evenly(count, totals):
    """Endpoints with the same total are first equally often."""
    ties = [1, 2, 4] if len(totals) == 5 else [0, 1, 2]
    assert first(made(MaxScorePicker, count), totals) == {index: even(1 / 3) for index in ties}


@pytest.mark.parametrize("count", [1, 3])
def test_weighted(count):
    """The share of an endpoint is its share of the totals."""
    found = first(made(WeightedRandomPicker, count), [1.0, 3.0, 0.0, 4.0])
    assert found == {0: even(1 / 8), 1: even(3 / 8), 3: even(1 / 2)}


def test_weighted_second():
    """Without replacement: the second is drawn from those that are left, in proportion."""
    assert Counter(picks(made(WeightedRandomPicker, 2), [1.0, 1.0, 2.0], DRAWS)) == {
        (0, 1): even(1 / 4 * 1 / 3),
        (0, 2): even(1 / 4 * 2 / 3),
        (1, 0): even(1 / 4 * 1 / 3),
        (1, 2): even(1 / 4 * 2 / 3),
        (2, 0): even(1 / 2 * 1 / 2),
        (2, 1): even(1 / 2 * 1 / 2),
    }


@pytest.mark.parametrize("totals", [[0.0, 0.0], [-1.0, -2.0], [NAN, 0.0]])
@pytest.mark.parametrize("count", [1, 2])
def test_weighted_without_positive_totals(count, totals):
    """If nobody has points, everybody is drawn equally often."""
    assert first(made(WeightedRandomPicker, count), totals) == {0: even(1 / 2), 1: even(1 / 2)}


def test_weighted_puts_the_unknown_last():
    """Positive totals come first, then the fresh without points, then the stale, whose totals are far below zero."""
    orders = picks(made(WeightedRandomPicker, 4), [-9, 0, 2, -9], 100, stale=[True, False, False, True])
    assert set(orders) == {(2, 1, 0, 3), (2, 1, 3, 0)}


def test_weighted_with_tiny_totals():
    """Totals at the edge of what a float can hold are still in proportion."""
    assert first(made(WeightedRandomPicker), [1e-290, 3e-290]) == {0: even(1 / 4), 1: even(3 / 4)}


@pytest.mark.parametrize("count", [1, 2])
def test_random(count):
    """Everybody equally often, whatever the totals."""
    assert first(made(RandomPicker, count), [0.0, 9.0, NAN]) == {index: even(1 / 3) for index in range(3)}


@pytest.mark.parametrize("cls", [MaxScorePicker, WeightedRandomPicker, RandomPicker])
@pytest.mark.parametrize("count", [1, 3])
def test_same_seed_same_picks(cls, count):
    """All randomness is the context's."""
    one, same, other = made(cls, count), made(cls, count), made(cls, count, seed=2)
    runs = [picks(picker, [1.0] * 50, 5) for picker in (one, same, other)]
    assert runs[0] == runs[1] != runs[2]
