"""A client of the API server: aiohttp for the requests, msgspec for what of the answers is wanted.

It knows no kinds: a `Resource` names one, and what comes back is decoded by whoever asked. Nothing is tried again here
except a token that is refused once, for it may just have been renewed.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec

from epp.errors import EppError
from epp.kube.access import Access, CredentialError

PAGE = 100
"""Objects of a list that are asked for at once: 100 pods are decoded in a few milliseconds."""

_LONGEST_CONNECT = 10.0
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
)
"""An API server that has vanished without a word is noticed after 20 s, when a watch is silent anyhow.

Where something in between keeps the connection, only the silence of the watch tells: see `Silent`.
"""


class ApiError(EppError):
    """The API server has refused.

    Attributes:
        status: the HTTP status, such as 403.
        reason: Kubernetes' word for it, such as "Forbidden"; "" if it gave none.
        retry_after: seconds that the API server asks to wait; 0.0 for none.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Unreachable(EppError):
    """The API server can't be connected to, doesn't answer in time, or broke off."""


class Silent(Unreachable):
    """An answer that goes on has said nothing for as long as it may."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object, as it is named in the API server's paths.

    Attributes:
        group: "" for the core.
        plural: such as "pods".
    """

    group: str
    version: str
    plural: str

    @property
    def group_version(self) -> str:
        """As `apiVersion` has it: `v1`, `llm-d.ai/v1alpha2`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "") -> str:
        """The path of one object, or of all in a namespace, or of all."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        parts += ["namespaces", namespace] if namespace else []
        parts += [self.plural, *([name] if name else [])]
        return "/" + "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Resource("", "v1", "pods")
SERVICES = Resource("", "v1", "services")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews")
SELF_ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews")

POOL_GROUP, OLD_GROUP, LLM_D_GROUP = "inference.networking.k8s.io", "inference.networking.x-k8s.io", "llm-d.ai"
POOLS = Resource(POOL_GROUP, "v1", "inferencepools")
OLD_POOLS = Resource(OLD_GROUP, "v1alpha2", "inferencepools")
OBJECTIVES = tuple(Resource(group, "v1alpha2", "inferenceobjectives") for group in (LLM_D_GROUP, OLD_GROUP))
REWRITES = tuple(Resource(group, "v1alpha2", "inferencemodelrewrites") for group in (LLM_D_GROUP, OLD_GROUP))
MODELS = Resource(OLD_GROUP, "v1alpha2", "inferencemodels")


class ListMeta(msgspec.Struct, rename="camel"):
    """Where a list, or a bookmark, stands."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Listed(msgspec.Struct):
    """A page of a list; the objects are still encoded."""

    metadata: ListMeta
    items: list[msgspec.Raw] = []


class _Status(msgspec.Struct):
    reason: str = ""
    message: str = ""


_LISTED = msgspec.json.Decoder(Listed)
_STATUS = msgspec.json.Decoder(_Status)


class Api:
    """One HTTP session with the API server, which begins with the first request; to be closed.

    Args:
        access: see `epp.kube.access.find`.
        connect: seconds that a connection may take; see `connect_within`.
        timeout: seconds that an answer may take; until its first byte, of a watch.
        now: the monotonic clock, seconds.
    """

    def __init__(
        self,
        access: Access,
        *,
        connect: float = 1.0,
        timeout: float = 30.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.access = access
        self._connect = connect
        self._timeout = timeout
        self._now = now
        self._failing_since: float | None = None
        self._dated: tuple[str, float] | None = None
        self._made: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Api: {self.access.server}>"

    async def aclose(self) -> None:
        """Ends every connection."""
        if self._made is not None:
            await self._made.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._made is None:
            self._made = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self.access.tls or True, socket_factory=_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "User-Agent": "epp"},
                proxy=self.access.proxy or None,
            )
        return self._made

    @property
    def time(self) -> datetime | None:
        """What time it is by the API server's clock, as its last answer said, to the second; None if none did."""
        if self._dated is None:
            return None
        told, at = self._dated
        try:
            return parsedate_to_datetime(told) + timedelta(seconds=self._now() - at)
        except ValueError:
            return None

    @property
    def connect_within(self) -> float:
        """Seconds that the next connection may take.

        Few at first, for a packet that is lost while the API server comes back must not cost its time; more the longer
        no connection has come about, as some API servers are reached through slow tunnels.
        """
        failing = 0.0 if self._failing_since is None else self._now() - self._failing_since
        return max(self._connect, min(failing / 30.0, _LONGEST_CONNECT))

    async def request(self, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None) -> bytes:
        """The answer's body.

        Args:
            method: such as "GET".
            path: from the server's root, as `Resource.path` gives it.
            body: what is sent as JSON; None for nothing.
            params: of the query.

        Raises:
            ApiError: the API server refuses.
            Unreachable: it can't be asked.
        """
        async with self._opened(method, path, body, params or {}, self._timeout) as response:
            return await response.read()

    async def get(self, path: str, **params: str) -> Any:
        """What is there, as plain data. Raises as `request` does."""
        return _plain(await self.request("GET", path, params=params))

    async def create(self, path: str, body: Mapping[str, Any]) -> Any:
        """Sends an object or a review to a collection's path; the answer. Raises as `request` does."""
        return _plain(await self.request("POST", path, body))

    async def replace(self, path: str, body: Mapping[str, Any]) -> Any:
        """Replaces an object if its resourceVersion is still the last; what it is now. Raises as `request` does."""
        return _plain(await self.request("PUT", path, body))

    async def pages(self, path: str, **params: str) -> AsyncIterator[Listed]:
        """The pages of a list as of one moment. Raises as `request` does; ApiError 410 if it took too long."""
        token = ""
        while True:
            query = {**params, "limit": str(PAGE), **({"continue": token} if token else {})}
            body = await self.request("GET", path, params=query)
            try:
                page = _LISTED.decode(body)
            except msgspec.MsgspecError as error:
                raise Unreachable(f"what answers for the API server sends no list: {error}") from error
            yield page
            token = page.metadata.continue_
            if not token:
                return

    async def list(self, path: str, **params: str) -> Sequence[Any]:
        """All objects of a list, as plain data. Raises as `pages` does."""
        return [msgspec.json.decode(item) async for page in self.pages(path, **params) for item in page.items]

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server knows this kind of object. Raises as `request` does."""
        prefix = f"/apis/{resource.group}" if resource.group else "/api"
        try:
            found = await self.get(f"{prefix}/{resource.version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return any(each.get("name") == resource.plural for each in found.get("resources") or ())

    @asynccontextmanager
    async def lines(
        self, path: str, params: Mapping[str, str], within: float, silence: float | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that goes on, as a watch's does; many may be there at once.

        Args:
            path: from the server's root.
            params: of the query.
            within: seconds after which the answer is broken off from our side.
            silence: seconds that it may say nothing; None for no limit.

        Raises:
            ApiError: the API server refuses.
            Silent: it has said nothing for so long.
            Unreachable: it can't be asked, or breaks off in the middle.
        """
        async with self._opened("GET", path, None, params, within, silence) as response:
            yield _lines(response)

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        body: Any,
        params: Mapping[str, str],
        within: float,
        silence: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            for last in (False, True):
                token = await self.access.credentials.token()
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                if body is not None:
                    headers["Content-Type"] = "application/json"
                timeout = aiohttp.ClientTimeout(total=within, sock_connect=self.connect_within, sock_read=silence)
                async with (
                    asyncio.timeout(self._timeout) as head,
                    self._session.request(
                        method,
                        self.access.server + path,
                        data=None if body is None else msgspec.json.encode(body),
                        params=params,
                        headers=headers,
                        timeout=timeout,
                        server_hostname=self.access.server_name or None,
                        allow_redirects=False,
                    ) as response,
                ):
                    head.reschedule(None)
                    self._failing_since = None
                    self._dated = (response.headers["Date"], self._now()) if "Date" in response.headers else None
                    if response.status == 401 and not last:
                        self.access.credentials.refused()
                        continue
                    if not 200 <= response.status < 300:
                        raise await _refusal(response, f"{method} {path}")
                    yield response
                    return
        except CredentialError as error:
            raise Unreachable(str(error)) from error
        except TimeoutError as error:
            self._failed()
            raise Unreachable(f"{self.access.server}{path}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            self._failed()
            raise Unreachable(f"{self.access.server}: {error or type(error).__name__}") from error

    def _failed(self) -> None:
        if self._failing_since is None:
            self._failing_since = self._now()


def _plain(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.MsgspecError as error:
        raise Unreachable(f"what answers for the API server sends no JSON: {error}") from error


def _socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _KEEPALIVE:
        made.setsockopt(level, option, value)
    return made


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest: list[bytes] = []
    async for chunk in _chunks(response):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for other in others:
            line = b"".join(rest)
            rest = [other]
            if line.strip():
                yield line
    if b"".join(rest).strip():
        raise Unreachable("the API server broke off in the middle of an event")


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except aiohttp.SocketTimeoutError as error:
        raise Silent(f"{response.url.origin()}{response.url.path}: says nothing any more") from error


async def _refusal(response: aiohttp.ClientResponse, what: str) -> ApiError:
    body = await response.read()
    try:
        status = _STATUS.decode(body)
    except msgspec.MsgspecError:
        status = _Status(message=body[:200].decode(errors="replace"))
    wait = response.headers.get("Retry-After", "")
    message = f"{what}: {response.status} {status.reason or response.reason}: {status.message}".rstrip(": ")
    return ApiError(response.status, status.reason, message, float(wait) if wait.isdecimal() else 0.0)
