"""What an Envoy bootstrap depends on: addresses, the way the picker is asked, and the limits."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from epp.errors import ConfigError

Mode = Literal["standalone", "full-duplex", "original-dst"]
BodyMode = Literal["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"]
HeaderMode = Literal["SEND", "SKIP"]
EngineProtocol = Literal["http1", "http2"]
AccessLog = Literal["none", "errors", "all"]

MIB = 1 << 20
DEFAULT_BODY_LIMIT = 32 * MIB
MOST_BODY_BYTES = 1 << 30
BUFFER_MARGIN = 1 * MIB
"""How far a body may pass the picker's limit and still reach it, so that the picker says why it refuses; in bytes."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?\Z")


class Address(NamedTuple):
    """A host, which is an IP address or a DNS name, and a port."""

    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """Whether the host needs no look-up."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """Everything that tells one bootstrap from another.

    Attributes:
        mode: `standalone` buffers the request and balances by `override_host`; `full-duplex` is what gateways do;
            `original-dst` is llm-d's standalone chart.
        listen: where clients connect; port 0 takes a free one.
        picker: the addresses of the picker, one or several replicas.
        observe: the addresses of a picker that looks on while the first one routes (docs/decision-log.md).
        endpoints: the engines; may be empty in `original-dst` alone, which has no list of them.
        admin: where Envoy's admin page listens, or None for no admin page.
        secure_picker: speak TLS to the picker (its certificate isn't checked unless `picker_ca` names a file), and to
            the one that looks on.
        picker_ca: a PEM file with the authority that signed the picker's certificate.
        picker_health_port: the port with the picker's gRPC health service, or None for no health check.
        failure_mode_allow: serve without the picker where it can't be reached.
        message_timeout: how long the picker may take for one message before it counts as failed; seconds. The
            picker may ask for more, up to `queue_timeout`.
        queue_timeout: how long the picker may hold a request in its queue; seconds.
        max_request_body_bytes: the picker's --max-request-body-bytes; Envoy's own limit is this and a margin.
        engine_protocol: `http2` for engines that speak gRPC or HTTP/2 without TLS.
        retry_on: Envoy's conditions for another attempt at another engine; empty for none. Request bodies that are
            streamed to the picker are never sent again.
        access_log: what is written to stdout, as one JSON object a request.
        request_body_mode, response_body_mode, request_header_mode, response_header_mode, request_trailer_mode,
            response_trailer_mode: replace what the mode sets; None leaves it.
    """

    listen: Address
    picker: tuple[Address, ...]
    endpoints: tuple[Address, ...] = ()
    observe: tuple[Address, ...] = ()
    mode: Mode = "standalone"
    admin: Address | None = None
    secure_picker: bool = False
    picker_ca: str | None = None
    picker_health_port: int | None = None
    failure_mode_allow: bool = True
    message_timeout: float = 5.0
    queue_timeout: float = 3600.0
    max_request_body_bytes: int = DEFAULT_BODY_LIMIT
    engine_protocol: EngineProtocol = "http1"
    retry_on: str = "connect-failure,refused-stream,reset-before-request"
    access_log: AccessLog = "errors"
    request_header_mode: HeaderMode | None = None
    request_body_mode: BodyMode | None = None
    request_trailer_mode: HeaderMode | None = None
    response_header_mode: HeaderMode | None = None
    response_body_mode: BodyMode | None = None
    response_trailer_mode: HeaderMode | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode: {self.mode!r} is not one of {', '.join(get_args(Mode))}")
        if not self.picker:
            raise ConfigError("picker: no address; give at least one host:port")
        if not self.endpoints and self.mode != "original-dst":
            raise ConfigError(f"endpoints: none; mode {self.mode} balances over a list, give host:port,host:port")
        if not 0 < self.max_request_body_bytes <= MOST_BODY_BYTES:
            raise ConfigError(
                f"max-request-body-bytes: {self.max_request_body_bytes} is outside 1..{MOST_BODY_BYTES}; "
                "Envoy holds each body in memory"
            )
        if self.message_timeout <= 0:
            raise ConfigError(f"message-timeout: {self.message_timeout} is not a positive number of seconds")

    @property
    def buffer_bytes(self) -> int:
        """The longest request body that Envoy buffers."""
        return self.max_request_body_bytes + BUFFER_MARGIN


def parse_address(text: str, place: str) -> Address:
    """Reads `host:port` or `[ipv6]:port`.

    Raises:
        ConfigError: naming `place`, when there is no port or the host can't be one.
    """
    host, colon, port = text.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{place}: {text!r} is not host:port; an example is 127.0.0.1:8000")
    address = Address(host, int(port))
    if bracketed != (":" in host) or (bracketed and not address.is_ip) or not (bracketed or _HOST.match(host)):
        raise ConfigError(f"{place}: {text!r} has no host that can be looked up; IPv6 is written [::1]:8000")
    return address


def parse_addresses(text: str, place: str) -> tuple[Address, ...]:
    """Reads a list with commas; an entry that occurs twice counts once.

    Raises:
        ConfigError: naming `place` and the entry.
    """
    entries = [part for part in text.split(",") if part.strip()]
    return tuple(dict.fromkeys(parse_address(part, f"{place}[{i}]") for i, part in enumerate(entries)))
