"""The lowest TLS version and the cipher suites, set in the only way that Python's gRPC knows.

gRPC reads the environment variable GRPC_SSL_CIPHER_SUITES, once, while its module is being imported; so nothing here
imports gRPC, and `restrict` comes before anything that does. The variable lists what TLS 1.2 may use; the suites of
TLS 1.3 aren't affected by it. A list of suites that nobody can use without a pre-shared key therefore leaves TLS 1.3.
"""

import os
import sys
from collections.abc import Sequence

from epp.errors import ConfigError

VARIABLE = "GRPC_SSL_CIPHER_SUITES"

TLS13_ONLY = "ECDHE-PSK-CHACHA20-POLY1305"
"""No server without a pre-shared key can use it, so no handshake below TLS 1.3 succeeds."""

TLS12_SUITES = (
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
)
"""Those of Go's names that gRPC's TLS library has too; it knows them by these names."""

TLS13_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")
"""Always on, in Go as here; naming them changes nothing."""

KNOWN_SUITES = TLS12_SUITES + TLS13_SUITES


def cipher_list(min_version: str, suites: Sequence[str]) -> str | None:
    """The value of the variable; None to leave gRPC's own choice.

    Args:
        min_version: one of Go's names, such as `VersionTLS13`, or "".
        suites: any of `KNOWN_SUITES`; empty for gRPC's choice.
    """
    if min_version == "VersionTLS13":
        return TLS13_ONLY
    if not suites:
        return None
    return ":".join(suite for suite in suites if suite in TLS12_SUITES) or TLS13_ONLY


def restrict(min_version: str, suites: Sequence[str]) -> None:
    """Holds gRPC, in this whole process, to these suites and this version; before gRPC is imported.

    Raises:
        ConfigError: gRPC is imported already and would not notice.
    """
    ciphers = cipher_list(min_version, suites)
    if ciphers is None or os.environ.get(VARIABLE) == ciphers:
        return
    if "grpc" in sys.modules:
        raise ConfigError(f"TLS versions and cipher suites are set before gRPC is loaded: set {VARIABLE}={ciphers}")
    os.environ[VARIABLE] = ciphers
