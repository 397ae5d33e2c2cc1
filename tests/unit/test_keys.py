"""Keys are compared by identity, so equal arguments must give one object."""

import math

import pytest

from epp.keys import KV_USAGE, attribute, latency, pool_key, request_key

MAKERS = {
    "a number": lambda: pool_key("a", missing=1.0, unit="s"),
    "NaN": lambda: pool_key("b", missing=float("nan"), source="metrics"),
    "another NaN": lambda: pool_key("c", missing=math.nan),
    "a request's": lambda: request_key("d", "producer"),
    "an attribute": lambda: attribute("e"),
    "an attribute of llm-d's": lambda: attribute("GPUUtilization", "dcgm-extractor"),
    "predictions": latency,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_equal_arguments_give_one_key(make):
    """Also where the missing value is NaN, which equals nothing."""
    assert make() is make()


def test_different_producers_have_different_keys():
    """The same name by another producer is another column."""
    assert request_key("d", "one") is not request_key("d", "two")


def test_attributes():
    """llm-d's names mean columns that there are, for their own producer; others are columns of their own."""
    assert attribute("KVCacheUsagePercent") is attribute("KVCacheUsagePercent", "") is KV_USAGE
    assert attribute("KVCacheUsagePercent", "mine") is not KV_USAGE
    assert attribute("mine", "").producer == "core-metrics-extractor"
    assert attribute("GPUUtilization", "").producer == "dcgm-extractor"
