"""`epp serve` hands its options on, and answers mistakes with an exit status."""

import subprocess
import sys

import pytest

from epp.cli import serve
from epp.errors import ConfigError
from epp.options import ServeOptions


def test_options_reach_the_application(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are printed before anything starts; the application's status is the command's."""
    seen: list[ServeOptions] = []

    def run(options: ServeOptions) -> int:
        seen.append(options)
        assert "warning: --zap-devel has no effect" in capsys.readouterr().err
        return 7

    assert serve.main(["--zap-devel", "", "--endpoints", "127.0.0.1:8000"], run) == 7
    assert seen[0].endpoints == ("127.0.0.1:8000",)


def test_an_unknown_flag_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--grpc-prot=1"], _never) == 2
    assert "unknown flag --grpc-prot; did you mean --grpc-port?" in capsys.readouterr().err


def test_an_unusable_configuration_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def run(options: ServeOptions) -> int:
        options.in_kubernetes(discovery=False)
        return 0

    assert serve.main([], run) == 1
    assert "there are no model servers: name the model servers with --endpoints" in capsys.readouterr().err


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["-v=3", "--help", "stray"], _never) == 0
    assert "--grpc-health-port PORT" in capsys.readouterr().out


def test_reading_the_command_line_does_not_load_grpc() -> None:
    """gRPC must not be there yet when its cipher suites are set."""
    script = "import sys, epp.__main__, epp.cli.serve; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def _never(options: ServeOptions) -> int:
    raise ConfigError("must not run")
