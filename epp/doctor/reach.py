"""Connects to pods: directly, or from outside of the cluster through the API server, which passes HTTP on."""

import asyncio
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import aiohttp
import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from epp.doctor.cluster import Object, at
from epp.errors import EppError
from epp.kube.client import PODS, Api, ApiError, Unreachable

Scheme = Literal["http", "https"]


class Failed(EppError):
    """Something can't be reached.

    Attributes:
        why: refused: nobody listens there; silent: no answer, or no way; other: it answers, but not as it should.
    """

    def __init__(self, why: Literal["refused", "silent", "other"], message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer.

    Attributes:
        seconds: until all of it was there.
        scheme: that the server speaks.
    """

    status: int
    body: bytes
    seconds: float
    scheme: Scheme


class Reach:
    """Connections to pods; to be closed.

    Args:
        api: for what can't be reached directly.
        timeout: seconds of each try.
        inside: whether this is a pod of the cluster: then nothing goes through the API server.
    """

    def __init__(self, api: Api, *, timeout: float, inside: bool) -> None:
        self.direct = True
        self._api = api
        self._timeout = timeout
        self._inside = inside
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_unchecked()), timeout=aiohttp.ClientTimeout(total=timeout)
        )

    def __repr__(self) -> str:
        return f"<Reach: {'direct' if self.direct else 'through the API server'}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def probe(self, address: str, port: int) -> None:
        """Sees whether pods can be reached directly, by one of them; otherwise all else goes through the API server."""
        try:
            await self._connect(address, port)
        except Failed as error:
            self.direct = self._inside or error.why != "silent"

    async def page(self, pod: Object, port: int, path: str) -> Answer:
        """A page of a pod, by HTTP, or else HTTPS.

        Raises:
            Failed: neither gives one.
        """
        fetch = self._direct_page if self.direct else self._passed_page
        try:
            return await fetch(pod, port, path, "http")
        except Failed as error:
            if error.why != "other":
                raise
            return await fetch(pod, port, path, "https")

    async def certificate(self, address: str, port: int) -> x509.Certificate | None:
        """The certificate that a server shows; None if it speaks no TLS.

        Raises:
            Failed: it can't be reached.
        """
        await self._connect(address, port)
        context = _unchecked()
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            async with asyncio.timeout(self._timeout):
                _, writer = await asyncio.open_connection(address, port, ssl=context)
        except (OSError, TimeoutError):
            return None
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        return x509.load_der_x509_certificate(shown)

    async def health(self, address: str, port: int, service: str) -> str:
        """What gRPC's health service says of a name, such as SERVING.

        Raises:
            Failed: it can't be asked.
        """
        async with grpc.aio.insecure_channel(f"{_bracketed(address)}:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                request = health_pb2.HealthCheckRequest(service=service)
                answer = await stub.Check(request, timeout=self._timeout)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.NOT_FOUND:
                    return "SERVICE_UNKNOWN"
                silent = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                raise Failed("silent" if silent else "other", f"{error.code().name}: {error.details()}") from error
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def _connect(self, address: str, port: int) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                _, writer = await asyncio.open_connection(address, port)
        except ConnectionRefusedError:
            raise Failed("refused", f"nobody listens on {_bracketed(address)}:{port}") from None
        except (OSError, TimeoutError) as error:
            message = f"no connection to {_bracketed(address)}:{port} within {self._timeout:g} s"
            raise Failed("silent", f"{message}{f' ({error})' if str(error) else ''}") from None
        writer.transport.abort()

    async def _direct_page(self, pod: Object, port: int, path: str, scheme: Scheme) -> Answer:
        address = str(at(pod, "status", "podIP"))
        await self._connect(address, port)
        start = time.monotonic()
        try:
            async with self._session.get(f"{scheme}://{_bracketed(address)}:{port}{path}") as response:
                body = await response.read()
                if response.status == 400 and scheme == "http" and b"HTTPS" in body:
                    raise Failed("other", "it speaks HTTPS")
                return Answer(response.status, body, time.monotonic() - start, scheme)
        except TimeoutError:
            raise Failed("silent", f"no answer of {path} within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failed("other", f"{type(error).__name__}: {error}") from error

    async def _passed_page(self, pod: Object, port: int, path: str, scheme: Scheme) -> Answer:
        meta = pod["metadata"]
        name = f"{'https:' if scheme == 'https' else ''}{meta['name']}:{port}"
        start = time.monotonic()
        try:
            body = await self._api.request("GET", f"{PODS.path(meta['namespace'], name)}/proxy{path}")
        except ApiError as error:
            if error.status in (401, 404) and error.reason == "":  # the pod's own answer
                return Answer(error.status, b"", time.monotonic() - start, scheme)
            raise Failed("other", f"through the API server: {error}") from error
        except Unreachable as error:
            raise Failed("silent", f"through the API server: {error}") from error
        return Answer(200, body, time.monotonic() - start, scheme)


def _unchecked() -> ssl.SSLContext:
    """Certificates are looked at here, not obeyed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
