"""Where the API server is and who we are to it: in a pod its service account, elsewhere a kubeconfig.

The order is that of Kubernetes' own clients: the files in KUBECONFIG, the pod's service account, `~/.kube/config`.
"""

import asyncio
import base64
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
import yaml

from epp.errors import ConfigError, EppError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_REREAD = 60.0  # seconds; the kubelet renews a token long before it expires
_EXEC_TIMEOUT = 30.0


class CredentialError(EppError):
    """A token can't be had now; it may work later."""


class Credentials(Protocol):
    """Gives the bearer token."""

    async def token(self) -> str:
        """The token; "" for none.

        Raises:
            CredentialError: it can't be had.
        """

    def refused(self) -> None:
        """The API server doesn't take the token: the next call must not answer from memory."""


@dataclass(frozen=True, slots=True)
class Access:
    """What a client of the API server needs.

    Attributes:
        server: the URL, without a slash at its end.
        credentials: of ours.
        tls: None for plain HTTP.
        namespace: that is meant where none is named.
        proxy: the URL of a proxy on the way; "" for none.
        server_name: that the certificate must be for, if not the URL's host.
        origin: where all this is from, for messages.
    """

    server: str
    credentials: Credentials
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    namespace: str = "default"
    proxy: str = ""
    server_name: str = ""
    origin: str = ""


class FixedToken:
    """A token that doesn't change; "" for none."""

    def __init__(self, token: str = "") -> None:
        self._token = token

    def __repr__(self) -> str:
        return "<a fixed token>" if self._token else "<no token>"

    async def token(self) -> str:
        """The token."""
        return self._token

    def refused(self) -> None:
        """It is the only one."""


class FileToken:
    """A token in a file that is renewed from time to time."""

    def __init__(self, file: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._known, self._until = "", 0.0

    def __repr__(self) -> str:
        return f"<the token in {self._file}>"

    async def token(self) -> str:
        """The file's content, at most a minute old."""
        if not self._known or self._now() >= self._until:
            try:
                self._known = (await asyncio.to_thread(self._file.read_text)).strip()
            except (OSError, ValueError) as error:
                raise CredentialError(f"no token from {self._file}: {error}") from error
            self._until = self._now() + _REREAD
        return self._known

    def refused(self) -> None:
        """Reads the file again the next time."""
        self._until = 0.0


class ExecToken:
    """A token that a command prints, as cloud providers' kubeconfigs have it (client.authentication.k8s.io)."""

    def __init__(self, spec: Mapping[str, Any], folder: Path, wall: Callable[[], float] = time.time) -> None:
        self._spec = spec
        self._folder = folder
        self._wall = wall
        self._known, self._until = "", 0.0

    def __repr__(self) -> str:
        return f"<the token of {self._spec.get('command')}>"

    async def token(self) -> str:
        """The token, until it expires."""
        if not self._known or self._wall() >= self._until:
            status = await self._status()
            self._known = str(status.get("token") or "")
            if not self._known:
                raise CredentialError(f"{self._spec['command']} gave no token (a client certificate isn't taken)")
            expiry = status.get("expirationTimestamp")
            self._until = datetime.fromisoformat(expiry).timestamp() - 10 if expiry else float("inf")
        return self._known

    def refused(self) -> None:
        """Runs the command again the next time."""
        self._until = 0.0

    async def _status(self) -> Mapping[str, Any]:
        version = self._spec.get("apiVersion", "client.authentication.k8s.io/v1")
        info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
        extra = {each["name"]: each["value"] for each in self._spec.get("env") or ()}
        environ = {**os.environ, **extra, "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        command = str(self._spec["command"])
        if "/" in command:
            command = str(self._folder / command)
        try:
            process = await asyncio.create_subprocess_exec(
                *(command, *(self._spec.get("args") or ())),
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await _output(process)
            if process.returncode:
                raise CredentialError(f"{command} ended with {process.returncode}: {errors.decode(errors='replace')}")
            status: Mapping[str, Any] = msgspec.json.decode(output)["status"]
        except (OSError, ValueError, KeyError, TypeError) as error:  # msgspec's errors are ValueErrors
            raise CredentialError(f"{command} gave no credentials: {error}") from error
        return status


async def _output(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    try:
        async with asyncio.timeout(_EXEC_TIMEOUT):
            return await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def find(environ: Mapping[str, str], *, account: Path = SERVICE_ACCOUNT) -> Access:
    """How to reach the API server from here.

    Args:
        environ: of which KUBECONFIG, KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT and HOME count.
        account: the folder of the pod's service account.

    Raises:
        ConfigError: nothing says where it is, or what does can't be used.
    """
    files = [Path(part) for part in environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if files:
        return from_files(files)
    if environ.get("KUBERNETES_SERVICE_HOST") and (account / "token").exists():
        return in_cluster(environ, account)
    usual = Path(environ.get("HOME", "/")) / ".kube" / "config"
    if usual.exists():
        return from_files([usual])
    raise ConfigError(
        "there is no way to the Kubernetes API server: no KUBECONFIG in the environment, no service account at "
        f"{account} (automountServiceAccountToken?), no {usual}"
    )


def in_cluster(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Access:
    """How a pod reaches the API server.

    Raises:
        ConfigError: the service account's certificate can't be used.
    """
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        tls = ssl.create_default_context(cafile=account / "ca.crt")
        namespace = account / "namespace"
        name = namespace.read_text().strip() if namespace.exists() else "default"
    except (OSError, ValueError) as error:
        raise ConfigError(f"the service account at {account} can't be used: {error}") from error
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(url, FileToken(account / "token"), tls, name, origin=f"the service account at {account}")


def from_files(files: Sequence[Path], context: str = "") -> Access:
    """How the current context of kubeconfig files, of which the first with a name counts, reaches the API server.

    Args:
        files: those that don't exist are left out.
        context: another one than the current.

    Raises:
        ConfigError: there is none, or it can't be used.
    """
    merged = _Merged()
    for file in files:
        if file.exists():
            merged.add(file)
    origin = ", ".join(str(file) for file in merged.files)
    if not merged.files:
        raise ConfigError(f"KUBECONFIG: none of {', '.join(map(str, files))} exists")
    name = context or merged.current
    try:
        _, chosen = merged.one("contexts", "context", name)
        folder, cluster = merged.one("clusters", "cluster", str(chosen.get("cluster")))
        users, user = merged.one("users", "user", str(chosen["user"])) if chosen.get("user") else (folder, {})
        server = str(cluster["server"]).rstrip("/")
        return Access(
            server,
            _credentials(user, users),
            _tls(cluster, folder, user, users) if server.startswith("https:") else None,
            str(chosen.get("namespace") or "default"),
            str(cluster.get("proxy-url") or ""),
            str(cluster.get("tls-server-name") or ""),
            f"context {name!r} of {origin}",
        )
    except (KeyError, ValueError, TypeError, OSError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"{origin}: context {name!r} can't be used: {error}") from error


class _Merged:
    """Several kubeconfigs as one; every entry with the folder that its relative paths are for."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.current = ""
        self._entries: dict[tuple[str, str], tuple[Path, Any]] = {}

    def add(self, file: Path) -> None:
        try:
            content = yaml.safe_load(file.read_text()) or {}
            self.current = self.current or str(content.get("current-context") or "")
            for kind, key in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
                for entry in content.get(kind) or ():
                    self._entries.setdefault((kind, entry["name"]), (file.parent, entry.get(key) or {}))
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no kubeconfig: {error}") from error
        self.files.append(file)

    def one(self, kind: str, key: str, name: str) -> tuple[Path, Mapping[str, Any]]:
        if not name:
            raise ConfigError("no current-context is set: kubectl config use-context NAME")
        if (kind, name) not in self._entries:
            known = ", ".join(each for of, each in self._entries if of == kind) or "none"
            raise ConfigError(f"there is no {key} {name!r} (there are: {known})")
        folder, entry = self._entries[kind, name]
        return folder, entry


def _credentials(user: Mapping[str, Any], folder: Path) -> Credentials:
    if user.get("auth-provider"):
        raise ConfigError("auth-provider is no longer supported by Kubernetes; use exec")
    if user.get("exec"):
        return ExecToken(user["exec"], folder)
    if user.get("tokenFile"):
        return FileToken(folder / user["tokenFile"])
    return FixedToken(str(user.get("token") or ""))


def _tls(cluster: Mapping[str, Any], folder: Path, user: Mapping[str, Any], users: Path) -> ssl.SSLContext:
    authority = _content(cluster, "certificate-authority", folder)
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    certificate, key = _content(user, "client-certificate", users), _content(user, "client-key", users)
    if certificate and key:
        with ExitStack() as stack:  # the standard library reads these from files only
            names = [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in range(2)]
            for file, content in zip(names, (certificate, key), strict=True):
                file.write(content)
                file.flush()
            context.load_cert_chain(names[0].name, names[1].name)
    return context


def _content(mapping: Mapping[str, Any], name: str, folder: Path) -> bytes:
    if mapping.get(f"{name}-data"):
        return base64.b64decode(mapping[f"{name}-data"])
    return (folder / mapping[name]).read_bytes() if mapping.get(name) else b""
