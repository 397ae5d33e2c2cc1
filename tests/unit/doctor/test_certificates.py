"""Dates and names of certificates, and a server's own."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epp.doctor import certificates
from epp.doctor.findings import Findings
from tests.unit.doctor.world import ADDRESSES, running, states

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def certificate(key, *, names=(), addresses=(), starts=NOW - timedelta(days=1), days=365):
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, starts, starts + timedelta(days=days))
    alternatives = [x509.DNSName(each) for each in names] + [x509.IPAddress(ip_address(each)) for each in addresses]
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP256R1())


def found(shown, *names):
    findings = Findings()
    certificates.check(findings, "Pod", shown, names, NOW)
    return [(each.check, each.state) for each in findings]


@pytest.mark.parametrize(
    ("dates", "state"),
    [
        ({}, "ok"),
        ({"days": 10}, "warning"),
        ({"starts": NOW - timedelta(days=9), "days": 8}, "broken"),
        ({"starts": NOW + timedelta(days=1)}, "broken"),
    ],
    ids=["valid", "ends soon", "ended", "not yet"],
)
def test_dates(key, dates, state):
    assert found(certificate(key, **dates)) == [("tls.dates", state), ("tls.names", "ok")]


@pytest.mark.parametrize(
    ("names", "addresses", "wanted", "state"),
    [
        (["epp.llm.svc"], [], ["epp.llm.svc"], "ok"),
        (["EPP.llm.svc"], [], ["epp.llm.svc"], "ok"),
        (["*.llm.svc"], [], ["epp.llm.svc"], "ok"),
        (["*.svc"], [], ["epp.llm.svc"], "warning"),
        ([], ["10.0.0.1", "fd00::1"], ["10.0.0.1", "fd00:0::1"], "ok"),
        (["10.0.0.1"], [], ["10.0.0.2"], "warning"),
        ([], [], ["epp.llm.svc"], "warning"),
    ],
)
def test_names(key, names, addresses, wanted, state):
    assert found(certificate(key, names=names, addresses=addresses), *wanted)[1] == ("tls.names", state)


async def test_of_model_servers(key, tmp_path):
    """HTTPS is found where HTTP isn't spoken; the certificate should be for the pod's address."""
    shown = certificate(key, addresses=[ADDRESSES[0]], starts=datetime.now(UTC) - timedelta(days=1))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "server.pem"
    file.write_bytes(private + shown.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    async with running(context) as world:
        findings = await world.examined()
    assert states(findings, "broken") == {}
    assert states(findings, "warning") == {
        "tls.names": f"its certificate is for {ADDRESSES[0]}, not for {ADDRESSES[1]}"
    }
    assert "engine.reachable" in states(findings, "ok")
