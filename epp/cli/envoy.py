"""`epp envoy`: prints an Envoy bootstrap for given addresses."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

from epp.envoy.bootstrap import bootstrap, to_yaml
from epp.envoy.options import (
    DEFAULT_BODY_LIMIT,
    AccessLog,
    BodyMode,
    EngineProtocol,
    EnvoyOptions,
    HeaderMode,
    Mode,
    parse_address,
    parse_addresses,
)
from epp.errors import ConfigError
from epp.quantities import parse_bytes, parse_duration

_MODES: dict[str, Any] = {
    "request_header_mode": HeaderMode,
    "request_body_mode": BodyMode,
    "request_trailer_mode": HeaderMode,
    "response_header_mode": HeaderMode,
    "response_body_mode": BodyMode,
    "response_trailer_mode": HeaderMode,
}


def main(arguments: list[str]) -> int:
    """Prints the YAML; returns 0, 1 if it can't be written, or 2 for arguments that can't be used."""
    given = vars(_parser().parse_args(arguments))
    output = given.pop("output")
    try:
        options = EnvoyOptions(**_decoded(given))
    except ConfigError as error:
        print(f"epp envoy: --{error}", file=sys.stderr)
        return 2
    return _write(f"# Made by: epp envoy {shlex.join(arguments)}\n{to_yaml(bootstrap(options))}", output)


def _write(text: str, output: str) -> int:
    if not output:
        print(text, end="")
        return 0
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        print(f"epp envoy: --output {output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("epp envoy", description="Prints an Envoy bootstrap.", allow_abbrev=False)
    add = parser.add_argument
    add("--mode", choices=get_args(Mode), default="standalone", help="docs/envoy.md tells them apart (%(default)s)")
    add("--listen", default="127.0.0.1:8080", help="where clients connect (%(default)s)")
    add("--picker", default="127.0.0.1:9002", help="host:port of the picker; several with commas (%(default)s)")
    add("--observe", default="", help="host:port of a picker that looks on while --picker routes (none)")
    add("--endpoints", default="", help="host:port of the engines, with commas")
    add("--admin", help="host:port of the admin page (none)")
    add("--secure-picker", action="store_true", help="speak TLS to the picker, and to the other")
    add("--picker-ca", metavar="FILE", help="PEM file with the authority of the picker's certificate (any is taken)")
    add("--picker-health-port", type=int, metavar="PORT", help="port of the picker's gRPC health service (no check)")
    add("--failure-mode-allow", default="true", metavar="BOOL", help="serve without the picker (%(default)s)")
    add("--message-timeout", default="5s", metavar="TIME", help="for the picker to answer a message (%(default)s)")
    add("--queue-timeout", default="1h", metavar="TIME", help="the most that the picker may ask for (%(default)s)")
    add("--max-request-body-bytes", default=str(DEFAULT_BODY_LIMIT), metavar="BYTES", help="the picker's (%(default)s)")
    add("--engine-protocol", choices=get_args(EngineProtocol), default="http1", help="(%(default)s)")
    add("--retry-on", default=_default("retry_on"), metavar="LIST", help="Envoy's conditions (%(default)s)")
    add("--access-log", choices=get_args(AccessLog), default="errors", help="on stdout (%(default)s)")
    add("--output", default="", metavar="FILE", help="where to write it (standard output)")
    for name, values in _MODES.items():
        add(_flag(name), choices=get_args(values), help="replaces the mode's own")
    return parser


def _decoded(given: dict[str, Any]) -> dict[str, Any]:
    return given | {
        "listen": parse_address(given["listen"], "listen"),
        "picker": parse_addresses(given["picker"], "picker"),
        "observe": parse_addresses(given["observe"], "observe"),
        "endpoints": parse_addresses(given["endpoints"], "endpoints"),
        "admin": parse_address(given["admin"], "admin") if given["admin"] else None,
        "failure_mode_allow": _boolean(given, "failure_mode_allow"),
        "message_timeout": _number(given, "message_timeout", parse_duration),
        "queue_timeout": _number(given, "queue_timeout", parse_duration),
        "max_request_body_bytes": _number(given, "max_request_body_bytes", parse_bytes),
    }


def _boolean(given: dict[str, Any], name: str) -> bool:
    text = given[name].lower()
    if text not in {"true", "false"}:
        raise ConfigError(f"{_flag(name)[2:]}: {given[name]!r} is neither true nor false")
    return bool(text == "true")


def _number(given: dict[str, Any], name: str, parse: Any) -> Any:
    try:
        return parse(given[name])
    except ValueError as error:
        raise ConfigError(f"{_flag(name)[2:]}: {error}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default(field: str) -> Any:
    return EnvoyOptions.__dataclass_fields__[field].default
