"""Filters by label and by role."""

import pytest
from epp_plugins.label_selector import ByLabel, LabelSelectorFilter
from epp_plugins.role import DecodeFilter, EncodeFilter, PrefillFilter
from pydantic import ValidationError

from epp.plugin import Candidates, Endpoint
from epp.testing import candidates, pool, request

LABELS = [{"zone": "a", "gpu": "h100"}, {"zone": "b"}, {"gpu": "l4"}, {}, {"zone": ""}]


def made(cls, parameters):
    return cls(cls.Parameters.model_validate(parameters))


def kept(plugin, c):
    return plugin.keep(request("prompt"), c).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({}, [0, 1, 2, 3, 4], id="no conditions"),
        pytest.param({"matchLabels": {"zone": "a"}}, [0], id="label"),
        pytest.param({"matchLabels": {"zone": "a", "gpu": "h100"}}, [0], id="two labels"),
        pytest.param({"matchLabels": {"zone": "a", "gpu": "l4"}}, [], id="nobody"),
        pytest.param({"matchLabels": {"zone": ""}}, [4], id="the empty value is a value"),
        pytest.param({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}, [0, 1], id="In"),
        pytest.param(
            {"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, [1, 2, 3, 4], id="NotIn"
        ),
        pytest.param({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, [0, 1, 4], id="Exists"),
        pytest.param({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}, [2, 3], id="DoesNotExist"),
        pytest.param(
            {"matchLabels": {"gpu": "l4"}, "matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]},
            [2],
            id="all conditions",
        ),
    ],
)
def test_label_selector(parameters, expected):
    """Kubernetes' semantics: every condition holds, NotIn and DoesNotExist hold without the label."""
    assert kept(made(LabelSelectorFilter, parameters), candidates(labels=LABELS)) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"matchExpressions": [{"key": "zone", "operator": "In"}]}, "values: must not be empty with the operator In"),
        ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": []}]}, "must not be empty"),
        ({"matchExpressions": [{"key": "zone", "operator": "Exists", "values": ["a"]}]}, "values: must be empty"),
        ({"matchExpressions": [{"key": "zone", "operator": "Equals", "values": ["a"]}]}, "should be 'In', 'NotIn'"),
        ({"matchExpressions": [{"operator": "Exists"}]}, "Field required"),
        ({"matchLabels": {"-zone": "a"}}, "'-zone' is no label's name"),
        ({"matchLabels": {"a/b/zone": "a"}}, "is no label's name"),
        ({"matchLabels": {"Upper.domain/zone": "a"}}, "is no label's name"),
        ({"matchLabels": {"x" * 64: "a"}}, "is no label's name"),
        ({"matchLabels": {"zone": "a b"}}, "'a b' is no label's value"),
        ({"matchLabels": {"zone": "x" * 64}}, "is no label's value"),
        ({"matchLabel": {"zone": "a"}}, "Extra inputs are not permitted"),
    ],
)
def test_bad_selector(parameters, message):
    """What Kubernetes would refuse is refused."""
    with pytest.raises(ValidationError, match=message):
        made(LabelSelectorFilter, parameters)


@pytest.mark.parametrize("key", ["zone", "a", "llm-d.ai/role", "topology.kubernetes.io/zone", "x" * 63, "A_b.c-1"])
def test_good_labels(key):
    """What Kubernetes takes for a label's name is taken."""
    assert kept(made(LabelSelectorFilter, {"matchLabels": {key: "x"}}), candidates(labels=[{key: "x"}, {}])) == [0]


def test_selector_follows_the_pool():
    """The mask is that of the pool as it is: endpoints come, go, and change their labels."""
    own = pool(labels=[{"zone": "a"}, {"zone": "b"}])
    plugin = made(LabelSelectorFilter, {"matchLabels": {"zone": "a"}})
    assert kept(plugin, candidates(of=own)) == [0]
    own.add(Endpoint("pod-2", "10.0.0.3", 8000, labels={"zone": "a"}))
    assert kept(plugin, candidates(of=own)) == [0, 2]
    own.remove("default/pod-0")
    own.add(Endpoint("pod-1", "10.0.0.2", 8000, labels={"zone": "a"}))
    assert kept(plugin, candidates(of=own)) == [0, 1]


def test_selector_over_a_part_of_the_pool():
    """The mask is over the candidates, in their order."""
    own = pool(labels=[{"zone": "a"}, {"zone": "b"}, {"zone": "a"}])
    c = Candidates(own, own.all_slots()[[2, 1]], 0.0)
    assert made(LabelSelectorFilter, {"matchLabels": {"zone": "a"}}).keep(request(), c).tolist() == [True, False]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        pytest.param({"label": "zone", "validValues": ["a", "b"]}, [0, 1], id="values"),
        pytest.param({"label": "zone", "validValues": ["a"], "allowsNoLabel": True}, [0, 2, 3], id="or none"),
        pytest.param({"label": "zone", "allowsNoLabel": True}, [2, 3], id="none"),
    ],
)
def test_by_label(parameters, expected):
    """One of the values, or not the label."""
    assert kept(made(ByLabel, parameters), candidates(labels=LABELS)) == expected


@pytest.mark.parametrize("parameters", [{}, {"label": "zone"}, {"label": "", "allowsNoLabel": True}])
def test_bad_by_label(parameters):
    """It needs a label, and values or allowsNoLabel."""
    with pytest.raises(ValidationError):
        made(ByLabel, parameters)


ROLES = ["decode", "prefill", "encode", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both", "other"]


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        pytest.param(DecodeFilter(), ["decode", "prefill-decode", "encode-prefill-decode", "both", None], id="decode"),
        pytest.param(
            PrefillFilter(),
            ["prefill", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both"],
            id="prefill",
        ),
        pytest.param(EncodeFilter(), ["encode", "encode-prefill", "encode-prefill-decode"], id="encode"),
    ],
)
def test_roles(plugin, expected):
    """Each filter keeps the roles that can do its part; who has no role decodes."""
    c = candidates(labels=[{"llm-d.ai/role": role} for role in ROLES] + [{}])
    assert {[*ROLES, None][index] for index in kept(plugin, c)} == set(expected)
