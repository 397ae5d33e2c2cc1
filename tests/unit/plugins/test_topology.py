"""Closeness by labels; the filter of conformance tests."""

import numpy as np
import pytest
from epp_plugins.conformance import DestinationEndpointServedVerifier, HeaderBasedTestingFilter
from epp_plugins.topology import TopologyAffinityFilter, TopologyAffinityScorer, TopologyExtractor

from epp.plugin import Endpoint
from epp.schedule import Unguarded, decide
from epp.settings import InvalidConfig, Registry, load
from epp.testing import candidates, context, decided, pool, request
from tests.unit.plugins.picking import router_of

HOST, RACK, ZONE, REGION = (
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
)
PEER = {HOST: "h1", RACK: "r1", ZONE: "z1", REGION: "eu"}
LABELS = [
    PEER,
    PEER | {HOST: "h2"},
    PEER | {HOST: "h3", RACK: "r2"},
    PEER | {HOST: "h4", RACK: "r3", ZONE: "z2"},
    {HOST: "h5", REGION: "us"},
    {},
    {RACK: "r1"},
]


def made(cls, **parameters):
    return cls(cls.Parameters.model_validate(parameters), context())


def beside(peer, labels=LABELS):
    """Candidates of a later stage, whose earlier one has picked an endpoint with these labels, or was none."""
    own = pool(labels=[*labels, peer or {}])
    c = candidates(of=own)
    mask = np.arange(len(own)) < len(labels)
    return c.narrow(mask, c.pick("decode", [len(labels)], 1.0) if peer is not None else None)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        pytest.param(PEER, [1, 0.2, 0.05, 0.02, 0, 0, 0.2], id="all levels"),
        pytest.param({ZONE: "z1"}, [0.05, 0.05, 0.05, 0, 0, 0, 0], id="the zone alone"),
        pytest.param({HOST: "elsewhere"}, [0] * 7, id="nobody close"),
        pytest.param({}, [0] * 7, id="a peer without labels"),
        pytest.param(None, [0] * 7, id="no peer"),
    ],
)
def test_scores(peer, expected):
    """By the nearest level in common."""
    assert made(TopologyAffinityScorer).score(request(), beside(peer)).tolist() == expected


@pytest.mark.parametrize(
    ("parameters", "peer", "expected"),
    [
        pytest.param({}, PEER, [0], id="host"),
        pytest.param({"minAffinity": "rack"}, PEER, [0, 1, 6], id="rack"),
        pytest.param({"minAffinity": "zone"}, PEER, [0, 1, 2, 6], id="zone"),
        pytest.param({"minAffinity": "region"}, PEER, [0, 1, 2, 3, 6], id="region"),
        pytest.param({}, {HOST: "elsewhere"}, [0, 1, 2, 3, 4, 5, 6], id="nobody close"),
        pytest.param({}, None, [0, 1, 2, 3, 4, 5, 6], id="no peer"),
    ],
)
def test_filter(parameters, peer, expected):
    """Who is close enough; everybody if nobody is."""
    mask = made(TopologyAffinityFilter, **parameters).keep(request(), beside(peer))
    assert mask.nonzero()[0].tolist() == expected


def test_extractor():
    """It says where an endpoint is, by the labels that it is told."""
    extractor = TopologyExtractor(TopologyExtractor.Parameters(rack="my/rack"))
    assert extractor.extract(Endpoint("a", "10.0.0.1", 8000, labels={HOST: "h", "my/rack": "r", RACK: "x"})) == {
        "host": "h",
        "rack": "r",
    }


def test_the_node_stands_in_for_the_host():
    """Of an endpoint without the label: it is on the host whose label says the same, or whose node it is."""
    own = pool(count=0)
    for number, (labels, node) in enumerate([({}, "n1"), ({HOST: "n1"}, "n9"), ({}, "n2"), ({}, ""), ({}, "n1")]):
        own.add(Endpoint(f"pod-{number}", f"10.0.0.{number + 1}", 8000, labels=labels, node=node))
    c = candidates(of=own)
    later = c.narrow(np.arange(5) < 4, c.pick("decode", [4], 1.0))
    assert made(TopologyAffinityScorer).score(request(), later).tolist() == [1, 1, 0, 0]
    nowhere = c.narrow(np.arange(5) < 4, c.pick("decode", [3], 1.0))
    assert made(TopologyAffinityScorer).score(request(), nowhere).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("extractor", "expected"),
    [
        pytest.param({"type": "topology-extractor", "parameters": {"hostname": "node"}}, [0, 1], id="configured"),
        pytest.param(None, [0, 0], id="default"),
    ],
)
def test_labels_of_the_extractor(extractor, expected):
    """The scorer takes the labels of the extractor that is configured, wherever it stands; else the usual ones."""
    plugins = [{"type": "topology-affinity-scorer"}, *([extractor] if extractor else [])]
    router = router_of(plugins, pool())
    ((scorer, _),) = router.profiles["default"].scorers
    labels = [{"node": "b", HOST: "h"}, {"node": "a", HOST: "h"}]
    assert scorer.plugin.score(request(), beside({"node": "a"}, labels)).tolist() == expected
    assert [warning for warning in router.warnings if "alpha" not in warning] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody", 'no plugin is called "nobody"'), ("queue-scorer", '"queue-scorer" is no topology-extractor')],
)
def test_bad_extractor(name, message):
    """Another name has to lead to an extractor."""
    plugins = [
        {"type": "queue-scorer"},
        {"type": "topology-affinity-filter", "parameters": {"topologyProducerName": name}},
    ]
    with pytest.raises(InvalidConfig, match=message):
        router_of(plugins, pool())


STAGES = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: queue-scorer}
- {type: decode-filter}
- {type: prefill-filter}
- {type: always-disagg-pd-decider}
- {type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}
- {type: max-score-picker}
%s
schedulingProfiles:
- {name: decode, plugins: [{pluginRef: decode-filter}, {pluginRef: queue-scorer}, {pluginRef: max-score-picker}]}
- name: prefill
  plugins: [{pluginRef: prefill-filter}, {pluginRef: queue-scorer}, {pluginRef: max-score-picker}, %s]
"""


@pytest.mark.parametrize(
    ("plugin", "reference", "prefills"),
    [
        pytest.param(
            "- {type: topology-affinity-scorer}",
            "{pluginRef: topology-affinity-scorer, weight: 21}",
            2,
            id="scorer",
        ),
        pytest.param(
            "- {type: topology-affinity-filter, parameters: {minAffinity: zone}}",
            "{pluginRef: topology-affinity-filter}",
            2,
            id="filter",
        ),
        pytest.param("", "{pluginRef: queue-scorer}", 1, id="without"),
    ],
)
def test_changes_the_pick_of_a_later_stage(plugin, reference, prefills):
    """The prefill goes to the decoder's zone, though the queue there is longer: 21 * 0.05 against 1."""
    roles = [("decode", "z1"), ("prefill", "z2"), ("prefill", "z1")]
    own = pool(labels=[{"llm-d.ai/role": role, ZONE: zone} for role, zone in roles], waiting=[0, 0, 9])
    registry = Registry.installed()
    router = load(STAGES % (plugin, reference), "test", registry, lambda name: context(name, pool=own))
    decision = decide(router, request("prompt"), candidates(of=own), Unguarded())
    assert {name: pick.slots[0] for name, pick in decision.picks.items()} == {"decode": 0, "prefill": prefills}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("10.0.0.1", [0, 1], id="an address is all its ports"),
        pytest.param("10.0.0.1:8001", [1], id="one port"),
        pytest.param(" 10.0.0.1:8000 ,[::1]:8000", [0, 2], id="a list"),
        pytest.param("::1", [2], id="IPv6"),
        pytest.param("[::1]", [2], id="IPv6 in brackets"),
        pytest.param("10.0.0.9", [], id="nobody"),
        pytest.param(None, [], id="no header"),
    ],
)
def test_selection(value, expected):
    """The endpoints that the header names."""
    own = pool(count=0)
    for name, address, port in (("a", "10.0.0.1", 8000), ("b", "10.0.0.1", 8001), ("c", "::1", 8000)):
        own.add(Endpoint(name, address, port))
    headers = {} if value is None else {"Test-EPP-Endpoint-Selection": value}
    mask = HeaderBasedTestingFilter().keep(request(headers=headers), candidates(of=own))
    assert mask.nonzero()[0].tolist() == expected


def test_served():
    """The response says who has answered, also where that was a fallback."""
    c = candidates(count=2)
    headers = DestinationEndpointServedVerifier().response_headers(request(), decided(c, 0), c.endpoints[1])
    assert headers == {"x-conformance-test-served-endpoint": "10.0.0.2:8000"}
