"""One revision a request: weights by the manual, strict headers, what the response says."""

import pytest
from epp_plugins.rollout_screener import DisaggregatedSetRolloutScreener, parsed
from pydantic import ValidationError

from epp.plugin import Candidates
from epp.testing import candidates, context, decided, pool, request

REVISION, ROLE = "disaggregatedset.x-k8s.io/revision", "disaggregatedset.x-k8s.io/role"


def endpoints(**counts):
    """Labels of so many endpoints a revision and role, such as a_prefill=2."""
    found = []
    for name, count in counts.items():
        revision, _, role = name.partition("_")
        found += [{"set": "s", REVISION: revision, ROLE: role}] * count
    return found


def screener(own, draw=0.0, mode="sum", roles=("prefill", "decode"), selectors=(), scope="set=s"):
    cls = DisaggregatedSetRolloutScreener
    parameters = {
        "scope": {"labelSelector": scope},
        "headerSelectors": [
            {"name": label, "headerName": header, "labelKey": label, "mode": kind} for header, label, kind in selectors
        ],
        "revisionGating": {"mode": mode, "requireRoles": {"values": list(roles)}},
    }
    made = cls(cls.Parameters.model_validate(parameters), context(pool=own))
    made._random = Draws(draw)
    return made


class Draws:
    """A source of randomness that gives one number."""

    def __init__(self, value):
        self._value = value

    def random(self):
        return self._value


def revisions(made, c, **headers):
    mask = made.screen(request(headers=headers), c)
    return {e.labels.get(REVISION) for e, keep in zip(c.endpoints, mask, strict=True) if keep}


SHIFTED = {"a_prefill": 2, "a_decode": 9, "b_prefill": 1, "b_decode": 1}
TIED = {"a_prefill": 1, "a_decode": 3, "b_prefill": 4, "b_decode": 2}


@pytest.mark.parametrize(
    ("mode", "counts", "share"),
    [
        pytest.param("max-role", SHIFTED, 9 / 10, id="decode is the largest role"),
        pytest.param("sum", SHIFTED, 11 / 13, id="all endpoints"),
        pytest.param("max-role", TIED, 1 / 5, id="a tie: the first role"),
    ],
)
def test_shares(mode, counts, share):
    """The first revision's share of the requests."""
    own = pool(labels=endpoints(**counts))
    assert revisions(screener(own, share - 1e-9, mode), candidates(of=own)) == {"a"}
    assert revisions(screener(own, share + 1e-9, mode), candidates(of=own)) == {"b"}


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_incomplete_revisions(draw):
    """A revision without a prefill takes no part; none at all leaves nobody."""
    own = pool(labels=endpoints(a_prefill=1, a_decode=1, b_decode=8))
    assert revisions(screener(own, draw), candidates(of=own)) == {"a"}
    own.eligible[0] = False  # the only prefill can't be reached
    c = Candidates(own, own.eligible_slots(), 0.0)
    assert revisions(screener(own, draw), c) == set()


def test_only_present_revisions():
    """Coverage is the pool's; only who is a candidate is drawn."""
    own = pool(labels=endpoints(a_prefill=5, a_decode=5, b_prefill=1, b_decode=1))
    c = Candidates(own, own.all_slots()[11:], 0.0)  # b's decode alone
    assert revisions(screener(own), c) == {"b"}


def test_scope():
    """Endpoints out of scope don't count, and have no revision to be drawn."""
    labels = [*endpoints(a_prefill=1, a_decode=1), {"set": "other", REVISION: "b", ROLE: "prefill"}, {}]
    own = pool(labels=[*labels, {"set": "other", REVISION: "b", ROLE: "decode"}])
    assert revisions(screener(own, 0.999), candidates(of=own)) == {"a"}


STRICT = [("x-revision", REVISION, "strict")]


@pytest.mark.parametrize(
    ("mode", "headers", "expected"),
    [
        pytest.param("sum", {"x-revision": "b"}, {"b"}, id="named"),
        pytest.param("sum", {"x-revision": "c"}, set(), id="named, incomplete"),
        pytest.param("sum", {"x-revision": "d"}, set(), id="named, unknown"),
        pytest.param("sum", {}, {"a"}, id="drawn"),
        pytest.param("disabled", {}, {"a", "b", "c"}, id="disabled"),
        pytest.param("disabled", {"x-revision": "c"}, {"c"}, id="disabled, named"),
    ],
)
def test_strict(mode, headers, expected):
    """A strict header chooses; incomplete revisions are chosen only if nothing is gated."""
    own = pool(labels=endpoints(a_prefill=1, a_decode=1, b_prefill=1, b_decode=1, c_decode=1))
    assert revisions(screener(own, mode=mode, selectors=STRICT), candidates(of=own), **headers) == expected


def test_strict_by_another_label():
    """The revision is drawn among those that another strict header leaves."""
    own = pool(labels=[labels | {"slice": labels[REVISION]} for labels in endpoints(**SHIFTED)])
    made = screener(own, 0.0, selectors=[("x-slice", "slice", "strict")])
    assert revisions(made, candidates(of=own), **{"x-slice": "b"}) == {"b"}


def test_prefer_keeps_everybody():
    """It is for a scorer to prefer; the response says what was chosen."""
    own = pool(labels=endpoints(a_prefill=1, b_decode=1))
    made = screener(own, mode="disabled", selectors=[("X-Role", ROLE, "prefer"), ("x-none", "none", "strict")])
    c = candidates(of=own)
    assert revisions(made, c, **{"x-role": "decode"}) == {"a", "b"}
    assert made.response_headers(request(), decided(c, 0), c.endpoints[1]) == {"x-role": "decode"}


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=a", [True, False, False]),
        ("app==a,tier=x", [True, False, False]),
        ("app!=a", [False, True, True]),
        ("app in (a, b)", [True, True, False]),
        ("tier notin (x)", [False, True, True]),
        ("app", [True, True, False]),
        ("!app , !tier", [False, False, True]),
        ("example.com/app=1", [False, False, True]),
    ],
)
def test_selector(selector, expected):
    """Kubernetes' short form."""
    labels = [{"app": "a", "tier": "x"}, {"app": "b", "tier": "y"}, {"example.com/app": "1"}]
    assert [parsed(selector)(each) for each in labels] == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": "app=a b"},
        {"scope": "app in a"},
        {"scope": ""},
        {"scope": "(a)"},
        {"mode": "max"},
        {"roles": ()},
        {"selectors": [("x y", "a", "strict")]},
        {"selectors": [("x", "a", "hard")]},
    ],
)
def test_bad_parameters(wrong):
    """What can't be meant is refused."""
    with pytest.raises(ValidationError):
        screener(pool(), **wrong)
