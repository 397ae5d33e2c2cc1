"""Filters by load and by attributes, with numbers worked out by hand."""

import pytest
from epp_plugins.endpoint_attribute import EndpointAttributeFilter
from epp_plugins.utilization import UtilizationFilter
from pydantic import ValidationError

from epp.keys import attribute
from epp.testing import candidates, request

NAN = float("nan")


def made(cls, **parameters):
    return cls(cls.Parameters.model_validate(parameters))


def kept(plugin, c):
    return plugin.keep(request("prompt"), c).nonzero()[0].tolist()


LOAD = {
    "inflight_requests": [0, 3, 9, 0],
    "running": [0, 8, 1, NAN],
    "waiting": [4, 0, 2, NAN],
    "kv_usage": [0.5, 0.9, 0.1, NAN],
}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param([("active-requests", 3)], [0, 1, 3], id="active"),
        pytest.param([("running-requests", 1)], [0, 2], id="running"),
        pytest.param([("waiting-queue", 2)], [1, 2], id="waiting, the bound included"),
        pytest.param([("waiting-queue", 0)], [1], id="0 is a bound"),
        pytest.param([("kv-cache-utilization", 0.5)], [0, 2], id="cache"),
        pytest.param([("waiting-queue", 4), ("kv-cache-utilization", 0.5)], [0, 2], id="all conditions"),
        pytest.param([("waiting-queue", 1), ("running-requests", 1)], [3], id="rather unknown than nobody"),
        pytest.param([("active-requests", 8), ("waiting-queue", 1), ("running-requests", 7)], [3], id="two unknown"),
    ],
)
def test_utilization(conditions, expected):
    """Every condition holds; who is unknown is kept only if nobody is known to meet them."""
    entries = [{"metric": metric, "maxValue": most} for metric, most in conditions]
    assert kept(made(UtilizationFilter, conditions=entries), candidates(**LOAD)) == expected


@pytest.mark.parametrize(("fallback", "expected"), [(False, []), (True, [0, 1])])
def test_utilization_of_nobody(fallback, expected):
    """Nobody is left, or everybody as a fallback."""
    plugin = made(UtilizationFilter, conditions=[{"metric": "waiting-queue", "maxValue": 2}], fallbackOnEmpty=fallback)
    assert kept(plugin, candidates(waiting=[3, 4])) == expected
    assert plugin.load_based


def test_stale_load_meets_nothing():
    """What an endpoint said before it missed a scrape doesn't count."""
    plugin = made(UtilizationFilter, conditions=[{"metric": "waiting-queue", "maxValue": 2}])
    assert kept(plugin, candidates(waiting=[0, 2], stale=[True, False])) == [1]


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param([], id="none"),
        pytest.param([{"metric": "waiting-queue"}], id="no bound"),
        pytest.param([{"metric": "waiting-queue", "maxValue": -1}], id="negative"),
        pytest.param([{"metric": "kv-cache-utilization", "maxValue": 1.1}], id="more than all"),
        pytest.param([{"metric": "queue", "maxValue": 1}], id="unknown metric"),
    ],
)
def test_bad_conditions(conditions):
    """At least one condition, each with a metric that there is and a bound that makes sense."""
    with pytest.raises(ValidationError):
        made(UtilizationFilter, conditions=conditions)


def filtering(operator, value, **parameters):
    algorithm = {"type": "threshold", "threshold": {"operator": operator, "value": value}}
    return made(EndpointAttributeFilter, **{"attribute": "WaitingQueueSize", "algorithm": algorithm} | parameters)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("LessThan", [0]),
        ("LessThanOrEqual", [0, 1]),
        ("GreaterThan", [2]),
        ("GreaterThanOrEqual", [1, 2]),
        ("Equal", [1]),
        ("NotEqual", [0, 2]),
    ],
)
def test_operators(operator, expected):
    """Compared with 2: 1, 2, 3; the one without a value passes."""
    assert kept(filtering(operator, 2), candidates(waiting=[1, 2, 3, NAN])) == [*expected, 3]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({"onMissing": "Fail"}, [0], id="missing fails"),
        pytest.param({"onMissing": "Pass"}, [0, 2], id="missing passes"),
        pytest.param({"onMissing": "Fail", "attribute": "queue", "fallbackOnEmpty": True}, [0, 1, 2], id="fallback"),
        pytest.param({"onMissing": "Fail", "attribute": "queue"}, [], id="nobody"),
        pytest.param({"onMissing": "Fail", "producer": ""}, [0], id="any producer"),
        pytest.param({"onMissing": "Fail", "producer": "another"}, [], id="another producer"),
        pytest.param({"onMissing": "Fail", "attribute": "queue", "producer": "mine"}, [1], id="a metric of one's own"),
        pytest.param({"onMissing": "Fail", "attribute": "queue/mine", "producer": ""}, [1], id="with its producer"),
        pytest.param({"onMissing": "Fail", "attribute": "queue/mine"}, [1], id="as it was written before"),
    ],
)
def test_attributes(parameters, expected):
    """An attribute is llm-d's name of a column, or another's by its producer."""
    c = candidates(waiting=[1, 3, NAN], columns={attribute("queue", "mine"): [7, 1, NAN]})
    assert kept(filtering("LessThan", 2, **parameters), c) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({"attribute": ""}, "at least 1 character", id="empty"),
        pytest.param({"algorithm": {"type": "threshold"}}, "Field required", id="no threshold"),
        pytest.param({"algorithm": {"threshold": {"operator": "Less", "value": 1}}}, "LessThan", id="operator"),
        pytest.param({"onMissing": "pass"}, "'Pass' or 'Fail'", id="onMissing"),
        pytest.param({"attribute": "/ghost"}, "one of them is missing", id="no name before the slash"),
        pytest.param({"attribute": "queue/"}, "one of them is missing", id="no producer after it"),
    ],
)
def test_bad_attribute_filters(parameters, message):
    """What can't be meant is refused."""
    with pytest.raises((ValidationError, ValueError), match=message):
        filtering("LessThan", 2, **parameters)


@pytest.mark.parametrize(
    ("parameters", "count"),
    [({"attribute": "queue/mine"}, 1), ({"attribute": "queue/mine", "producer": ""}, 0), ({"attribute": "queue"}, 0)],
)
def test_a_producer_after_a_slash_is_told(parameters, count):
    """It is deprecated; with `producer` it is said on purpose."""
    remarks = filtering("LessThan", 2, **parameters).remarks
    assert [remark for remark in remarks if 'write "queue", and "mine" as producer' in remark] == list(remarks)
    assert len(remarks) == count


@pytest.mark.parametrize(("name", "load_based"), [("KVCacheUsagePercent", True), ("GPUUtilization", False)])
def test_load_attributes(name, load_based):
    """A filter by a load that we know to be one answers 429; the GPU's belongs to another extractor."""
    assert filtering("LessThan", 1, attribute=name).load_based is load_based
