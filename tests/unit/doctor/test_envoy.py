"""What the doctor reads off an Envoy's admin page: a real Envoy, and a dump with each fault."""

import copy

import pytest

from epp.doctor import envoy
from epp.doctor.findings import Findings
from epp.envoy.options import Address, EnvoyOptions
from epp.envoy.process import LOOPBACK, EnvoyProcess

ENGINES = (Address("127.0.0.1", 1),)
FILTER = {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
    "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
    "failure_mode_allow": True,
    "message_timeout": "5s",
    "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
    "processing_mode": {"request_body_mode": "BUFFERED"},
}
MANAGER = {
    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "stream_idle_timeout": "0s",
    "route_config": {"virtual_hosts": [{"routes": [{"match": {"prefix": "/"}, "route": {"timeout": "0s"}}]}]},
    "http_filters": [{"name": "ext_proc", "typed_config": FILTER}],
}
CLUSTER = {
    "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
    "name": "engines",
    "circuit_breakers": {"thresholds": [{"max_requests": 40000}]},
}
DUMP = {"configs": [{"listener": MANAGER}, {"cluster": CLUSTER}]}
STATES = {"cluster_statuses": [{"name": "picker", "host_statuses": [{"health_status": {}}]}]}


def examined(dump=DUMP, states=STATES):
    findings = Findings()
    envoy.examine(findings, "Envoy", dump, states)
    return findings


def changed(**filters):
    dump = copy.deepcopy(DUMP)
    each = dump["configs"][0]["listener"]["http_filters"][0]["typed_config"]
    for key, value in filters.items():
        if value is None:
            each.pop(key)
        else:
            each[key] = value
    return dump


def bad(findings):
    return [(each.check, each.state) for each in findings if each.state != "ok"]


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["standalone", "full-duplex"])
async def test_a_real_one(mode):
    """Nothing is broken in what `epp envoy` prints, but for a picker that isn't there: that fails open."""
    options = EnvoyOptions(listen=LOOPBACK, picker=ENGINES, endpoints=ENGINES, mode=mode)
    findings = Findings()
    async with EnvoyProcess(options) as running:
        await envoy.check(findings, str(running.admin), 5.0)
    assert bad(findings) == ([] if mode == "standalone" else [("envoy.failure", "warning")])
    assert {each.check for each in findings if each.state == "ok"} == {"envoy.ext_proc", "envoy.picker"}


@pytest.mark.e2e
async def test_a_real_one_without_a_picker_in_health():
    """A health check that fails is seen."""
    options = EnvoyOptions(listen=LOOPBACK, picker=ENGINES, endpoints=ENGINES, picker_health_port=1)
    findings = Findings()
    async with EnvoyProcess(options) as running:
        await envoy.check(findings, str(running.admin), 5.0)
    assert ("envoy.picker", "broken") in bad(findings)


async def test_no_admin_page():
    findings = Findings()
    await envoy.check(findings, "127.0.0.1:1", 1.0)
    assert bad(findings) == [("envoy.admin", "unknown")]


def test_well():
    assert bad(examined()) == []


@pytest.mark.parametrize(
    ("filters", "check", "state", "message"),
    [
        ({"processing_mode": {}}, "envoy.ext_proc", "broken", "the request's body isn't sent"),
        (
            {"processing_mode": {"request_body_mode": "FULL_DUPLEX_STREAMED"}, "failure_mode_allow": None},
            "envoy.ext_proc",
            "broken",
            "FULL_DUPLEX_STREAMED without trailers",
        ),
        ({"message_timeout": None}, "envoy.ext_proc", "warning", "the picker has 0.2 s to answer"),
        ({"failure_mode_allow": None}, "envoy.failure", "warning", "without the picker every request fails"),
        ({"metadata_options": None}, "envoy.metadata", "warning", "dynamic metadata isn't exchanged"),
    ],
)
def test_settings_of_the_filter(filters, check, state, message):
    findings = examined(changed(**filters))
    assert [each.state for each in findings if each.check == check and each.message.startswith(message)] == [state]


def test_routes_may_send_what_the_filter_leaves_out():
    """Gateways set the filter's mode for each route that leads to a pool."""
    dump = changed(processing_mode={})
    mode = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
    override = {"@type": f"type.googleapis.com/{envoy._PER_ROUTE}", "overrides": {"processing_mode": mode}}
    routes = dump["configs"][0]["listener"]["route_config"]["virtual_hosts"][0]["routes"]
    routes[0]["typed_per_filter_config"] = {"ext_proc": override}
    assert bad(examined(dump)) == []


def test_no_filter():
    assert bad(examined({"configs": [{"listener": MANAGER | {"http_filters": []}}]})) == [("envoy.ext_proc", "broken")]


def test_hosts_of_the_picker():
    """None at all; none that is healthy."""
    assert bad(examined(states={})) == [("envoy.picker", "broken")]
    sick = {"health_status": {"failed_active_health_check": True}}
    statuses = [{"name": "picker", "host_statuses": [sick]}]
    assert bad(examined(states={"cluster_statuses": statuses})) == [("envoy.picker", "broken")]
    statuses[0]["host_statuses"].append({"health_status": {}})
    assert bad(examined(states={"cluster_statuses": statuses})) == []


def test_times_and_limits():
    """Envoy's defaults cut long answers off, end silent streams, and refuse the 1,025th request."""
    dump = copy.deepcopy(DUMP)
    manager, cluster = dump["configs"][0]["listener"], dump["configs"][1]["cluster"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"].pop("timeout")
    manager.pop("stream_idle_timeout")
    cluster.pop("circuit_breakers")
    assert bad(examined(dump)) == [
        ("envoy.timeouts", "warning"),
        ("envoy.timeouts", "broken"),
        ("envoy.circuits", "warning"),
    ]


def test_routes_that_a_gateway_sends():
    """They aren't in the listener; of those that don't ask the picker nothing is said, and each is told once."""
    dump = copy.deepcopy(DUMP)
    dump["configs"][0]["listener"].pop("route_config")
    asks = {"ext_proc": {"@type": f"type.googleapis.com/{envoy._PER_ROUTE}", "overrides": {}}}
    routes = [
        {"match": {"path_separated_prefix": "/v1"}, "route": {}, "typed_per_filter_config": asks},
        {"match": {"safe_regex": {"regex": "/v./x"}}, "route": {"timeout": "9s"}, "typed_per_filter_config": asks},
        {"match": {"prefix": "/other"}, "route": {}},
    ]
    sent = {"@type": f"type.googleapis.com/{envoy._ROUTES}", "virtual_hosts": [{"routes": routes}, {}]}
    dump["configs"].append({"dynamic_route_configs": [{"route_config": sent}, {"route_config": sent}]})
    assert [each.message for each in examined(dump) if each.check == "envoy.timeouts"] == [
        "answers longer than 15 s are cut off (route of paths from /v1)",
        "answers longer than 9 s are cut off (route of paths like /v./x)",
    ]


def test_many_clusters_are_one_finding():
    """As in a gateway's Envoy, which has one for each Service."""
    dump = copy.deepcopy(DUMP)
    dump["configs"] += [{"cluster": CLUSTER | {"name": f"c{i}", "circuit_breakers": {}}} for i in range(6)]
    (found,) = [each for each in examined(dump) if each.check == "envoy.circuits"]
    assert found.message.endswith("c0 (1024), c1 (1024), c2 (1024), c3 (1024), and 2 more")
