"""`epp doctor`: what is wrong with a pool or a KServe service, and what to do about it.

From inside or outside of the cluster: the API server's word on pool, routes, pods and rights; the model servers' ports,
metrics and models; the picker's health, certificate and lease; an Envoy's settings. docs/doctor.md has every check.
"""

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from epp.cli.flagtypes import PORTS
from epp.doctor.examine import Options, examine
from epp.doctor.findings import Findings
from epp.doctor.target import Wanted
from epp.errors import ConfigError
from epp.kube.access import Access, find, from_files
from epp.kube.client import Api
from epp.kube.selectors import parse_selector
from epp.quantities import parse_duration

T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Prints the findings; 0, 1 if something is broken, 2 if it can't begin."""
    given = _parser().parse_args(arguments)
    try:
        access = _access(given.context, os.environ)
        options = _options(given, access)
    except ConfigError as error:
        print(f"epp doctor: {error}", file=sys.stderr)
        return 2
    findings = Findings()
    target = asyncio.run(_run(access, findings, options))
    print(findings.as_json(target) if given.json else findings.as_text(_width()))
    return 1 if findings.count("broken") else 0


def _width() -> int | None:
    """Of the terminal; None for a file or a pipe, where a finding stays a line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


async def _run(access: Access, findings: Findings, options: Options) -> str:
    api = Api(access, connect=options.timeout)
    try:
        return await examine(api, findings, options)
    finally:
        await api.aclose()


def _access(context: str, environ: Mapping[str, str]) -> Access:
    if not context:
        return find(environ)
    files = [Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return from_files(files or [Path(environ.get("HOME", "/")) / ".kube" / "config"], context)


def _options(given: argparse.Namespace, access: Access) -> Options:
    namespace, _, name = given.target.rpartition("/")
    named = [flag for flag, value in (("TARGET", name), ("--pool-name", given.pool_name), ("--kserve", given.kserve),
             ("--endpoint-selector", given.endpoint_selector)) if value]  # fmt: skip
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} exclude each other")
    if given.endpoint_selector and not given.endpoint_target_ports:
        raise ConfigError("--endpoint-selector needs --endpoint-target-ports, such as 8000")
    _flag("endpoint-selector", parse_selector, given.endpoint_selector)
    wanted = Wanted(
        namespace=given.namespace or namespace or os.environ.get("NAMESPACE") or access.namespace,
        name=name,
        pool=given.pool_name,
        group=given.pool_group,
        kserve=given.kserve,
        selector=given.endpoint_selector.strip(),
        ports=_flag("endpoint-target-ports", PORTS.parse, given.endpoint_target_ports),
        picker=given.picker,
    )
    timeout = _flag("timeout", parse_duration, given.timeout)
    return Options(wanted, "KUBERNETES_SERVICE_HOST" in os.environ, timeout, given.envoy_admin)


def _flag(name: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"--{name}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("epp doctor", description=__doc__, formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument
    what = "an InferencePool or LLMInferenceService; without any, the only pool of the namespace"
    add("target", metavar="[NAMESPACE/]NAME", nargs="?", default="", help=what)
    add("-n", "--namespace", default="", help="(that of the pod or the kubeconfig)")
    add("--pool-name", default="", metavar="NAME", help="an InferencePool")
    add("--pool-group", default="", metavar="GROUP", help="its API group (either)")
    add("--kserve", default="", metavar="NAME", help="an LLMInferenceService of KServe")
    add("--endpoint-selector", default="", metavar="LABELS", help="pods without a pool: a=b,c!=d,e in (f,g),!h")
    add("--endpoint-target-ports", default="", metavar="PORTS", help="theirs")
    add("--picker", default="", metavar="SERVICE", help="the picker's Service (the one that the pool names)")
    add("--envoy-admin", action="append", default=[], metavar="HOST:PORT", help="an Envoy's admin page; repeatable")
    add("--context", default="", help="of the kubeconfig (the current one)")
    add("--timeout", default="3s", metavar="TIME", help="of each connection (%(default)s)")
    add("--json", action="store_true", help="findings as JSON")
    return parser
