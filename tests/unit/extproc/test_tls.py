"""TLS of the ext_proc port: certificates, their change, and the versions and suites that a client gets."""

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from epp.cli.flags import parse
from epp.errors import ConfigError
from epp.extproc.ciphers import TLS12_SUITES, TLS13_ONLY, VARIABLE, cipher_list, restrict
from epp.extproc.health import HealthService
from epp.extproc.tls import Pair, load, self_signed, server_credentials

NOW = datetime(2026, 1, 1, tzinfo=UTC)
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def write(folder: Path, pair: Pair) -> None:
    (folder / "tls.key").write_bytes(pair.key)
    (folder / "tls.crt").write_bytes(pair.chain)


def pair(name: str = "localhost", *, ecdsa: bool = True) -> Pair:
    return self_signed([name], datetime.now(UTC), ecdsa=ecdsa)


class Handshake:
    """What one TLS client got: its version, suite, protocol and the server's certificate."""

    def __init__(self, port: int, version: ssl.TLSVersion | None = None, ciphers: str = "") -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if ciphers:
            context.set_ciphers(ciphers)
        with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secure:
            self.version = secure.version()
            self.suite = (secure.cipher() or ("",))[0]
            self.protocol = secure.selected_alpn_protocol()
            self.der = secure.getpeercert(binary_form=True) or b""

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.der)

    @property
    def names(self) -> list[str]:
        extension = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return [str(name.value) for name in extension.value]


@asynccontextmanager
async def serving(*arguments: str, report: Callable[[str], None] = print) -> AsyncIterator[int]:
    """A gRPC server in this process, with the credentials that these flags ask for; its port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((HealthService().handler(),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(parse(arguments, {}), report))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@contextmanager
def process(*arguments: str) -> Iterator[int]:
    """The same in a process of its own, which gRPC's cipher suites need."""
    script = str(Path(__file__).with_name("tls_server.py"))
    command = [sys.executable, script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(30)


async def handshake(port: int, version: ssl.TLSVersion | None = None) -> Handshake:
    return await asyncio.to_thread(Handshake, port, version)


async def test_without_files_a_certificate_is_made_up() -> None:
    """It speaks h2, is for localhost and this host, and a gRPC client that trusts it gets through."""
    async with serving() as port:
        seen = await handshake(port)
        assert seen.protocol == "h2"
        assert seen.names == ["localhost", socket.gethostname(), "127.0.0.1", "::1"]
        assert isinstance(seen.certificate.public_key(), EllipticCurvePublicKey)
        root = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(seen.der).encode())
        async with grpc.aio.secure_channel(f"localhost:{port}", root) as channel:
            response = await HealthStub(channel).Check(HealthCheckRequest(service=""), timeout=10)
        assert response.status == HealthCheckResponse.SERVING


@pytest.mark.parametrize("version", [V12, V13])
async def test_tls_1_2_and_1_3_are_both_served_by_default(version: ssl.TLSVersion) -> None:
    async with serving() as port:
        assert (await handshake(port, version)).version == version.name.replace("_", ".")


async def test_no_two_starts_share_a_certificate() -> None:
    async with serving() as one, serving() as other:
        assert (await handshake(one)).der != (await handshake(other)).der


def test_a_made_up_certificate_lasts_and_tolerates_a_slow_clock() -> None:
    certificate = x509.load_pem_x509_certificate(self_signed(["localhost"], NOW).chain)
    assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=3650)


@pytest.mark.parametrize(
    ("suites", "kind"),
    [
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", RSAPublicKey),
        ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", EllipticCurvePublicKey),
    ],
)
async def test_a_made_up_key_fits_the_cipher_suites(suites: str, kind: type[object]) -> None:
    async with serving(f"--tls-cipher-suites={suites}") as port:
        assert isinstance((await handshake(port)).certificate.public_key(), kind)


def test_serving_in_the_clear_needs_no_credentials() -> None:
    assert server_credentials(parse(["--secure-serving=false"], {}), print) is None


async def test_a_changed_certificate_is_served_to_the_next_client(tmp_path: Path) -> None:
    reports: list[str] = []
    write(tmp_path, pair("one.example"))
    async with serving("--cert-path", str(tmp_path), report=reports.append) as port:
        assert (await handshake(port)).names == ["one.example"]
        assert reports == []
        write(tmp_path, pair("two.example", ecdsa=False))
        assert (await handshake(port)).names == ["two.example"]
        assert (await handshake(port)).names == ["two.example"]
    assert reports == [f"new certificate from {tmp_path}"]


async def test_a_certificate_behind_kubernetes_links_is_followed(tmp_path: Path) -> None:
    """A mounted secret changes by one link, `..data`, being replaced by another."""
    for version in ("one.example", "two.example"):
        (tmp_path / version).mkdir()
        write(tmp_path / version, pair(version))
    data = tmp_path / "..data"
    data.symlink_to("one.example")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with serving("--cert-path", str(tmp_path)) as port:
        assert (await handshake(port)).names == ["one.example"]
        (tmp_path / "..next").symlink_to("two.example")
        (tmp_path / "..next").replace(data)
        assert (await handshake(port)).names == ["two.example"]


async def test_an_unusable_change_keeps_the_old_certificate_and_says_so_once(tmp_path: Path) -> None:
    reports: list[str] = []
    write(tmp_path, pair("one.example"))
    async with serving("--cert-path", str(tmp_path), report=reports.append) as port:
        (tmp_path / "tls.key").write_bytes(pair().key)
        for _ in range(3):
            assert (await handshake(port)).names == ["one.example"]
        assert reports == [f"the old certificate stays in use: {tmp_path}: tls.key isn't the key of tls.crt"]
        (tmp_path / "tls.crt").unlink()
        assert (await handshake(port)).names == ["one.example"]
        assert "no usable tls.crt and tls.key" in reports[1]
        write(tmp_path, pair("three.example"))
        assert (await handshake(port)).names == ["three.example"]
    assert len(reports) == 3


async def test_rewriting_the_same_certificate_is_no_news(tmp_path: Path) -> None:
    reports: list[str] = []
    same = pair("one.example")
    write(tmp_path, same)
    async with serving("--cert-path", str(tmp_path), report=reports.append) as port:
        for name in ("tls.crt", "tls.key"):
            (tmp_path / "copy").write_bytes((tmp_path / name).read_bytes())
            (tmp_path / "copy").replace(tmp_path / name)
        assert (await handshake(port)).names == ["one.example"]
    assert reports == []


async def test_without_reload_the_first_certificate_stays(tmp_path: Path) -> None:
    write(tmp_path, pair("one.example"))
    async with serving("--cert-path", str(tmp_path), "--enable-cert-reload=false") as port:
        write(tmp_path, pair("two.example"))
        assert (await handshake(port)).names == ["one.example"]


@pytest.mark.parametrize("broken", ["nothing", "no key", "no certificate", "text", "another key", "an encrypted key"])
def test_unusable_files_end_the_start(tmp_path: Path, broken: str) -> None:
    write(tmp_path, pair())
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    if broken in {"nothing", "no key"}:
        key.unlink()
    if broken in {"nothing", "no certificate"}:
        certificate.unlink()
    if broken == "text":
        certificate.write_text("a certificate\n")
    if broken == "another key":
        key.write_bytes(pair().key)
    if broken == "an encrypted key":
        key.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match=r"tls\.crt") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("version", "suites", "expected"),
    [
        ("", (), None),
        ("VersionTLS12", (), None),
        ("VersionTLS13", (), TLS13_ONLY),
        ("VersionTLS13", TLS12_SUITES, TLS13_ONLY),
        ("", TLS12_SUITES[:2], ":".join(TLS12_SUITES[:2])),
        ("", ("TLS_AES_128_GCM_SHA256", TLS12_SUITES[0]), TLS12_SUITES[0]),
        ("", ("TLS_AES_128_GCM_SHA256",), TLS13_ONLY),
    ],
)
def test_versions_and_suites_become_one_list(version: str, suites: Sequence[str], expected: str | None) -> None:
    assert cipher_list(version, suites) == expected


def test_restricting_too_late_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC is loaded here; nothing to restrict and what is in force already are fine."""
    monkeypatch.delenv(VARIABLE, raising=False)
    restrict("", ())
    with pytest.raises(ConfigError, match=f"before gRPC is loaded: set {VARIABLE}={TLS13_ONLY}"):
        restrict("VersionTLS13", ())
    monkeypatch.setenv(VARIABLE, TLS13_ONLY)
    restrict("VersionTLS13", ())


def test_tls_1_3_as_the_lowest_version_refuses_a_client_of_1_2() -> None:
    with process("--tls-min-version=VersionTLS13") as port:
        assert Handshake(port, V13).version == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Handshake(port, V12)
        assert Handshake(port).version == "TLSv1.3"


def test_tls_1_2_as_the_lowest_version_serves_both() -> None:
    with process("--tls-min-version=VersionTLS12") as port:
        assert [Handshake(port, version).version for version in (V12, V13)] == ["TLSv1.2", "TLSv1.3"]


@pytest.mark.parametrize(
    ("suite", "openssl", "other"),
    [
        ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256"),
    ],
)
def test_a_client_of_tls_1_2_gets_a_listed_suite_or_none(suite: str, openssl: str, other: str) -> None:
    with process(f"--tls-cipher-suites={suite},TLS_AES_128_GCM_SHA256") as port:
        assert Handshake(port, V12).suite == openssl
        with pytest.raises((ssl.SSLError, ConnectionError)):
            Handshake(port, V12, other)
        assert Handshake(port, V13).version == "TLSv1.3"


def test_grpc_knows_every_suite_that_we_accept() -> None:
    """It ignores unknown names, and fails to listen if none is left; so each is tried alone."""
    with _servers([f"--tls-cipher-suites={suite}" for suite in TLS12_SUITES]) as ports:
        assert len(ports) == len(TLS12_SUITES)


@contextmanager
def _servers(arguments: Sequence[str]) -> Iterator[list[int]]:
    if not arguments:
        yield []
        return
    with process(arguments[0]) as port, _servers(arguments[1:]) as ports:
        yield [port, *ports]
