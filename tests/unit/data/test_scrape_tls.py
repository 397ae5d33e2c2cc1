"""Scrapes over https."""

import ssl
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from epp.data.client import MetricsClient, ScrapeError
from epp.data.trust import LOOK
from epp.errors import ConfigError
from epp.extproc.tls import self_signed

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


def issued(file: Any) -> ssl.SSLContext:
    """A server's context with a new certificate for 127.0.0.1, which is written to the file with its key."""
    pair = self_signed(("127.0.0.1",), datetime.now(UTC))
    file.write_bytes(pair.chain + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("how", ["a file", "what is mounted"])
async def test_renewed_certificates_of_engines(
    engine: StartEngine, tmp_path: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again when their file changes: engines with the new ones are scraped without a restart."""
    file, now = tmp_path / "ca.pem", 0.0
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    old = await engine(page(), tls=issued(file))
    options = replace(QUICK, scheme="https", insecure=False, ca=file if how == "a file" else None)
    client = MetricsClient(options, lambda: now)
    try:
        assert await client.page(f"https://{old.endpoint.hostport}/metrics")
        new = await engine(page(), tls=issued(file))
        url = f"https://{new.endpoint.hostport}/metrics"
        with pytest.raises(ScrapeError, match="no TLS connection"):
            await client.page(url)
        now = LOOK
        assert await client.page(url)
        assert await client.page(url)
    finally:
        await client.close()


async def test_a_renewed_certificate_of_ours(engine: StartEngine, tmp_path: Any) -> None:
    """Half of a pair changes nothing, and is told where a scrape fails of it."""
    servers, ours, key, now = tmp_path / "server.pem", tmp_path / "tls.crt", tmp_path / "tls.key", 0.0
    first, second = (self_signed(("client",), datetime.now(UTC)) for _ in range(2))
    ours.write_bytes(first.chain)
    key.write_bytes(first.key)
    asked = []
    for pair in (first, second):
        context = issued(servers)
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose handshake ends with the verdict
        context.load_verify_locations(cadata=pair.chain.decode())
        asked.append(await engine(page(), tls=context))
    before, after = (f"https://{each.endpoint.hostport}/metrics" for each in asked)
    client = MetricsClient(replace(QUICK, scheme="https", certificate=ours, key=key), lambda: now)
    try:
        assert await client.page(before)
        ours.write_bytes(second.chain)
        now = LOOK
        with pytest.raises(ScrapeError, match="those of before are in use"):
            await client.page(after)
        assert await client.page(before)
        key.write_bytes(second.key)
        now = 2 * LOOK
        assert await client.page(after)
    finally:
        await client.close()
