"""The bootstraps that `epp envoy` prints: Envoy's schema and the real binary take them; bad input says what to do."""

import asyncio
import shlex
import subprocess
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf.json_format import ParseDict

from epp.cli.envoy import main
from epp.envoy.bootstrap import bootstrap, to_yaml
from epp.envoy.filters import processing_mode
from epp.envoy.options import Address, EnvoyOptions, parse_address, parse_addresses
from epp.envoy.process import LOOPBACK, EnvoyError, EnvoyProcess, find_envoy
from epp.errors import ConfigError

STANDALONE = Path(__file__).parents[2] / "config" / "standalone"
MODES = ("standalone", "full-duplex", "original-dst")
EXTENSIONS = (
    "access_loggers.filters.cel.v3.cel",
    "access_loggers.stream.v3.stream",
    "clusters.dns.v3.dns_cluster",
    "filters.http.ext_proc.v3.ext_proc",
    "filters.http.header_mutation.v3.header_mutation",
    "filters.http.router.v3.router",
    "filters.network.http_connection_manager.v3.http_connection_manager",
    "load_balancing_policies.least_request.v3.least_request",
    "load_balancing_policies.override_host.v3.override_host",
    "resource_monitors.downstream_connections.v3.downstream_connections",
    "retry.host.previous_hosts.v3.previous_hosts",
    "transport_sockets.raw_buffer.v3.raw_buffer",
    "transport_sockets.tls.v3.tls",
    "upstreams.http.v3.http_protocol_options",
)
ENGINES = (Address("10.0.0.1", 8000), Address("10.0.0.2", 8000))
PLAIN = EnvoyOptions(listen=LOOPBACK, picker=(Address("127.0.0.1", 9002),), endpoints=ENGINES)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "names": {"picker": (Address("picker", 9002),), "endpoints": (Address("engine-1", 8000), Address("::1", 8000))},
    "replicas-with-health": {"picker": (Address("10.0.0.8", 1), Address("10.0.0.9", 1)), "picker_health_port": 9003},
    "observed": {"observe": (Address("10.0.0.9", 9002),), "secure_picker": True, "picker_health_port": 9003},
    "secure": {"secure_picker": True, "picker_health_port": 9003},
    "closed": {"failure_mode_allow": False, "retry_on": "", "access_log": "none", "admin": LOOPBACK},
    "http2-engines": {"engine_protocol": "http2", "access_log": "all"},
    "streamed": {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED", "request_trailer_mode": "SEND"},
    "partial": {"request_body_mode": "BUFFERED_PARTIAL", "response_body_mode": "BUFFERED"},
    "headers-only": {"request_body_mode": "NONE", "response_header_mode": "SKIP", "response_trailer_mode": "SKIP"},
    "duplex-request": {"request_body_mode": "FULL_DUPLEX_STREAMED", "response_body_mode": "NONE"},
}
CASES = [pytest.param(m, v, id=f"{m}-{name}") for m in MODES for name, v in VARIANTS.items()]


@pytest.fixture(scope="module", autouse=True)
def _known_types() -> None:
    """Protobuf resolves an Any only to a type that has been imported."""
    for name in EXTENSIONS:
        import_module(f"envoy.extensions.{name}_pb2")


def run_envoy(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([find_envoy(), *arguments], capture_output=True, text=True, timeout=60, check=False)


def printed(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("mode", "changes"), CASES)
def test_every_variant_is_a_bootstrap_of_envoys_schema(mode: Any, changes: dict[str, Any]) -> None:
    """Each field exists, and has the type that Envoy's protobufs give it."""
    options = replace(PLAIN, mode=mode, **changes)
    message = ParseDict(yaml.safe_load(to_yaml(bootstrap(options))), Bootstrap())
    assert [cluster.name for cluster in message.static_resources.clusters][1] == "picker"
    assert message.HasField("admin") == (options.admin is not None)


@pytest.mark.parametrize("mode", MODES)
def test_a_misspelt_field_is_noticed(mode: Any) -> None:
    """The schema check above does fail for a field that Envoy doesn't know."""
    data = bootstrap(replace(PLAIN, mode=mode))
    data["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["stat_prefixx"] = "a"
    with pytest.raises(Exception, match="stat_prefixx"):
        ParseDict(data, Bootstrap())


@pytest.mark.e2e
@pytest.mark.parametrize(("mode", "changes"), CASES)
def test_the_real_envoy_takes_every_variant(mode: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    """`envoy --mode validate` finds nothing wrong, and warns of nothing."""
    config = tmp_path / "envoy.yaml"
    config.write_text(to_yaml(bootstrap(replace(PLAIN, mode=mode, **changes))))
    done = run_envoy("--mode", "validate", "--log-level", "warning", "-c", config)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("mode", MODES)
def test_the_checked_in_bootstraps_are_what_their_command_prints(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file in config/standalone names its command on the first line, and is that command's output."""
    text = (STANDALONE / f"envoy-{mode}.yaml").read_text()
    command = text.splitlines()[0].removeprefix("# Made by: epp envoy ")
    assert f"--mode {mode} " in command
    assert printed(command, capsys) == text


def test_a_file_is_written_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An init container has no shell; a file that can't be written is an error."""
    file = tmp_path / "envoy.yaml"
    assert printed(f"--mode original-dst --output {file}", capsys) == ""
    assert yaml.safe_load(file.read_text())["static_resources"]["clusters"]
    assert main(["--mode", "original-dst", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"epp envoy: --output {tmp_path}: Is a directory\n"


@pytest.mark.e2e
@pytest.mark.parametrize("mode", MODES)
def test_the_real_envoy_takes_the_checked_in_bootstraps(mode: str) -> None:
    """`envoy --mode validate` finds nothing wrong with them, and warns of nothing."""
    done = run_envoy("--mode", "validate", "--log-level", "warning", "-c", STANDALONE / f"envoy-{mode}.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_compose_and_its_bootstraps_name_the_same_engines_and_ports() -> None:
    """The picker and Envoy get the same list; every name is a service; published ports are listened on."""
    services = yaml.safe_load((STANDALONE / "docker-compose.yaml").read_text())["services"]
    engines = [name for name in services if name.startswith("engine-")]
    listed = next(a for a in services["picker"]["command"] if a.startswith("--endpoints=")).partition("=")[2]
    assert listed == ",".join(f"{name}:8000" for name in engines)
    assert all(services[name]["command"][:5] == ["engine", "--host", "0.0.0.0", "--port", "8000"] for name in engines)
    for mode in MODES:
        command = (STANDALONE / f"envoy-{mode}.yaml").read_text().splitlines()[0]
        assert f"--endpoints {listed}" in command
        assert "--picker picker:9002" in command
        assert "--listen 0.0.0.0:8080" in command
    assert services["envoy"]["ports"] == ["127.0.0.1:8080:8080"]


@pytest.mark.parametrize(
    ("mode", "changes", "expected"),
    [
        ("standalone", {}, "SEND BUFFERED SKIP SEND NONE SEND"),
        ("full-duplex", {}, "SEND FULL_DUPLEX_STREAMED SEND SEND FULL_DUPLEX_STREAMED SEND"),
        ("original-dst", {}, "SEND FULL_DUPLEX_STREAMED SEND SEND FULL_DUPLEX_STREAMED SEND"),
        ("standalone", {"response_trailer_mode": "SKIP"}, "SEND BUFFERED SKIP SEND NONE SKIP"),
        ("standalone", {"request_body_mode": "FULL_DUPLEX_STREAMED"}, "SEND FULL_DUPLEX_STREAMED SEND SEND NONE SEND"),
        ("full-duplex", {"response_body_mode": "NONE"}, "SEND FULL_DUPLEX_STREAMED SEND SEND NONE SEND"),
    ],
)
def test_what_is_sent_to_the_picker(mode: Any, changes: dict[str, Any], expected: str) -> None:
    """The mode's own settings, with what the options replace; full duplex always has its trailers."""
    assert " ".join(processing_mode(replace(PLAIN, mode=mode, **changes)).values()) == expected


@pytest.mark.parametrize("mode", ["standalone", "full-duplex"])
def test_routing_headers_are_stripped_before_the_picker_is_asked(mode: Any) -> None:
    """In the chain of ordinary requests and in that of upgrades alike."""
    listener = bootstrap(replace(PLAIN, mode=mode))["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for chain in (manager["http_filters"], manager["upgrade_configs"][0]["filters"]):
        assert [f["name"].rpartition(".")[2] for f in chain] == ["header_mutation", "ext_proc", "router"]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        (" engine-1:8000 ", Address("engine-1", 8000)),
        ("a.b.svc.cluster.local:65535", Address("a.b.svc.cluster.local", 65535)),
        ("[::1]:0", Address("::1", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    """Host and port, and back."""
    assert parse_address(text, "listen") == address
    assert str(address) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "8000", ":8000", "host", "host:", "host:65536", "host:-1", "::1:80", "[host]:80", "a b:80", "http://a:80"],
)
def test_what_is_no_address(text: str) -> None:
    """The error names the place."""
    with pytest.raises(ConfigError, match=r"endpoints\[1\]"):
        parse_addresses(f"a:1,{text or '?'}", "endpoints")


@pytest.mark.parametrize(
    ("arguments", "place", "remedy"),
    [
        ("", "--endpoints", "host:port,host:port"),
        ("--endpoints a", "--endpoints[0]", "127.0.0.1:8000"),
        ("--endpoints a:1 --picker ''", "--picker", "host:port"),
        ("--endpoints a:1 --listen x", "--listen", "127.0.0.1:8000"),
        ("--endpoints a:1 --admin x", "--admin", "127.0.0.1:8000"),
        ("--endpoints a:1 --failure-mode-allow=maybe", "--failure-mode-allow", "true"),
        ("--endpoints a:1 --message-timeout 5", "--message-timeout", "30s"),
        ("--endpoints a:1 --message-timeout 0", "--message-timeout", "positive"),
        ("--endpoints a:1 --max-request-body-bytes 32Q", "--max-request-body-bytes", "32Mi"),
        ("--endpoints a:1 --max-request-body-bytes 2Gi", "--max-request-body-bytes", "1073741824"),
        ("--endpoints a:1 --max-request-body-bytes 0", "--max-request-body-bytes", "1..1073741824"),
    ],
)
def test_bad_arguments(arguments: str, place: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, and one line that names the flag and what it takes."""
    assert main(shlex.split(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"epp envoy: {place}")
    assert remedy in said.err
    assert said.err.count("\n") == 1


def test_a_list_of_engines_is_not_needed_where_the_picker_names_any(capsys: pytest.CaptureFixture[str]) -> None:
    """The chart's Envoy has no list of engines."""
    text = printed("--mode original-dst", capsys)
    assert yaml.safe_load(text)["static_resources"]["clusters"][0]["type"] == "ORIGINAL_DST"


@pytest.mark.e2e
async def test_a_process_takes_free_ports_and_ends() -> None:
    """Two at once don't meet; the addresses are real ones; after the block the process is gone."""
    async with EnvoyProcess(PLAIN) as one, EnvoyProcess(PLAIN, concurrency=2) as other:
        assert len({one.address, other.address, one.admin, other.admin}) == 4
        assert (await one.stats("^server.concurrency$"), await other.stats("^server.concurrency$")) == (
            {"server.concurrency": 1},
            {"server.concurrency": 2},
        )
        with pytest.raises(EnvoyError, match="404"):
            await one.admin_page("/nothing")
        assert one.alive
    assert not one.alive
    with pytest.raises(EnvoyError, match="admin page"):
        await one.admin_page("/ready")


@pytest.mark.e2e
async def test_an_envoy_that_cant_start_shows_its_log() -> None:
    """A port that is taken, as an example."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        taken = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(EnvoyError, match="Address already in use"):
            await EnvoyProcess(replace(PLAIN, admin=taken)).__aenter__()


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_wrong_binary(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$EPP_ENVOY is believed, and when it is wrong the error says so."""
    monkeypatch.setenv("EPP_ENVOY", str(tmp_path / name))
    with pytest.raises(ConfigError, match="EPP_ENVOY"):
        find_envoy()


def test_the_binary_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$EPP_ENVOY comes before the package."""
    binary = tmp_path / "envoy"
    binary.touch(mode=0o755)
    monkeypatch.setenv("EPP_ENVOY", str(binary))
    assert find_envoy() == binary
