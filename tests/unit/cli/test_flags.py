"""The command line of `epp serve`: Go's spelling, llm-d's flags, KServe's argument vectors."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

import pytest

from epp.cli import flags
from epp.cli.flagtable import BY_SPELLING, FLAGS, camel
from epp.errors import ConfigError
from epp.options import ServeOptions, listen_address

LLM_D = """
grpc-port ha-enable-leader-election drain-timeout grpc-max-recv-msg-size grpc-max-send-msg-size pool-group
pool-namespace pool-name endpoint-selector endpoint-target-ports disable-endpoint-subset-filter emit-endpoint-scores
refresh-metrics-interval refresh-prometheus-metrics-interval metrics-staleness-threshold v zap-devel zap-encoder
zap-log-level zap-stacktrace-level zap-time-encoding tracing health-checking metrics-port grpc-health-port enable-pprof
cert-path enable-cert-reload enable-grpc-stream-metrics secure-serving tls-min-version tls-cipher-suites
metrics-endpoint-auth metrics-client-ca-file metrics-cert-dir config-file config-text allow-experimental-plugins
total-queued-requests-metric total-running-requests-metric kv-cache-usage-percentage-metric lora-info-metric
cache-info-metric model-server-metrics-scheme model-server-metrics-path model-server-metrics-port
model-server-metrics-https-insecure-skip-verify grpc-enable-compression
""".split()  # noqa: SIM905 (48 quoted lines read worse)

CONFIG = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"

KSERVE_PLAIN = [
    *("--pool-name", "llama-inference-pool", "--pool-namespace", "demo", "--zap-encoder", "json"),
    *("--grpc-port", "9002", "--grpc-health-port", "9003", "", "", "", ""),
]
KSERVE_TLS = [
    *KSERVE_PLAIN[:-4],
    *("--enable-cert-reload=true", "--secure-serving=true", "--model-server-metrics-scheme=https"),
    "--cert-path=/var/run/kserve/tls",
]
KSERVE_0_16 = [
    *("--poolName", "llama-inference-pool", "--poolNamespace", "demo", "--zap-encoder", "json"),
    *("--grpcPort", "9002", "--grpcHealthPort", "9003", "--secureServing", "--modelServerMetricsScheme", "https"),
    *("--modelServerMetricsHttpsInsecureSkipVerify=true", "--certPath", "/etc/ssl/certs", "-configText", CONFIG),
]


def parse(*arguments: str, **environ: str) -> ServeOptions:
    return flags.parse(arguments, environ)


SPELLINGS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "two dashes, equals": (["--grpc-port=1"], {"grpc_port": 1}),
    "two dashes, next argument": (["--grpc-port", "1"], {"grpc_port": 1}),
    "one dash, equals": (["-grpc-port=1"], {"grpc_port": 1}),
    "one dash, next argument": (["-grpc-port", "1"], {"grpc_port": 1}),
    "camel case": (["--grpcPort", "1"], {"grpc_port": 1}),
    "camel case, one dash": (["-grpcPort=1"], {"grpc_port": 1}),
    "-v 4": (["-v", "4"], {"verbosity": 4}),
    "-v=4": (["-v=4"], {"verbosity": 4}),
    "--v=4": (["--v=4"], {"verbosity": 4}),
    "--v 4": (["--v", "4"], {"verbosity": 4}),
    "-v4": (["-v4"], {"verbosity": 4}),
    "a value may begin with a dash": (["--v", "-1"], {"verbosity": 2}),
    "a value may have an equals sign": (["--endpoint-selector=a=b,c=d"], {"endpoint_selector": "a=b,c=d"}),
    "a value may be empty": (["--cert-path", "", "--v", "3"], {"cert_path": "", "verbosity": 3}),
    "bare boolean": (["--emit-endpoint-scores"], {"emit_endpoint_scores": True}),
    "boolean off": (["--secure-serving=false"], {"secure_serving": False}),
    "boolean F": (["--secure-serving=F"], {"secure_serving": False}),
    "boolean 1": (["--emit-endpoint-scores=1"], {"emit_endpoint_scores": True}),
    "a boolean doesn't take the next flag": (["--tracing", "--v", "3"], {"tracing": True, "verbosity": 3}),
    "empty arguments": (["", "--grpc-port", "1", "", ""], {"grpc_port": 1}),
    "the last one wins": (["--grpc-port=1", "--grpc-port", "2", "--grpcPort=3"], {"grpc_port": 3}),
    "hexadecimal": (["--v=0x4"], {"verbosity": 4}),
    "octal": (["--v=010"], {"verbosity": 8}),
    "comma list": (["--endpoints", "a:1,b:2"], {"endpoints": ("a:1", "b:2")}),
    "repeated list": (["--endpoints", "a:1, b:2", "--endpoints=c:3,"], {"endpoints": ("a:1", "b:2", "c:3")}),
    "list repeated whole": (["--endpoint-target-ports=1,2"] * 2, {"endpoint_target_ports": (1, 2)}),
    "text keeps its commas and lines": (["--config-text", "a: [1, 2]\nb: 3"], {"config_text": "a: [1, 2]\nb: 3"}),
}

VALUES: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "durations": (["--drain-timeout=1m30s"], {"drain_timeout": 90.0}),
    "no drain": (["--drain-timeout=0"], {"drain_timeout": 0.0}),
    "scrape interval": (["--refresh-metrics-interval=500ms"], {"refresh_metrics_interval": 0.5}),
    "scrape interval too short": (["--refresh-metrics-interval=1ms"], {"refresh_metrics_interval": 0.05}),
    "sizes with B": (["--grpc-max-recv-msg-size=10MiB"], {"grpc_max_recv_msg_size": 10 * 2**20}),
    "decimal sizes": (["--grpc-max-send-msg-size", "25MB"], {"grpc_max_send_msg_size": 25_000_000}),
    "the body's limit moves the message's": (
        ["--max-request-body-bytes=1Gi"],
        {"max_request_body_bytes": 2**30, "grpc_max_recv_msg_size": 2**30 + 4 * 2**20},
    ),
    "never more than gRPC takes": (["--max-request-body-bytes=2047Mi"], {"grpc_max_recv_msg_size": 2**31 - 1}),
    "an empty size is none": (["--grpc-max-send-msg-size="], {"grpc_max_send_msg_size": None}),
    "free ports": (["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"], {"grpc_port": 0, "metrics_port": 0}),
    "body mode in lower case": (["--default-body-mode=buffered"], {"default_body_mode": "BUFFERED"}),
    "body mode with dashes": (["--default-body-mode", "buffered-partial"], {"default_body_mode": "BUFFERED_PARTIAL"}),
    "metrics where it is safe": (["--metrics-endpoint-auth"], {"metrics_bind_address": None}),
    "metrics where one says": (["--metrics-bind-address=10.0.0.1"], {"metrics_bind_address": "10.0.0.1"}),
    "metrics everywhere": (["--metrics-bind-address="], {"metrics_bind_address": ""}),
    "IPv6 in brackets": (["--grpc-bind-address=[::1]"], {"grpc_bind_address": "::1"}),
    "localhost": (["--grpc-bind-address", "localhost"], {"grpc_bind_address": "127.0.0.1"}),
    "TLS 1.3": (["--tls-min-version=VersionTLS13"], {"tls_min_version": "VersionTLS13"}),
    "TLS 1.0 is gRPC's 1.2": (["--tls-min-version=VersionTLS10"], {"tls_min_version": "VersionTLS12"}),
    "cipher suites": (
        ["--tls-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,TLS_AES_128_GCM_SHA256"],
        {"tls_cipher_suites": ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256")},
    ),
    "zap's level": (["--zap-log-level=debug"], {"verbosity": 4}),
    "zap's level as a number": (["--zap-log-level", "5", "-v", "1"], {"verbosity": 5}),
    "errors only": (["--zap-log-level=error"], {"verbosity": 0}),
    "scraping over https": (
        ["--model-server-metrics-scheme=https", "--model-server-metrics-https-insecure-skip-verify=false"],
        {"model_server_metrics_scheme": "https", "model_server_metrics_https_insecure_skip_verify": False},
    ),
    "metric names": (["--lora-info-metric=sglang:lora"], {"lora_info_metric": "sglang:lora"}),
}

ERRORS: dict[str, tuple[Sequence[str], str]] = {
    "unknown, kebab": (["--grpc-prot=1"], "unknown flag --grpc-prot; did you mean --grpc-port?"),
    "unknown, camel": (["--poolNam", "x"], "unknown flag --poolNam; did you mean --poolName?"),
    "unknown, nothing near": (["--zzzzzzzzzzzz"], "epp serve --help lists all flags"),
    "one letter": (["-x"], "unknown flag --x"),
    "stray argument": (["stray"], "'stray' stands alone"),
    "stray after a boolean": (["--secure-serving", "false"], "a boolean takes its value with an equals sign"),
    "two dashes alone": (["--", "--v=2"], "'--' stands alone"),
    "a dash alone": (["-"], "'-' stands alone"),
    "no name": (["--=1"], "'--=1' stands alone"),
    "no value": (["--grpc-port"], "--grpc-port needs a value"),
    "not a number": (["--grpc-port=http"], "--grpc-port: 'http' is no whole number"),
    "an empty number": (["--grpc-port", ""], "--grpc-port: '' is no whole number"),
    "port too high": (["--metrics-port=65536"], "--metrics-port: 65536 is no port: 0 to 65535"),
    "port too low": (["--grpc-health-port=-1"], "--grpc-health-port: -1 is no port"),
    "ports collide": (["--grpc-port=9003"], "must differ"),
    "target port": (["--endpoint-target-ports=8000,x"], "--endpoint-target-ports: 'x'"),
    "target ports": (["--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "at most 8 ports"),
    "not a boolean": (["--tracing=yes"], "--tracing: 'yes' is neither true nor false"),
    "an empty boolean": (["--tracing="], "--tracing: '' is neither true nor false"),
    "not a duration": (["--drain-timeout=30"], "--drain-timeout: '30' is no duration"),
    "negative duration": (["--metrics-staleness-threshold=-1s"], "--metrics-staleness-threshold: '-1s' is negative"),
    "no time at all": (["--refresh-prometheus-metrics-interval=0s"], "must be more than 0"),
    "not a size": (["--grpc-max-recv-msg-size=10KB"], "--grpc-max-recv-msg-size: '10KB' is no number of bytes"),
    "negative size": (["--grpc-max-recv-msg-size=-1Mi"], "is negative"),
    "size too large": (["--grpc-max-recv-msg-size=2Gi"], "more than gRPC can take"),
    "overflowing size": (["--grpc-max-send-msg-size=99E"], "is no number of bytes"),
    "empty body": (["--max-request-body-bytes=0"], "--max-request-body-bytes must be more than 0"),
    "unlimited body": (["--max-request-body-bytes="], "--max-request-body-bytes must be more than 0"),
    "no log file": (["--decision-log-max-files=0"], "--decision-log-max-files must be more than 0"),
    "not a length": (["--decision-log-max-bytes=1K"], "--decision-log-max-bytes: '1K' is no number of bytes"),
    "negative count": (["--decision-log-candidates=-1"], "--decision-log-candidates: -1 is negative"),
    "body mode": (["--default-body-mode=whole"], "--default-body-mode: 'whole' is none of FULL_DUPLEX_STREAMED,"),
    "TLS version": (["--tls-min-version=1.3"], "--tls-min-version: '1.3' is none of VersionTLS10,"),
    "cipher suite": (["--tls-cipher-suites=RC4"], "--tls-cipher-suites: 'RC4' is none of TLS_ECDHE_"),
    "scheme": (["--model-server-metrics-scheme=ftp"], "--model-server-metrics-scheme: 'ftp' is none of http, https"),
    "metrics path": (["--model-server-metrics-path=metrics"], "doesn't begin with a slash"),
    "encoder": (["--zap-encoder=xml"], "--zap-encoder: 'xml' is none of json, console"),
    "level": (["--zap-log-level=loud"], "--zap-log-level: 'loud' is neither a number nor one of debug"),
    "address": (["--grpc-bind-address=here"], "--grpc-bind-address: 'here' does not appear to be an IPv4 or IPv6"),
    "two configurations": (
        ["--config-file=a", "--config-text=b"],
        "--config-file and --config-text exclude",
    ),
    "two pools": (["--pool-name=a", "--endpoint-selector=b"], "--pool-name and --endpoint-selector exclude each other"),
    "readers' certificates without TLS": (["--metrics-client-ca-file=/c"], "needs --metrics-cert-dir"),
    "two lists": (["--endpoints=a:1", "--endpoints-file=b"], "--endpoints and --endpoints-file exclude each other"),
}

WARNINGS: dict[str, tuple[Sequence[str], list[str]]] = {
    "nothing set": ([], []),
    "set to what it would be anyway": (["--grpc-port=9002", "--secure-serving=true", "--enable-cert-reload"], []),
    "Kubernetes": (["--pool-name=a", "--poolName=b", "--ha-enable-leader-election", "--metrics-endpoint-auth"], []),
    "not built": (["--tracing"], ["--tracing has no effect: traces aren't built yet"]),
    "not built and switched off": (["--tracing=false", "--enable-pprof=0"], []),
    "not built and empty": (["--zap-stacktrace-level", "", "--zap-time-encoding="], []),
    "removed": (
        ["--grpc-enable-compression=false"],
        ["--grpc-enable-compression has no effect: gRPC's clients"],
    ),
    "deprecated": (["--cache-info-metric=x"], ["--cache-info-metric is deprecated in favour of engineConfigs"]),
    "deprecated and false": (
        ["--model-server-metrics-https-insecure-skip-verify=false"],
        ["--model-server-metrics-https-insecure-skip-verify is deprecated in favour of the parameters"],
    ),
    "TLS 1.1": (["--tls-min-version=VersionTLS11"], ["--tls-min-version=VersionTLS11: gRPC speaks TLS 1.2 or later"]),
    "suites without TLS 1.2": (
        ["--tls-min-version=VersionTLS13", "--tls-cipher-suites=TLS_RSA_WITH_AES_128_GCM_SHA256"],
        ["--tls-cipher-suites has no effect"],
    ),
    "scrapes too often": (
        ["--refresh-metrics-interval=1ms"],
        ["--refresh-metrics-interval=1ms is too short"],
    ),
    "no health": (["--health-checking=false"], ["--health-checking=false has no effect"]),
    "health": (["--health-checking"], []),
    "a form of log lines": (["--zap-encoder=console"], ["--zap-encoder=console has no effect: log lines are JSON"]),
    "the form of log lines": (["--zap-encoder", "json", "--allow-experimental-plugins"], []),
    "an endpoint twice in a list": (
        ["--endpoints=a:1,b:2,a:1,a:1", "--endpoints=b:2"],
        ["--endpoints: a:1 is listed more than once, and counts once"],
    ),
}


@pytest.mark.parametrize(("arguments", "expected"), [*SPELLINGS.values(), *VALUES.values()], ids=[*SPELLINGS, *VALUES])
def test_arguments_become_options(arguments: Sequence[str], expected: dict[str, Any]) -> None:
    """Every spelling that Go's flag parser takes, and every type of value."""
    options = parse(*arguments)
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_a_mistake_is_an_error_that_names_the_flag(arguments: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(("arguments", "messages"), WARNINGS.values(), ids=WARNINGS)
def test_a_flag_without_effect_says_so_once(arguments: Sequence[str], messages: list[str]) -> None:
    warnings = parse(*arguments).warnings
    assert len(warnings) == len(messages)
    assert all(warning.startswith(message) for warning, message in zip(warnings, messages, strict=True))


def test_kserve_without_tls_leaves_four_empty_arguments() -> None:
    """The preset of KServe 0.20, verbatim, with --config-text appended by its controller."""
    options = parse(*KSERVE_PLAIN, "--config-text", CONFIG)
    assert (options.pool_name, options.pool_namespace) == ("llama-inference-pool", "demo")
    assert (options.grpc_port, options.grpc_health_port, options.config_text) == (9002, 9003, CONFIG)
    assert options.secure_serving
    assert options.cert_path == ""


def test_kserve_with_tls() -> None:
    options = parse(*KSERVE_TLS, "--ha-enable-leader-election", "--config-text", CONFIG, "--tracing=true")
    assert options.secure_serving
    assert options.enable_cert_reload
    assert options.cert_path == "/var/run/kserve/tls"
    assert options.model_server_metrics_scheme == "https"
    assert options.ha_enable_leader_election
    named = [warning.split()[0] for warning in options.warnings]
    assert named == ["--model-server-metrics-scheme", "--tracing"]


def test_kserve_with_extra_arguments_and_the_whole_list_repeated() -> None:
    options = parse(*KSERVE_PLAIN, *KSERVE_TLS, "--metrics-endpoint-auth=false", "-v=4", "--config-text", CONFIG)
    assert (options.verbosity, options.cert_path) == (4, "/var/run/kserve/tls")
    assert options.metrics_host(reviewed=False) == ""


def test_kserve_0_16_spells_in_camel_case() -> None:
    options = parse(*KSERVE_0_16)
    assert (options.pool_name, options.pool_namespace, options.config_text) == ("llama-inference-pool", "demo", CONFIG)
    assert (options.model_server_metrics_scheme, options.cert_path) == ("https", "/etc/ssl/certs")
    assert options.model_server_metrics_https_insecure_skip_verify is True


@pytest.mark.parametrize("spelling", ["--config-text", "-config-text", "--configText", "-configText"])
@pytest.mark.parametrize("glue", ["=", " "])
def test_the_controllers_four_spellings_are_the_same(spelling: str, glue: str) -> None:
    arguments = [f"{spelling}={CONFIG}"] if glue == "=" else [spelling, CONFIG]
    assert parse(*arguments).config_text == CONFIG


@pytest.mark.parametrize(
    ("arguments", "environ", "namespace"),
    [
        ([], {}, "default"),
        ([], {"NAMESPACE": "pod"}, "pod"),
        (["--pool-namespace=flag"], {"NAMESPACE": "pod"}, "flag"),
        (["--pool-namespace="], {"NAMESPACE": "pod"}, "pod"),
        ([], {"NAMESPACE": ""}, "default"),
    ],
)
def test_the_namespace_falls_back_on_the_environment(
    arguments: Sequence[str], environ: dict[str, str], namespace: str
) -> None:
    assert flags.parse(arguments, environ).pool_namespace == namespace


@pytest.mark.parametrize("name", LLM_D)
def test_every_flag_of_llm_d_is_known_in_both_spellings(name: str) -> None:
    assert BY_SPELLING[name] is BY_SPELLING[camel(name)]


def test_no_two_flags_share_a_name_or_a_field() -> None:
    fields = [flag.field for flag in FLAGS if flag.field]
    assert len(set(fields)) == len(fields)
    assert len({flag.name for flag in FLAGS} | {camel(flag.name) for flag in FLAGS}) == len(BY_SPELLING)


def test_every_option_has_a_flag_and_every_value_the_type_it_declares() -> None:
    """`ServeOptions(**values)` is unchecked by the type checker; this is the check."""
    types_of = typing.get_type_hints(ServeOptions)
    assert set(types_of) == {flag.field for flag in FLAGS if flag.field} | {"warnings"}
    options = [parse(), parse("--grpc-max-send-msg-size=1", "--model-server-metrics-https-insecure-skip-verify")]
    for option in options:
        for field in dataclasses.fields(option):
            assert _fits(getattr(option, field.name), types_of[field.name]), field.name


def _fits(value: object, declared: Any) -> bool:
    origin = typing.get_origin(declared)
    if origin is typing.Literal:
        return value in typing.get_args(declared)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(declared))
    if origin is tuple:
        return isinstance(value, tuple) and all(type(item) is typing.get_args(declared)[0] for item in value)
    return type(value) is declared


@pytest.mark.parametrize(
    ("arguments", "discovery", "problem"),
    [
        (["--endpoints=127.0.0.1:8000"], False, None),
        (["--endpoints-file=x.yaml"], False, None),
        ([], True, None),
        (["--pool-name=p"], True, None),
        (["--pool-name=p", "--endpoints=127.0.0.1:8000"], False, None),
        ([], False, "there are no model servers: name the model servers with --endpoints"),
        (["--endpoint-selector=a=b", "--endpoints=127.0.0.1:8000"], False, "from --endpoints and from --endpoint-sel"),
        (["--endpoints=127.0.0.1:8000"], True, "from --endpoints and from dataLayer.discovery of the configuration"),
        (["--endpoints-file=x.yaml"], True, "from --endpoints-file and from dataLayer.discovery"),
    ],
)
def test_model_servers_come_from_exactly_one_place(
    arguments: Sequence[str], discovery: bool, problem: str | None
) -> None:
    options = parse(*arguments)
    if problem is None:
        assert not options.in_kubernetes(discovery=discovery)
        return
    with pytest.raises(ConfigError) as caught:
        options.in_kubernetes(discovery=discovery)
    assert problem in str(caught.value)


@pytest.mark.parametrize("arguments", [["--pool-name=p"], ["--endpoint-selector=a=b"]])
def test_without_any_other_place_they_are_pods(arguments: Sequence[str]) -> None:
    assert parse(*arguments).in_kubernetes(discovery=False)


@pytest.mark.parametrize(
    ("arguments", "reviewed", "host"),
    [
        ([], True, ""),
        ([], False, "127.0.0.1"),
        (["--metrics-endpoint-auth=false"], False, ""),
        (["--metrics-bind-address=10.0.0.1"], False, "10.0.0.1"),
    ],
)
def test_metrics_are_open_to_all_only_where_readers_are_checked_or_nobody_wants_it(
    arguments: Sequence[str], reviewed: bool, host: str
) -> None:
    assert parse(*arguments).metrics_host(reviewed=reviewed) == host


def test_help_lists_every_flag_with_its_default() -> None:
    text = flags.usage()
    assert all(f"-{flag.name}" in text for flag in FLAGS if flag.status != "removed")
    assert "--drain-timeout DURATION            how long to go on serving after SIGTERM (default 30s)\n" in text
    assert "\n\nTLS\n" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], True),
        (["-h"], True),
        (["", "--v=3", "-help", "--unknown"], True),
        (["--config-text", "--help"], False),
        (["--v=3"], False),
        ([], False),
    ],
)
def test_help_is_a_flag_and_not_a_value(arguments: Sequence[str], expected: bool) -> None:
    assert flags.wants_help(arguments) is expected


@pytest.mark.parametrize(
    ("address", "expected"), [("", "[::]:9002"), ("127.0.0.1", "127.0.0.1:9002"), ("::1", "[::1]:9002")]
)
def test_grpc_listens_on_an_address_or_on_all(address: str, expected: str) -> None:
    assert listen_address(address, 9002) == expected
