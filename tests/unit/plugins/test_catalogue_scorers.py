"""Scorers by tokens, labels, attributes and use, with numbers worked out by hand."""

import numpy as np
import pytest
from epp_plugins.context_length import ContextLengthAware
from epp_plugins.endpoint_attribute import EndpointAttributeScorer
from epp_plugins.header_label import HeaderLabelAffinityScorer
from epp_plugins.inflight_load import InflightLoadProducer
from epp_plugins.no_hit_lru import NoHitLruScorer
from epp_plugins.token_load import TokenLoadScorer
from pydantic import ValidationError

from epp.extproc.events import ResponseBody
from epp.keys import INFLIGHT_TOKENS, uncached_tokens
from epp.plugin import Body, Candidates, Endpoint, Request, matched_tokens
from epp.testing import candidates, context, decided, pool, request
from tests.unit.plugins.picking import pipeline_of, routed

NAN = float("nan")
CONTEXT = "llm-d.ai/context-length-range"


def made(cls, *context, **parameters):
    return cls(cls.Parameters.model_validate(parameters), *context)


def score(scorer, c, **arguments):
    return scorer.score(request("prompt", **arguments), c)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({"queueThresholdTokens": 1000}, [1, 0.9, 0.5, 0, 0.75], id="1,000"),
        pytest.param({}, [1 - x / 2**22 for x in (0, 100, 500, 1200, 250)], id="default"),
        pytest.param({"queueThresholdTokens": 0}, [1 - x / 2**22 for x in (0, 100, 500, 1200, 250)], id="0"),
    ],
)
def test_token_load(parameters, expected):
    """1 - min(in flight + uncached, T) / T; what nobody knows counts 0."""
    c = candidates(inflight_tokens=[0, 0, 400, 1200, 250], columns={uncached_tokens(): [0, 100, 100, 0, NAN]})
    np.testing.assert_allclose(score(made(TokenLoadScorer, **parameters), c), expected, rtol=1e-12)


def test_uncached_tokens():
    """400 bytes are 100 tokens, less what the endpoint has; all of them where that is unknown."""
    plugin = made(InflightLoadProducer, context("load"))
    c = candidates(count=4, columns={matched_tokens(): [0, 64, NAN, 128]})
    (values,) = plugin.produce(request("x" * 400), c).values()
    assert values.tolist() == [100, 36, 100, 0]


@pytest.mark.parametrize(
    ("parameters", "most", "expected"),
    [
        pytest.param({}, None, 150, id="one and a half times the prompt"),
        pytest.param({"outputRatio": 0}, None, 0, id="none"),
        pytest.param({"maxEstimatedOutputTokens": 80}, None, 80, id="cut off"),
        pytest.param({}, 16, 16, id="the client's own limit"),
    ],
)
def test_answer_tokens(parameters, most, expected):
    """min(ratio * prompt, the limits), of a prompt of 100 tokens."""
    sent = Request("id", "/", {}, Body(prompts=(b"x" * 400,), max_tokens=most))
    assert made(InflightLoadProducer, context("load"), **parameters).answer_tokens(sent) == expected


@pytest.mark.parametrize(
    ("label", "length", "expected"),
    [
        pytest.param(None, 100, 0.5, id="no label"),
        pytest.param("short", 100, 0, id="no range"),
        pytest.param("100", 100, 0, id="one number"),
        pytest.param("200-100", 150, 0, id="backwards"),
        pytest.param("-1-100", 50, 0, id="negative"),
        pytest.param("100-100", 100, 1, id="exactly"),
        pytest.param("0-1000", 500, 0.3 + 0.7 * (0.7 / 1.1 + 0.15), id="in the middle"),
        pytest.param("0-1000", 1000, 0.3 + 0.7 * (0.7 / 1.1), id="at the upper end"),
        pytest.param("0-1000", 0, 0.3 + 0.7 * (0.7 / 1.1 + 0.3), id="at the lower end"),
        pytest.param(" 0 - 10000 ", 5000, 0.3 + 0.7 * (0.7 / 2 + 0.15), id="wide"),
        pytest.param("0-1000", 1500, 0.3 / 1.5, id="too long"),
        pytest.param("1000-2000", 0, 0.3 / 2, id="too short"),
    ],
)
def test_context_length(label, length, expected):
    """The manual's table."""
    c = candidates(labels=[{} if label is None else {CONTEXT: label}])
    sent = request(["x" * (4 * (length - 1)), "y"] if length else "")  # each prompt is rounded up
    np.testing.assert_allclose(made(ContextLengthAware).score(sent, c), [expected])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, [0, 1, 2, 3, 4, 5], id="off"),
        pytest.param({"enableFiltering": True}, [1, 2, 3], id="on"),
        pytest.param({"enableFiltering": True, "label": "other"}, [0, 1, 2, 3, 4, 5], id="nobody has the label"),
    ],
)
def test_context_length_filter(parameters, expected):
    """Keeps who has 100 tokens in range, both ends included, and who has no range."""
    ranges = ["0-99", "100-200", "50-100", None, "?", "101-200"]
    c = candidates(labels=[{} if text is None else {CONTEXT: text} for text in ranges])
    mask = made(ContextLengthAware, **parameters).keep(request("x" * 400), c)
    assert mask.nonzero()[0].tolist() == expected


def test_context_length_needs_a_label():
    """An empty name is none."""
    with pytest.raises(ValidationError, match="at least 1 character"):
        made(ContextLengthAware, label="")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"X-Zone": "a"}, [1, 0, 0, 0], id="a"),
        pytest.param({"X-Zone": "c"}, [0, 0, 0, 0], id="nobody's"),
        pytest.param({"X-Zone": ""}, [0, 0, 0, 0], id="empty"),
        pytest.param({}, [0, 0, 0, 0], id="no header"),
    ],
)
def test_header_label(headers, expected):
    """1 where the label says what the header says."""
    scorer = made(HeaderLabelAffinityScorer, headerName="X-Zone", labelKey="zone")
    c = candidates(labels=[{"zone": "a"}, {"zone": "b"}, {}, {"zone": ""}])
    assert score(scorer, c, headers=headers).tolist() == expected


@pytest.mark.parametrize("parameters", [{}, {"headerName": "x"}, {"labelKey": "x"}, {"headerName": "", "labelKey": ""}])
def test_bad_header_label(parameters):
    """Both are required."""
    with pytest.raises(ValidationError):
        made(HeaderLabelAffinityScorer, **parameters)


def by_attribute(kind, normalization, **parameters):
    algorithm = {"type": f"linear_{kind}_is_better", "normalization": normalization}
    return made(EndpointAttributeScorer, **{"attributeKey": "WaitingQueueSize", "algorithm": algorithm} | parameters)


FIXED = {"fixedRange": {"min": 10, "max": 50}}


@pytest.mark.parametrize(
    ("kind", "normalization", "values", "expected"),
    [
        pytest.param("lower", FIXED, [0, 10, 20, 50, 90], [1, 1, 0.75, 0, 0], id="lower, fixed"),
        pytest.param("higher", FIXED, [0, 10, 20, 50, 90], [0, 0, 0.25, 1, 1], id="higher, fixed"),
        pytest.param("lower", {"adaptiveRange": {}}, [10, 20, 50], [1, 0.75, 0], id="lower, adaptive"),
        pytest.param("higher", {"adaptiveRange": {}}, [10, 20, 50], [0, 0.25, 1], id="higher, adaptive"),
        pytest.param("lower", {"adaptiveRange": {}}, [7, 7], [1, 1], id="no range"),
        pytest.param("lower", FIXED, [NAN, 20], [0, 0.75], id="missing, fixed"),
        pytest.param("higher", {"adaptiveRange": {}}, [NAN, 20, 30], [0, 0, 1], id="missing, adaptive"),
        pytest.param("lower", {"adaptiveRange": {}}, [NAN, NAN], [0, 0], id="nothing known"),
    ],
)
def test_endpoint_attribute(kind, normalization, values, expected):
    """Linear over the range, cut off; nothing for a missing attribute."""
    np.testing.assert_allclose(score(by_attribute(kind, normalization), candidates(waiting=values)), expected)


def test_stale_attribute():
    """What is stale is unknown: staleness has its own rules."""
    c = candidates(waiting=[20, 30], stale=[True, False])
    np.testing.assert_allclose(score(by_attribute("lower", FIXED), c), [NAN, 0.5])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param({"algorithm": {"type": "linear_lower_is_better", "normalization": {}}}, "either", id="no range"),
        pytest.param(
            {
                "algorithm": {
                    "type": "linear_lower_is_better",
                    "normalization": {"fixedRange": {"min": 1, "max": 1}},
                }
            },
            "min: must be below max",
            id="no width",
        ),
        pytest.param({"algorithm": {"type": "linear", "normalization": FIXED}}, "linear_lower_is_better", id="type"),
    ],
)
def test_bad_attribute_scorers(parameters, message):
    """What can't be meant is refused."""
    with pytest.raises((ValidationError, ValueError), match=message):
        by_attribute("lower", FIXED, **parameters)


# --- no-hit-lru-scorer

COLD = [0.0, 0.0, 0.0, 0.0]


class Cold:
    """A scorer over four endpoints, with cold requests that went to some of them."""

    def __init__(self, *used, **parameters):
        self.pool = pool(count=4)
        self.scorer = made(NoHitLruScorer, context(pool=self.pool), **parameters)
        for index in used:
            self.send(index)

    def candidates(self, matched=COLD, order=(0, 1, 2, 3)):
        slots = self.pool.all_slots()[list(order)]
        c = Candidates(self.pool, slots, 0.0)
        c.put(matched_tokens(), np.array(matched)[list(order)])
        return c

    def send(self, index, matched=COLD):
        c = self.candidates(matched)
        self.scorer.picked(request(), decided(c, index), c)

    def scores(self, **arguments):
        return self.scorer.score(request(), self.candidates(**arguments)).tolist()


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        pytest.param([], [1, 2 / 3, 1 / 3, 0], id="never used: in the order in which they came"),
        pytest.param([1], [1, 0, 2 / 3, 1 / 3], id="the used one last"),
        pytest.param([1, 0], [0, 1 / 3, 1, 2 / 3], id="the one used longest ago before it"),
        pytest.param([0, 1, 2, 3, 0], [0, 1, 2 / 3, 1 / 3], id="all used"),
    ],
)
def test_no_hit_lru(used, expected):
    """1 - rank / (n - 1): never used, then used longest ago."""
    np.testing.assert_allclose(Cold(*used).scores(), expected)


def test_no_hit_lru_with_a_hit():
    """A hit anywhere: 0.5 for all; and such a request is no use."""
    cold = Cold(0)
    assert cold.scores(matched=[0, 64, 0, 0]) == [0.5] * 4
    cold.send(1, matched=[0, 64, 0, 0])
    np.testing.assert_allclose(cold.scores(), [0, 1, 2 / 3, 1 / 3])


def test_no_hit_lru_of_candidates():
    """The rank is among the candidates, in whatever order they stand."""
    assert Cold(0, 1).scores(order=(1, 0)) == [0, 1]
    assert Cold(0, 1).scores(order=(0,)) == [1]


def test_no_hit_lru_of_some():
    """Beyond `lruSize` endpoints the one used longest ago counts as never used; 0 means the default."""
    np.testing.assert_allclose(Cold(2, 0, 1, lruSize=2).scores(), [1 / 3, 0, 1, 2 / 3])
    np.testing.assert_allclose(Cold(2, 0, 1, lruSize=0).scores(), [1 / 3, 0, 2 / 3, 1])


def test_no_hit_lru_forgets():
    """An endpoint that restarts is as good as new; so is one that comes to a slot, also beyond the first ones."""
    cold = Cold(0, 1)
    cold.pool.restarted(0)
    np.testing.assert_allclose(cold.scores(), [1, 0, 2 / 3, 1 / 3])
    for number in range(4, 7):
        cold.pool.add(Endpoint(f"pod-{number}", f"10.1.0.{number}", 8000))
    c = candidates(of=cold.pool, columns={matched_tokens(): [0] * 7})
    np.testing.assert_allclose(cold.scorer.score(request(), c)[[1, 0, 4]], [0, 1, 1 / 2])


def test_no_hit_lru_of_several_profiles():
    """The target of every profile counts."""
    cold = Cold()
    c = cold.candidates()
    cold.scorer.picked(request(), decided(c, 0, others={"anything": 1}), c)
    assert set(np.argsort(cold.scores())[:2].tolist()) == {0, 1}


ANSWERS = {"type": "inflight-load-producer", "parameters": {"addEstimatedOutputTokens": True, "outputRatio": 2}}


@pytest.mark.parametrize(
    ("plugins", "routed_first", "after_first_byte"),
    [
        pytest.param([{"type": "queue-scorer"}], 100, 0, id="the prompt, until the first byte"),
        pytest.param([{"type": "inflight-load-producer"}], 100, 0, id="the same by the producer"),
        pytest.param([ANSWERS], 300, 300, id="prompt and answer, until the end"),
    ],
)
async def test_tokens_in_flight(plugins, routed_first, after_first_byte):
    """A prompt of 100 tokens is charged until it has been computed; with its answer, until that is there."""
    pipeline = pipeline_of(plugins, pool(count=1))
    tokens = pipeline.pool.column(INFLIGHT_TOKENS)
    _, exchange = await routed(pipeline, "x" * 400)
    assert tokens.tolist() == [routed_first]
    exchange.response_body(ResponseBody(b"{", end=False))
    assert tokens.tolist() == [after_first_byte]
    exchange.close("ended", complete=True)
    assert tokens.tolist() == [0]
