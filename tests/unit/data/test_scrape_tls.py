"""Scrapes over https."""

import ssl
from dataclasses import replace
from typing import Any

import pytest

from epp.errors import ConfigError

from .conftest import QUICK, Setup, StartEngine, page

# --- https


@pytest.fixture
def tls(tmp_path: Any) -> tuple[ssl.SSLContext, Any]:
    """A server's context with a certificate for 127.0.0.1 that nobody has signed, and the certificate's file."""
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "engine")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "tls.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


@pytest.mark.parametrize(
    ("trust", "problem"),
    [("anybody", None), ("the right one", None), ("what is mounted", None), ("the system's", "no TLS connection")],
)
async def test_https(
    setup: Setup, engine: StartEngine, tls: Any, trust: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any certificate by default, or a checked one; SSL_CERT_DIR names folders of certificates, as for Go."""
    context, file = tls
    if trust == "what is mounted":
        (file.parent / "tls.key").write_text("no certificate")
        monkeypatch.setenv("SSL_CERT_DIR", f"/nowhere:{file.parent}")
    server = await engine(page(), tls=context)
    options = replace(QUICK, scheme="https")
    if trust != "anybody":
        options = replace(options, insecure=False, ca=file if trust == "the right one" else None)
    await setup.start(server, options=options)
    error = await setup.scraped(server)
    assert error is None if problem is None else problem in str(error)
    await setup.scraped(server, 3)
    assert setup.pool.eligible[setup.slot(server)]


async def test_https_with_a_certificate_of_ours(setup: Setup, engine: StartEngine, tls: Any) -> None:
    """An engine that asks for a certificate gets it."""
    context, file = tls
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(file)
    server = await engine(page(), tls=context)
    await setup.start(server, options=replace(QUICK, scheme="https", certificate=file))
    assert await setup.scraped(server) is None


async def test_certificates_that_cant_be_loaded(setup: Setup, tmp_path: Any) -> None:
    """The start fails and says so."""
    with pytest.raises(ConfigError, match=r"can't be loaded: .*No such file"):
        await setup.start(options=replace(QUICK, scheme="https", ca=tmp_path / "absent.pem"))
