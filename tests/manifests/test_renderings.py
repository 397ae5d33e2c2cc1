"""Every kustomization and every rendering of the chart: valid, least privileged, and fitting together."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.cli.envoy import main as envoy
from epp.cli.flags import parse
from epp.envoy.process import find_envoy
from epp.settings import Registry, load
from epp.testing import context
from tests.manifests.renderings import NAMES, PICKERS, Pod, documents, of
from tests.manifests.schemas import check

READ = ["get", "list", "watch"]
OLD, NEW = "inference.networking.x-k8s.io", "inference.networking.k8s.io"
HA = [name for name in PICKERS if name.endswith("high-availability")]
STANDALONE = [name for name in PICKERS if "standalone" in name]


def options(name: str) -> Any:
    return parse(Pod.rendered(name).main["args"], {"NAMESPACE": "llm"})


def matches(labels: dict, selector: dict) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("name", NAMES)
def test_an_api_server_takes_it(name: str) -> None:
    """Each manifest is valid, and no two have one name."""
    assert documents(name)
    check(list(documents(name)))


def test_every_kind_is_there() -> None:
    """What an installation may need."""
    kinds = {(each["kind"], each["apiVersion"]) for name in NAMES for each in documents(name)}
    assert {kind for kind, _ in kinds} >= set(
        """
        ClusterRole ClusterRoleBinding ConfigMap Deployment DestinationRule HTTPRoute InferenceObjective InferencePool
        LLMInferenceService LLMInferenceServiceConfig NetworkPolicy PodDisruptionBudget PodMonitor Role RoleBinding
        Secret Service ServiceAccount ServiceMonitor
        """.split()  # noqa: SIM905 (a list of quoted names reads worse)
    )
    assert {("InferencePool", f"{NEW}/v1"), ("InferencePool", f"{OLD}/v1alpha2")} <= kinds


@pytest.mark.parametrize("name", PICKERS)
def test_pod_security_restricted(name: str) -> None:
    """What https://kubernetes.io/docs/concepts/security/pod-security-standards/ asks of the profile restricted."""
    spec = Pod.rendered(name).spec
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {key for volume in spec.get("volumes", ()) for key in volume} <= {"name", "configMap", "emptyDir", "secret"}
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["runAsNonRoot"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security.get("runAsUser") != 0
        assert security["readOnlyRootFilesystem"] is True
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]


@pytest.mark.parametrize("name", PICKERS)
def test_resources(name: str) -> None:
    """Every container says what it needs; memory is limited, CPU is not: a throttled picker delays every request."""
    spec = Pod.rendered(name).spec
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() == {"memory"}


@pytest.mark.parametrize("name", PICKERS)
def test_the_flags_are_those_of_epp_serve(name: str) -> None:
    """They are understood, none is without effect, and the ports are those that the container names."""
    said = options(name)
    assert said.warnings == ()
    ports = Pod.rendered(name).ports
    assert (ports["grpc"], ports["grpc-health"], ports["metrics"]) == (
        said.grpc_port,
        said.grpc_health_port,
        said.metrics_port,
    )


@pytest.mark.parametrize("name", PICKERS)
def test_the_flags_name_what_is_rendered(name: str) -> None:
    """The pool, and what is mounted for a configuration and a certificate."""
    said = options(name)
    pools = of(name, "InferencePool")
    if pools:
        (pool,) = pools
        assert pool["metadata"]["name"] == said.pool_name
        assert pool["apiVersion"].partition("/")[0] == said.pool_group
    mounts = {mount["mountPath"] for mount in Pod.rendered(name).main.get("volumeMounts", ())}
    assert {str(Path(said.config_file).parent) if said.config_file else "", said.cert_path} - {""} == mounts
    assert said.ha_enable_leader_election == (name in HA)


@pytest.mark.parametrize("name", PICKERS)
def test_selectors(name: str) -> None:
    """Service, budget and network policy are for the Deployment's pods; the monitor finds the Service and its port."""
    pod = Pod.rendered(name)
    assert matches(pod.labels, pod.deployment["spec"]["selector"]["matchLabels"])
    services = [each for each in of(name, "Service") if each["spec"].get("clusterIP") != "None"]
    (service,) = services
    assert matches(pod.labels, service["spec"]["selector"])
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= pod.ports.keys()
    for budget in of(name, "PodDisruptionBudget"):
        assert matches(pod.labels, budget["spec"]["selector"]["matchLabels"])
    for policy in of(name, "NetworkPolicy"):
        assert matches(pod.labels, policy["spec"]["podSelector"]["matchLabels"])
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert opened <= pod.ports.keys()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= opened
    for monitor in of(name, "ServiceMonitor"):
        assert matches(service["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"])
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == {"metrics"}


@pytest.mark.parametrize("name", PICKERS)
def test_model_servers_are_the_same_for_all(name: str) -> None:
    """Pool or flags, network policy, Envoy's Service and the monitor agree on labels and ports; pickers are none."""
    said, found = options(name), []
    for pool in of(name, "InferencePool"):
        spec = pool["spec"]
        ports = (
            [port["number"] for port in spec["targetPorts"]] if "targetPorts" in spec else [spec["targetPortNumber"]]
        )
        found.append((spec["selector"].get("matchLabels", spec["selector"]), ports))
    if said.endpoint_selector:
        pairs = dict(pair.split("=") for pair in said.endpoint_selector.split(","))
        found.append((pairs, list(said.endpoint_target_ports)))
    for policy in of(name, "NetworkPolicy"):
        for rule in policy["spec"]["egress"]:
            ports = [port["port"] for port in rule["ports"]]
            peers = [peer["podSelector"]["matchLabels"] for peer in rule.get("to", ())]
            found += [(peer, ports) for peer in peers if not matches(Pod.rendered(name).labels, peer)]
    headless = [each["spec"] for each in of(name, "Service") if each["spec"].get("clusterIP") == "None"]
    found += [(spec["selector"], [port["port"] for port in spec["ports"]]) for spec in headless]
    for monitor in of(name, "PodMonitor"):
        ports = [endpoint["portNumber"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
        found.append((monitor["spec"]["selector"]["matchLabels"], ports))
    assert all(each == found[0] for each in found)
    for labels, _ in found:
        assert not matches(Pod.rendered(name).labels, labels)


@pytest.mark.parametrize("name", HA)
def test_a_follower_reaches_the_leader(name: str) -> None:
    """The network policy lets pickers connect to one another's health port, and nobody else out to it."""
    (policy,) = of(name, "NetworkPolicy")
    out = [rule for rule in policy["spec"]["egress"] if {"port": "grpc-health", "protocol": "TCP"} in rule["ports"]]
    labels = [peer["podSelector"]["matchLabels"] for rule in out for peer in rule["to"]]
    assert len(labels) == 1
    assert matches(Pod.rendered(name).labels, labels[0])
    into = [rule for rule in policy["spec"]["ingress"] if "grpc-health" in [port["port"] for port in rule["ports"]]]
    peers = [peer for rule in into for peer in rule.get("from", [{"podSelector": {"matchLabels": {}}}])]
    selectors = [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    assert any(matches(Pod.rendered(name).labels, selector) for selector in selectors)


@pytest.mark.parametrize("name", PICKERS)
def test_the_service_is_the_one_that_the_pool_names(name: str) -> None:
    """And the route leads to the pool, with the pool's group."""
    (service,) = [each for each in of(name, "Service") if each["spec"].get("clusterIP") != "None"]
    for pool in of(name, "InferencePool"):
        spec = pool["spec"]
        ref = spec.get("endpointPickerRef") or spec["extensionRef"]
        assert ref["name"] == service["metadata"]["name"]
        assert ref["failureMode"] in {"FailOpen", "FailClose"}
        port = ref["port"]["number"] if "port" in ref else ref["portNumber"]
        assert port in [each["port"] for each in service["spec"]["ports"]]
        for route in of(name, "HTTPRoute"):
            (backend,) = route["spec"]["rules"][0]["backendRefs"]
            assert (backend["group"], backend["name"]) == (
                pool["apiVersion"].partition("/")[0],
                pool["metadata"]["name"],
            )
    for rule in of(name, "DestinationRule"):
        assert rule["spec"]["host"].split(".")[0] == service["metadata"]["name"]
        assert (rule["spec"]["trafficPolicy"]["tls"]["mode"] == "SIMPLE") == options(name).secure_serving


def rules(name: str, kind: str) -> list[tuple[Any, ...]]:
    found = []
    for role in of(name, kind):
        for rule in role["rules"]:
            groups, resources = rule.get("apiGroups", []), rule.get("resources", rule.get("nonResourceURLs"))
            found += [(group, each, tuple(rule["verbs"])) for group in groups or [None] for each in resources]
    return found


@pytest.mark.parametrize("name", PICKERS)
def test_least_privilege(name: str) -> None:
    """Exactly what docs/install-kubernetes.md lists, no wildcard, the pool's name where a rule can have one."""
    said = options(name)
    read = tuple(READ)
    expected = {("", "pods", read)}
    if said.pool_name:
        expected |= {(said.pool_group, "inferencepools", read), (OLD, "inferencemodels", read)}
        for group in ("llm-d.ai", OLD):
            expected |= {(group, each, read) for each in ("inferenceobjectives", "inferencemodelrewrites")}
    if said.ha_enable_leader_election:
        leases = "coordination.k8s.io", "leases"
        expected |= {(*leases, ("create",)), (*leases, ("get", "list", "watch", "update"))}
    found = rules(name, "Role")
    if found:  # the rendering without roles leaves them to somebody else
        assert set(found) == expected
    for role in of(name, "Role"):
        for rule in role["rules"]:
            if rule["resources"] == ["inferencepools"]:
                assert rule["resourceNames"] == [said.pool_name]
            if rule["resources"] == ["leases"] and rule["verbs"] != ["create"]:
                assert rule["resourceNames"] == [f"epp-{role['metadata']['namespace']}-{said.pool_name}.llm-d.ai"]
    allowed = {
        ("authentication.k8s.io", "tokenreviews", ("create",)),
        ("authorization.k8s.io", "subjectaccessreviews", ("create",)),
        (None, "/metrics", ("get",)),
    }
    assert set(rules(name, "ClusterRole")) == (allowed if found and said.metrics_endpoint_auth else set())


@pytest.mark.parametrize("name", PICKERS)
def test_bindings(name: str) -> None:
    """Each role is bound to the service account of the pods; who reads metrics is another one."""
    account = Pod.rendered(name).spec["serviceAccountName"]
    namespace = Pod.rendered(name).deployment["metadata"].get("namespace", "default")
    roles = {(each["kind"], each["metadata"]["name"]) for each in documents(name) if each["kind"].endswith("Role")}
    for binding in (*of(name, "RoleBinding"), *of(name, "ClusterRoleBinding")):
        ref = binding["roleRef"]
        assert (ref["kind"], ref["name"]) in roles
        reader = ref["name"].endswith("metrics-reader")
        for subject in binding["subjects"]:
            assert (subject["name"] == account) != reader
            if not reader:
                assert subject.get("namespace", namespace) == namespace


@pytest.mark.parametrize("name", PICKERS)
def test_who_scrapes_may(name: str) -> None:
    """The token of the ServiceMonitor is of an account that the reader's role is bound to."""
    for monitor in of(name, "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        if not options(name).metrics_endpoint_auth:
            assert "authorization" not in endpoint
            continue
        secret = endpoint["authorization"]["credentials"]["name"]
        (made,) = [each for each in of(name, "Secret") if each["metadata"]["name"] == secret]
        account = made["metadata"]["annotations"]["kubernetes.io/service-account.name"]
        bound = [subject for each in of(name, "ClusterRoleBinding") for subject in each["subjects"]]
        namespace = made["metadata"]["namespace"]
        assert {"kind": "ServiceAccount", "name": account, "namespace": namespace} in bound


@pytest.mark.parametrize("name", PICKERS)
def test_shutdown_fits(name: str) -> None:
    """The kubelet waits as long as preStop and draining take."""
    pod = Pod.rendered(name)
    stop = int(pod.main["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod.spec["terminationGracePeriodSeconds"] >= stop + options(name).drain_timeout + 5


@pytest.mark.parametrize("name", PICKERS)
def test_rollouts_end(name: str) -> None:
    """With a leader nobody waits for a follower to get ready; without one there is no gap."""
    rolling = Pod.rendered(name).deployment["spec"]["strategy"]["rollingUpdate"]
    assert rolling == (
        {"maxSurge": "100%", "maxUnavailable": "100%"} if name in HA else {"maxSurge": 1, "maxUnavailable": 0}
    )


@pytest.mark.parametrize("name", PICKERS)
def test_probes(name: str) -> None:
    """By the names that leader election is about; what is ready without a picker has no probe of it."""
    pod = Pod.rendered(name)
    assert pod.main["livenessProbe"]["grpc"] == {"port": pod.ports["grpc-health"], "service": "liveness"}
    fails_open = pod.container("bootstrap") and "--failure-mode-allow=true" in pod.container("bootstrap")["command"]
    assert ("readinessProbe" in pod.main) == (not fails_open)
    if not fails_open:
        assert pod.main["readinessProbe"]["grpc"] == {"port": pod.ports["grpc-health"], "service": "readiness"}


@pytest.mark.parametrize("name", NAMES)
def test_configurations_load(name: str) -> None:
    """Those in ConfigMaps and those inside of an LLMInferenceService."""
    texts = [text for each in of(name, "ConfigMap") for text in each["data"].values()]
    for service in of(name, "LLMInferenceService"):
        inline = service["spec"]["router"]["scheduler"].get("config", {}).get("inline")
        texts += [yaml.safe_dump(inline)] if inline else []
    for text in texts:
        router = load(text, Path("config.yaml"), Registry.installed(), context)
        assert router.profiles["default"].scorers
        assert router.warnings == ()


@pytest.mark.e2e
@pytest.mark.parametrize("name", STANDALONE)
def test_the_real_envoy_takes_the_bootstrap(name: str, tmp_path: Path) -> None:
    """The init container's command makes a bootstrap for the port, the names and the TLS of what is rendered."""
    pod = Pod.rendered(name)
    bootstrap = pod.container("bootstrap")
    assert bootstrap is not None
    program, subcommand, *arguments = bootstrap["command"]
    assert (program, subcommand) == ("/app/epp", "envoy")
    (output,) = [argument for argument in arguments if argument.startswith("--output=")]
    file = tmp_path / "envoy.yaml"
    assert envoy([*[argument for argument in arguments if argument != output], f"--output={file}"]) == 0
    done = subprocess.run(
        [find_envoy(), "--mode", "validate", "--log-level", "warning", "-c", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = yaml.safe_load(file.read_text())["static_resources"]
    listener = made["listeners"][0]["address"]["socket_address"]
    assert listener == {"address": "0.0.0.0", "port_value": pod.ports["http"]}
    engines, picker = made["clusters"][:2]
    assert ("transport_socket" in picker) == options(name).secure_serving
    addresses = re.findall(r"'address': '([^']+)', 'port_value': (\d+)", str(engines["load_assignment"]))
    (service,) = [each for each in of(name, "Service") if each["spec"].get("clusterIP") == "None"]
    assert {address.split(".")[0] for address, _ in addresses} == {service["metadata"]["name"]}
    assert [int(port) for _, port in addresses] == [port["port"] for port in service["spec"]["ports"]]
    envoy_container = pod.container("envoy")
    assert envoy_container is not None
    assert str(Path(output.removeprefix("--output="))) == envoy_container["args"][1]
