"""TLS of the ext_proc port: a certificate from files that may change, or one made up at start.

gRPC asks for the certificate at every handshake, so a look at the files then takes the place of watching them. What
TLS version and which cipher suites are allowed is settled before gRPC is loaded: see `ciphers`.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from epp.errors import ConfigError
from epp.options import ServeOptions

CERTIFICATE, KEY = "tls.crt", "tls.key"
_VALID = timedelta(days=3650)
_SKEW = timedelta(days=1)  # how far behind a client's clock may be


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and the certificate chain that belongs to it, both PEM."""

    key: bytes
    chain: bytes


def server_credentials(options: ServeOptions, report: Callable[[str], None]) -> grpc.ServerCredentials | None:
    """Credentials for a grpc.aio server, whose ALPN is gRPC's own, `h2`; None if it is to serve in the clear.

    Args:
        options: `secure_serving`, `cert_path`, `enable_cert_reload` and `tls_cipher_suites` are used.
        report: told, in a thread of gRPC's, of a new certificate, and of one that can't be used; the old one stays.

    Raises:
        ConfigError: the files in `cert_path` are missing, unreadable or don't belong together.
    """
    if not options.secure_serving:
        return None
    if not options.cert_path:
        ecdsa = not options.tls_cipher_suites or any("_ECDSA_" in suite for suite in options.tls_cipher_suites)
        pair = self_signed(("localhost", socket.gethostname(), "127.0.0.1", "::1"), datetime.now(UTC), ecdsa=ecdsa)
        return grpc.ssl_server_credentials([(pair.key, pair.chain)])
    folder = Path(options.cert_path)
    if not options.enable_cert_reload:
        pair = load(folder)
        return grpc.ssl_server_credentials([(pair.key, pair.chain)])
    reloading = _Reloading(folder, report)
    return grpc.dynamic_ssl_server_credentials(reloading.current(), reloading.fetch)


def self_signed(names: Sequence[str], now: datetime, *, ecdsa: bool = True) -> Pair:
    """A certificate for these host names and IP addresses that nobody else vouches for, valid for ten years.

    Args:
        names: subject alternative names.
        now: with a time zone.
        ecdsa: a P-256 key; otherwise RSA, for clients that are held to RSA's cipher suites.
    """
    key = ec.generate_private_key(ec.SECP256R1()) if ecdsa else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "epp, self-signed")])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(pem, certificate.public_bytes(Encoding.PEM))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def load(folder: Path) -> Pair:
    """The pair in `tls.crt` and `tls.key`.

    Raises:
        ConfigError: one is missing or unreadable, or the key isn't the certificate's.
    """
    try:
        pair = Pair((folder / KEY).read_bytes(), (folder / CERTIFICATE).read_bytes())
        certificate, *_ = x509.load_pem_x509_certificates(pair.chain)
        if load_pem_private_key(pair.key, None).public_key() != certificate.public_key():
            raise ConfigError(f"{folder}: {KEY} isn't the key of {CERTIFICATE}")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{folder}: no usable {CERTIFICATE} and {KEY}: {error}") from error
    return pair


class _Reloading:
    """The pair in a folder, looked at again whenever the files aren't those of last time."""

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder = folder
        self._report = report
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._pair = load(folder)

    def __repr__(self) -> str:
        return f"<certificate in {self._folder}>"

    def current(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self._pair.key, self._pair.chain)])

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC calls at a handshake, in one of its threads: a new configuration, or None for no change."""
        with self._lock:
            stamp = self._look()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            try:
                pair = load(self._folder)
            except ConfigError as error:
                self._report(f"the old certificate stays in use: {error}")
                return None
            if pair == self._pair:
                return None
            self._pair = pair
            self._report(f"new certificate from {self._folder}")
            return self.current()

    def _look(self) -> tuple[object, ...]:
        """Changes when a file does, be it written, replaced or, as Kubernetes does, reached by another link."""
        return tuple(_stamp(self._folder / name) for name in (CERTIFICATE, KEY))


def _stamp(file: Path) -> object:
    try:
        status = file.stat()
    except OSError as error:
        return error.errno
    return status.st_ino, status.st_size, status.st_mtime_ns
