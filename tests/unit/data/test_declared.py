import json

import pytest

from epp.data.declared import Declared, parse_file, parse_static
from epp.errors import ConfigError

STATIC: dict[str, tuple[str, list[tuple[str, str, int]]]] = {
    "IPv4": ("10.0.0.1:8000", [("", "10.0.0.1", 8000)]),
    "IPv6": ("[fd00::0:1]:8000", [("", "fd00::1", 8000)]),
    "host name": ("Llama.default.svc.:80", [("", "llama.default.svc", 80)]),
    "named": ("a=10.0.0.1:8000", [("a", "10.0.0.1", 8000)]),
    "several": (" a=10.0.0.1:1, [::1]:2 ,h:3,", [("a", "10.0.0.1", 1), ("", "::1", 2), ("", "h", 3)]),
    "none": ("", []),
}


@pytest.mark.parametrize(("text", "expected"), STATIC.values(), ids=STATIC.keys())
def test_static(text: str, expected: list[tuple[str, str, int]]) -> None:
    """`host:port`, `[IPv6]:port` and `name=...`, separated by commas."""
    declared = parse_static(text)
    assert [(entry.name, entry.host, *entry.ports) for entry in declared] == expected
    assert declared == parse_static(text.split(","))


STATIC_ERRORS = {
    "no port": ("10.0.0.1", "'10.0.0.1' is not host:port"),
    "IPv6 without brackets": ("fd00::1:8000", r"'fd00::1:8000' is not host:port, \[IPv6\]:port"),
    "port out of range": ("10.0.0.1:70000", "'70000' is not a port between 1 and 65535"),
    "port 0": ("10.0.0.1:0", "'0' is not a port"),
    "a URL": ("http://10.0.0.1:8000", "is not host:port"),
    "no address": ("10.0.0.256:8000", "'10.0.0.256' is neither an IP address nor a host name"),
    "no host": (":8000", "'' is neither"),
    "no name": ("=10.0.0.1:8000", "'' is not a name"),
    "one address twice": ("10.0.0.1:1,a=10.0.0.1:1", "its address 10.0.0.1:1 is also that of --endpoints"),
    "one name twice": ("a=10.0.0.1:1,a=10.0.0.2:1", "its name a is also that of --endpoints: 'a=10.0.0.1:1'"),
}


@pytest.mark.parametrize(("text", "message"), STATIC_ERRORS.values(), ids=STATIC_ERRORS.keys())
def test_static_errors(text: str, message: str) -> None:
    """What can't be used is refused, with the entry and the remedy."""
    with pytest.raises(ConfigError, match=message):
        parse_static(text)


def test_file() -> None:
    """Every field, as YAML."""
    page = b"""
endpoints:
- name: a
  address: 10.0.0.1
  port: "8000"
  labels: {llm-d.ai/role: decode}
- {name: b, namespace: other, address: "[fd00::1]", ports: [8000, "8001"]}
- {name: c, address: c.svc, port: 8000, metricsPort: 9100, labels: }
"""
    assert [(e, dict(e.labels), e.place) for e in parse_file(page, "f").declared] == [
        (Declared("a", "10.0.0.1", (8000,), labels={"llm-d.ai/role": "decode"}, place="f: endpoints[0]"),
         {"llm-d.ai/role": "decode"}, "f: endpoints[0]"),
        (Declared("b", "fd00::1", (8000, 8001), "other", ranked=True, place="f: endpoints[1]"), {}, "f: endpoints[1]"),
        (Declared("c", "c.svc", (8000,), metrics_port=9100, place="f: endpoints[2]"), {}, "f: endpoints[2]"),
    ]  # fmt: skip


ENTRY = {"name": "a", "address": "10.0.0.1", "port": 8000}
FORMS = {
    "YAML": b"endpoints: [{name: a, address: 10.0.0.1, port: 8000}]",
    "JSON": json.dumps({"endpoints": [ENTRY]}).encode(),
    "JSON with tabs": json.dumps({"endpoints": [ENTRY]}, indent="\t").encode(),
    "several documents": b"""
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {name: premium}
spec: {priority: 10}
---
---
endpoints: [{name: a, address: 10.0.0.1, port: 8000}]
""",
    "two documents of ours": b"endpoints: []\n---\nendpoints: [{name: a, address: 10.0.0.1, port: 8000}]",
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS.keys())
def test_file_forms(data: bytes) -> None:
    """YAML or JSON, alone or among documents that are somebody else's."""
    assert [(e.name, e.host, e.ports) for e in parse_file(data, "f").declared] == [("a", "10.0.0.1", (8000,))]


def test_empty_pool() -> None:
    """An empty list is a pool without endpoints, and no error."""
    assert parse_file(b"endpoints: []", "f").declared == ()


def entry(**changes: object) -> bytes:
    fields = {name: value for name, value in (ENTRY | changes).items() if value is not ...}
    return json.dumps({"endpoints": [ENTRY | {"name": "z", "address": "10.9.9.9"}, fields]}).encode()


FILE_ERRORS = {
    "empty": (b"", "f: there is no `endpoints:` in it"),
    "only other documents": (b"kind: ConfigMap", "f: there is no `endpoints:` in it"),
    "half written YAML": (b"endpoints:\n- {name: a, addr", r"f: line \d, column \d+: not YAML"),
    "not YAML": (b"endpoints: [\n- }", r"f: line \d, column \d+: not YAML"),
    "not JSON": (b'{"endpoints": [', "f: neither YAML nor JSON"),
    "not text": (b"\xff\xfe", "f: neither YAML nor JSON"),
    "control characters": (b"a: \x00", "f: neither YAML nor JSON"),
    "too deep": (b"[" * 100_000, "f: neither YAML nor JSON"),
    "a bare list": (b"- name: a", "f: expected `endpoints:` with a list, found a list"),
    "misspelt at the top": (b"endpoint: []", "f: unknown field 'endpoint'; did you mean endpoints?"),
    "no list": (b"endpoints:", r"f: endpoints: expected a list, found nothing; write \[\] for an empty pool"),
    "an entry is text": (b"endpoints: [a]", r"f: endpoints\[0\]: expected name, address and port, found text"),
    "misspelt": (entry(adress="10.0.0.1"), r"f: endpoints\[1\]: unknown field 'adress'; did you mean address\?"),
    "foreign": (entry(weight=1), r"f: endpoints\[1\]: unknown field 'weight'; allowed are name, namespace, address"),
    "no name": (entry(name=...), r"f: endpoints\[1\]: name is missing"),
    "no address": (entry(address=...), r"f: endpoints\[1\]: address is missing"),
    "no port": (entry(port=...), r"f: endpoints\[1\]: write either port, or ports"),
    "port and ports": (entry(ports=[1]), r"f: endpoints\[1\]: write either port, or ports"),
    "ports are no list": (entry(port=..., ports=1), r"f: endpoints\[1\].ports: expected a list of at least one port"),
    "ports are none": (entry(port=..., ports=[]), r"f: endpoints\[1\].ports: expected a list of at least one port"),
    "one port is none": (entry(port=..., ports=[1, "x"]), r"f: endpoints\[1\].ports\[1\]: 'x' is not a port"),
    "port is true": (entry(port=True), r"f: endpoints\[1\].port: True is not a port"),
    "port is negative": (entry(port=-1), r"f: endpoints\[1\].port: -1 is not a port"),
    "port is huge": (entry(port="9" * 5000), r"f: endpoints\[1\].port: '9+' is not a port"),
    "metrics port": (entry(metricsPort="http"), r"f: endpoints\[1\].metricsPort: 'http' is not a port"),
    "one metrics port for several": (entry(port=..., ports=[1, 2], metricsPort=3), r"endpoints\[1\].metricsPort: each"),
    "name is a number": (entry(name=1), r"f: endpoints\[1\].name: 1 is not a name"),
    "name with a slash": (entry(name="a/b"), r"f: endpoints\[1\].name: 'a/b' is not a name"),
    "namespace": (entry(namespace=""), r"f: endpoints\[1\].namespace: '' is not a name"),
    "address": (entry(address="10.0.0"), r"f: endpoints\[1\].address: '10.0.0' is neither"),
    "address is a number": (entry(address=10), r"f: endpoints\[1\].address: 10 is neither"),
    "labels are a list": (entry(labels=["a"]), r"f: endpoints\[1\].labels: expected label: value, found a list"),
    "label is true": (entry(labels={"a": True}), r"f: endpoints\[1\].labels: a: True is not text; put it in quotes"),
    "one name twice": (entry(name="z"), r"f: endpoints\[1\]: its name z is also that of f: endpoints\[0\]; remove one"),
    "one address twice": (entry(address="10.9.9.9"), r"endpoints\[1\]: its address 10.9.9.9:8000 is also that of f: e"),
    "a rank's name twice": (
        b"endpoints: [{name: b-rank-1, address: '::1', port: 3}, {name: b, address: '::1', ports: [1, 2]}]",
        r"endpoints\[1\]: its name b-rank-1 is also that of f: endpoints\[0\]",
    ),
}


@pytest.mark.parametrize(("data", "message"), FILE_ERRORS.values(), ids=FILE_ERRORS.keys())
def test_file_errors(data: bytes, message: str) -> None:
    """What can't be used is refused, with file, entry and remedy."""
    with pytest.raises(ConfigError, match=message):
        parse_file(data, "f")


def test_one_name_in_two_namespaces() -> None:
    """Names are unique within a namespace only."""
    data = json.dumps({"endpoints": [ENTRY, ENTRY | {"namespace": "b", "port": 8001}]}).encode()
    assert [(e.namespace, e.name) for e in parse_file(data, "f").declared] == [("default", "a"), ("b", "a")]
