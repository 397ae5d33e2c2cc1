"""The command line of `epp serve`, read by Go's rules, so that arguments written for llm-d's picker work here.

One dash or two, kebab case or camel case, `--flag=value` or `--flag value`, a boolean bare or `=false`, empty arguments
ignored, the last one wins. What llm-d knows and we don't do is accepted, and says so.
"""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from epp.cli.flagtable import BY_SPELLING, FLAGS, GROUPS, Flag
from epp.cli.flagtypes import BOOL, INT
from epp.errors import ConfigError
from epp.options import ServeOptions

Given = Mapping[Flag, Any]
"""The flags that were set, with their values."""

_HELP_COLUMN = 38
_MESSAGE_MARGIN = 4 * 1024 * 1024
_SHORTEST_SCRAPE = 0.05
_EXCLUSIVE = (("config_file", "config_text"), ("pool_name", "endpoint_selector"), ("endpoints", "endpoints_file"))
_POSITIVE = (
    "max_request_body_bytes",
    "refresh_prometheus_metrics_interval",
    "decision_log_max_bytes",
    "decision_log_max_files",
)
_MOST_TARGET_PORTS = 8  # as in an InferencePool


def wants_help(arguments: Sequence[str]) -> bool:
    """Whether `--help` or `-h` is among the arguments, and not the value of a flag.

    Raises:
        ConfigError: an argument before it is no flag that we know.
    """
    return any(flag is None for flag, _ in _settings(arguments))


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> ServeOptions:
    """The options that the arguments amount to.

    Args:
        arguments: without the program's name.
        environ: of which NAMESPACE is the default of `--pool-namespace`.

    Raises:
        ConfigError: a flag is unknown, a value can't be read, or flags contradict each other.
    """
    given = _read(arguments)
    values = {flag.field: given.get(flag, _default(flag)) for flag in FLAGS if flag.field}
    _check(values)
    _derive(values, given, environ)
    return ServeOptions(**values, warnings=tuple(chain(_notes(given), _remarks(values, given), _doubles(arguments))))


def usage() -> str:
    """All flags by group, each with its type, its default and what it does."""
    lines = ["usage: epp [serve] [FLAGS]"]
    for group, flags in GROUPS.items():
        lines += ["", group, *(_help(flag) for flag in flags if flag.status != "removed")]
    return "\n".join(lines)


def _help(flag: Flag) -> str:
    left = f"  {'-' if len(flag.name) == 1 else '--'}{flag.name} {flag.kind.label}".rstrip()
    column = f"{left:{_HELP_COLUMN}}" if len(left) < _HELP_COLUMN else f"{left}\n{'':{_HELP_COLUMN}}"
    if flag.status == "accepted":
        return f"{column}{flag.help} (no effect: {flag.note})"
    return f"{column}{flag.help}" + (f" (default {flag.default})" if flag.default else "")


def _settings(arguments: Sequence[str]) -> Iterator[tuple[Flag | None, str]]:
    """Pairs of a flag and the text of its value, in order; the flag is None where help is asked for."""
    rest = iter(arguments)
    for argument in rest:
        if not argument:
            continue
        name, has_value, text = argument.removeprefix("-").removeprefix("-").partition("=")
        if not argument.startswith("-") or not name:
            raise ConfigError(f"{argument!r} stands alone: every argument is a flag or its value{_hint(argument)}")
        if name in {"h", "help"}:
            yield None, ""
            continue
        flag, glued = _find(name, single=not argument.startswith("--"))
        if glued or has_value:
            yield flag, glued or text
        elif flag.kind is BOOL:
            yield flag, "true"
        else:
            yield flag, _next(rest, flag)


def _next(rest: Iterator[str], flag: Flag) -> str:
    for text in rest:
        return text
    raise ConfigError(f"--{flag.name} needs a value")


def _hint(argument: str) -> str:
    return " (a boolean takes its value with an equals sign)" if argument.lower() in {"true", "false", "0", "1"} else ""


def _find(name: str, *, single: bool) -> tuple[Flag, str]:
    """The flag of that name, and the value that is glued to it, as in `-v4`."""
    flag = BY_SPELLING.get(name)
    if flag is not None:
        return flag, ""
    short = BY_SPELLING.get(name[0])
    if single and short is not None and short.kind is INT and name[1:].isdecimal():
        return short, name[1:]
    nearest = difflib.get_close_matches(name, BY_SPELLING, n=1, cutoff=0.5)
    hint = f"; did you mean --{nearest[0]}?" if nearest else "; epp serve --help lists all flags"
    raise ConfigError(f"unknown flag --{name}{hint}")


def _read(arguments: Sequence[str]) -> Given:
    given: dict[Flag, Any] = {}
    for flag, text in _settings(arguments):
        if flag is None:
            continue
        try:
            value = flag.kind.parse(text)
        except ValueError as error:
            raise ConfigError(f"--{flag.name}: {error}") from None
        # KServe's samples repeat the whole list of arguments: a list has each member once.
        given[flag] = tuple(dict.fromkeys((*given.get(flag, ()), *value))) if flag.kind.many else value
    return given


def _default(flag: Flag) -> Any:
    return None if flag.default is None else flag.kind.parse(flag.default)


def _derive(values: dict[str, Any], given: Given, environ: Mapping[str, str]) -> None:
    """Enters what follows from other flags or from the environment."""
    level = given.get(BY_SPELLING["zap-log-level"])
    verbosity = values["verbosity"] if level is None else level
    values["verbosity"] = 2 if verbosity < 0 else verbosity  # llm-d does this to negative values
    values["pool_namespace"] = values["pool_namespace"] or environ.get("NAMESPACE") or "default"
    values["refresh_metrics_interval"] = max(values["refresh_metrics_interval"], _SHORTEST_SCRAPE)
    if values["tls_min_version"] in {"VersionTLS10", "VersionTLS11"}:
        values["tls_min_version"] = "VersionTLS12"
    if values["grpc_max_recv_msg_size"] is None:
        # A body that is just too long for us is answered with 413; one too long for gRPC breaks the stream.
        values["grpc_max_recv_msg_size"] = min(values["max_request_body_bytes"] + _MESSAGE_MARGIN, 2**31 - 1)


def _check(values: Mapping[str, Any]) -> None:
    """Raises ConfigError for flags that contradict each other, and for values that make no sense."""
    for one, other in _EXCLUSIVE:
        if values[one] and values[other]:
            raise ConfigError(f"--{_flag(one)} and --{_flag(other)} exclude each other")
    ports = [values[name] for name in ("grpc_port", "grpc_health_port", "metrics_port") if values[name]]
    if len(set(ports)) < len(ports):
        # Linux would let two servers share a port, and give each a part of the connections.
        raise ConfigError("--grpc-port, --grpc-health-port and --metrics-port must differ")
    if len(values["endpoint_target_ports"]) > _MOST_TARGET_PORTS:
        raise ConfigError(f"--endpoint-target-ports: at most {_MOST_TARGET_PORTS} ports")
    if values["metrics_client_ca_file"] and not values["metrics_cert_dir"]:
        raise ConfigError("--metrics-client-ca-file needs --metrics-cert-dir: without TLS nobody shows a certificate")
    for name in _POSITIVE:
        if not values[name]:
            raise ConfigError(f"--{_flag(name)} must be more than 0")


def _flag(field: str) -> str:
    return field.replace("_", "-")


def _notes(given: Given) -> Iterator[str]:
    """A warning for every flag that was set and whose row in the table has something to say to that."""
    for flag, value in given.items():
        if flag.status == "removed" or (flag.status == "accepted" and value):
            yield f"--{flag.name} has no effect: {flag.note}"  # nor is one expected where a feature is switched off
        elif flag.status == "built" and flag.note and value not in {"", None}:
            yield f"--{flag.name} is {flag.note}"


def _doubles(arguments: Sequence[str]) -> Iterator[str]:
    """A warning for every member that one list has twice; a whole list that is repeated is meant as one."""
    for flag, text in _settings(arguments):
        if flag is not None and flag.kind.many:
            for member, count in Counter(flag.kind.parse(text)).items():
                if count > 1:
                    yield f"--{flag.name}: {member} is listed more than once, and counts once"


def _remarks(values: Mapping[str, Any], given: Given) -> Iterator[str]:
    """Warnings that depend on what a value is."""
    version = given.get(BY_SPELLING["tls-min-version"])
    if version in {"VersionTLS10", "VersionTLS11"}:
        yield f"--tls-min-version={version}: gRPC speaks TLS 1.2 or later, so it is 1.2"
    if version == "VersionTLS13" and values["tls_cipher_suites"]:
        yield "--tls-cipher-suites has no effect: it is for TLS 1.2, which --tls-min-version=VersionTLS13 rules out"
    if given.get(BY_SPELLING["health-checking"]) is False:
        yield "--health-checking=false has no effect: gRPC health is always on the ext_proc port, too"
    if given.get(BY_SPELLING["zap-encoder"]) == "console":
        yield "--zap-encoder=console has no effect: log lines are JSON"
    interval = given.get(BY_SPELLING["refresh-metrics-interval"], _SHORTEST_SCRAPE)
    if interval < _SHORTEST_SCRAPE:
        yield f"--refresh-metrics-interval={interval * 1000:g}ms is too short: it is 50ms"
