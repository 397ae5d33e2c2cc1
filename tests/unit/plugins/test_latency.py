"""Decisions by predicted latencies, with numbers worked out by hand."""

import numpy as np
import pytest
from epp_plugins.latency import LatencyScorer, LatencySloAdmitter, SloHeadroomTierFilter
from epp_plugins.predicted_latency import PredictedLatencyProducer
from pydantic import ValidationError

from epp.keys import latency
from epp.plugin import matchable_tokens, matched_tokens
from epp.testing import candidates, context, request

NAN = float("nan")


def made(cls, *context, **parameters):
    return cls(cls.Parameters.model_validate(parameters), *context)


def predicted(first, further=None, dispatched=None, *, ttft=None, matched=None, **arguments):
    """Candidates with these headrooms in ms; no prediction where the first one is None."""
    keys, count = latency(), len(first)
    known = np.array([value is not None for value in first])
    columns = {
        keys.ttft: np.where(known, 100.0 if ttft is None else ttft, NAN),
        keys.tpot: np.where(known, 10.0, NAN),
        keys.ttft_headroom: np.array(first, dtype=np.float64),
        keys.tpot_headroom: np.array([5.0] * count if further is None else further, dtype=np.float64),
        keys.dispatched: np.array([1.0] * count if dispatched is None else dispatched),
        matched_tokens(): np.array([0.0] * count if matched is None else matched),
        matchable_tokens(): np.full(count, 128.0),
    }
    return candidates(columns=columns, **arguments)


def score(c, **parameters):
    return made(LatencyScorer, **parameters).score(request("prompt"), c).tolist()


@pytest.mark.parametrize(
    ("parameters", "c", "expected"),
    [
        pytest.param({}, ([10, 60, 110],), [1, 0.51, 0.01], id="least headroom"),
        pytest.param({"headroomSelectionStrategy": "most"}, ([10, 60, 110],), [0.01, 0.51, 1], id="most headroom"),
        pytest.param({}, ([7, 7],), [0.51, 0.51], id="equal"),
        pytest.param({}, ([7, 7, 7], [0, 30, 40]), [1, 0.26, 0.01], id="the first token is equal"),
        # x = 0.8 * (0, 0.5, 1) + 0.2 * (1, 0, 0.5)
        pytest.param({}, ([0, 5, 10], [8, 4, 6]), [0.81, 0.61, 0.11], id="both vary"),
        pytest.param({"ttftWeight": 1, "tpotWeight": 3}, ([0, 5, 10], [8, 4, 6]), [0.26, 0.88, 0.38], id="weights"),
        pytest.param({"ttftWeight": 0, "tpotWeight": 0}, ([0, 5, 10], [8, 4, 6]), [1, 0.51, 0.01], id="no weights"),
        pytest.param({}, ([10, -1, 20],), [1, 0, 0.01], id="late ones get nothing"),
        pytest.param({}, ([10, 20], [1, -1]), [0.51, 0], id="late for the further tokens"),
        pytest.param({}, ([None, 20, 30],), [0, 1, 0.01], id="without a prediction"),
        pytest.param({}, ([-10, -20, -30], None, [1, 0, 0]), [0, 1, 0.01], id="all late: the idle ones"),
        pytest.param({}, ([5, -5, -5], [-1, -1, 1]), [0.51, 0, 0], id="all late: the further tokens"),
        pytest.param({}, ([-5, -5, -9], [-1, 1, 1]), [0, 1, 0.01], id="all late: the first"),
        pytest.param({"headroomSelectionStrategy": "most"}, ([-5, -9], [-1, -1]), [1, 0.01], id="all late: both"),
    ],
)
def test_scores(parameters, c, expected):
    """One group gets points, by the size of its headrooms."""
    np.testing.assert_allclose(score(predicted(*c), **parameters), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "load", "expected"),
    [
        # (0.9 + 0 + 0) / 3, (0.5 + 0.75 + 0.5) / 3, (0.4 + 1 + 0) / 3
        pytest.param({}, {}, [0.3, 0.58, 0.47], id="equal weights"),
        pytest.param({"compositeKVWeight": 2, "compositeQueueWeight": 2, "compositePrefixWeight": 0}, {},
                     [0.45, 0.63, 0.7], id="no prefix"),
        pytest.param({"compositeKVWeight": 0, "compositeQueueWeight": 0, "compositePrefixWeight": 0}, {},
                     [0.9, 0.5, 0.4], id="no weights: the cache"),
        pytest.param({"compositeKVWeight": -3}, {}, [0.9, 0.5, 0.4], id="a sum below 0: the cache"),
        pytest.param({"compositeKVWeight": 0}, {"waiting": [0, 0, 0]}, [0.5, 0.75, 0.5], id="empty queues"),
        pytest.param({}, {"waiting": [NAN, 1, 4]}, [NAN, 0.58, 0.13], id="unknown"),
    ],
)  # fmt: skip
def test_without_predictions(parameters, load, expected):
    """Cache, queue and prefix, rounded to hundredths."""
    c = predicted([None] * 3, matched=[0, 64, 0], **{"waiting": [4, 1, 0], "kv_usage": [0.1, 0.5, 0.6]} | load)
    np.testing.assert_allclose(score(c, **parameters), expected, atol=1e-12)


@pytest.mark.parametrize("weight", ["ttftWeight", "tpotWeight"])
def test_no_negative_weights(weight):
    """A headroom can't count against itself."""
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        made(LatencyScorer, **{weight: -1})


@pytest.mark.parametrize(
    ("headrooms", "epsilon", "expected"),
    [
        pytest.param(([1, -1, 0], [1, 1, 0]), 0, [0, 2], id="in time, to the millisecond"),
        pytest.param(([1, -1, 0], [1, 1, -1]), 0, [0], id="both have to be"),
        pytest.param(([1, -1, None],), 0, [0], id="no prediction"),
        pytest.param(([1, -1, None],), 1, [1, 2], id="by chance the others"),
        pytest.param(([1, 1, 1],), 1, [0, 1, 2], id="all in time"),
        pytest.param(([-1, -1, None],), 0, [0, 1, 2], id="nobody in time"),
        pytest.param(([None, None],), 0, [0, 1], id="no predictions"),
    ],
)
def test_tiers(headrooms, epsilon, expected):
    """Those in time, or by chance the others; everybody if there is one kind only."""
    plugin = made(SloHeadroomTierFilter, context(), epsilonExploreNeg=epsilon)
    assert plugin.keep(request(), predicted(*headrooms)).nonzero()[0].tolist() == expected


SLO = {"x-llm-d-slo-ttft-ms": "100"}
BUSY = {"running": [1, 1], "kv_usage": [0.5, 0.02]}


@pytest.mark.parametrize(
    ("headrooms", "load", "headers", "priority", "denied"),
    [
        pytest.param(([-1, -1],), {}, SLO, -1, True, id="all late"),
        pytest.param(([5, 5], [-1, -1]), {}, {"x-slo-tpot-ms": "1.5"}, -1, True, id="late for the further tokens"),
        pytest.param(([-1, None],), {}, SLO, -1, True, id="the only prediction is late"),
        pytest.param(([-1, 0],), {}, SLO, -1, False, id="one in time"),
        pytest.param(([None, None],), {}, SLO, -1, False, id="no predictions"),
        pytest.param(([-1, -1],), {"running": [1, 0]}, SLO, -1, False, id="one idle"),
        pytest.param(([-1, -1],), {"kv_usage": [0.5, 0.019]}, SLO, -1, False, id="one cold"),
        pytest.param(([-1, -1],), {"running": [NAN, NAN], "kv_usage": [NAN, NAN]}, SLO, -1, True, id="unknown load"),
        pytest.param(([-1, -1],), {}, {}, -1, False, id="asks for nothing"),
        pytest.param(([-1, -1],), {}, {"x-slo-ttft-ms": "soon"}, -1, False, id="asks for what is no number"),
        pytest.param(([-1, -1],), {}, {"x-slo-ttft-ms": "0"}, -1, False, id="asks for 0"),
        pytest.param(([-1, -1],), {}, SLO, 0, False, id="not sheddable"),
    ],
)
def test_admitter(headrooms, load, headers, priority, denied):
    """Only a sheddable request with a wish, when nobody is predicted to fulfil it, idle or cold."""
    sent = request("prompt", headers=headers, priority=priority)
    reason = made(LatencySloAdmitter).deny(sent, predicted(*headrooms, **BUSY | load))
    assert (reason is not None) is denied


def test_producer_has_no_predictions():
    """Its columns are there for those who read them, whatever the number of endpoints."""
    producer = made(PredictedLatencyProducer, context("mine"), contextTTL="1m30s", streamingMode=True)
    for count in (2, 3):
        columns = producer.produce(request(), candidates(count=count))
        assert set(columns) == set(latency("mine"))
        assert all(np.isnan(values).all() and len(values) == count for values in columns.values())


@pytest.mark.parametrize("parameters", [{"contextTTL": "5x"}, {"contextTTL": 0}, {"sloBufferFactor": 0}])
def test_bad_producers(parameters):
    """Its parameters are checked all the same."""
    with pytest.raises(ValidationError):
        made(PredictedLatencyProducer, context(), **parameters)


def test_nanoseconds():
    """What llm-d's code takes."""
    assert made(PredictedLatencyProducer, context(), contextTTL=300_000_000_000)
