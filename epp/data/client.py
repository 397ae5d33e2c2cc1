"""Fetches a metrics page over HTTP, and says of a failure whether the endpoint could be reached at all."""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from epp.data.trust import Trust
from epp.errors import EppError

_OUR_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

# Compressing a page costs the engine more than sending it costs the network.
_HEADERS = {"Accept": "text/plain;version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "epp"}


@dataclass(frozen=True, slots=True)
class ScrapeOptions:
    """How endpoints are scraped. Times in seconds.

    Attributes:
        interval: between two scrapes of one endpoint, as long as `budget` allows it.
        budget: scrapes a second that the whole pool costs at most: the interval is stretched to endpoints / budget.
        timeout: of one scrape; also how late a scheduled scrape may be before what is known counts as stale.
        retry_cap: the longest pause between two tries of an endpoint that fails; the first is `interval`.
        failures: in a row, that take an endpoint out.
        max_bytes: of a page; a longer one is a failed scrape.
        scheme: "http" or "https".
        path: of the metrics page.
        port: of the metrics page, for endpoints that have no metrics port of their own; None for their serving port.
        insecure: whether to accept any certificate.
        ca: certificates (PEM) to check the endpoints' against, when not insecure; None for the system's.
        certificate: of ours (PEM), for endpoints that ask for one.
        key: its private key (PEM); None if it is in the same file.
    """

    interval: float = 0.05
    budget: float = 200.0
    timeout: float = 1.0
    retry_cap: float = 5.0
    failures: int = 3
    max_bytes: int = 8 << 20
    scheme: str = "http"
    path: str = "/metrics"
    port: int | None = None
    insecure: bool = True
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class ScrapeError(EppError):
    """A scrape has failed.

    Attributes:
        reachable: whether the endpoint takes connections; None if the fault is on our side and says nothing of it.
    """

    def __init__(self, message: str, *, reachable: bool | None) -> None:
        super().__init__(message)
        self.reachable = reachable


def check(options: ScrapeOptions) -> None:
    """Sees whether a client could be made of them.

    Raises:
        ConfigError: a certificate can't be loaded.
    """
    if options.scheme == "https":
        _trust(options, time.monotonic)


class MetricsClient:
    """One HTTP session for all endpoints, with kept connections; to be opened in a running event loop.

    Args:
        options: how; certificates are read again when their files change.
        now: the monotonic clock, seconds.

    Raises:
        ConfigError: a certificate can't be loaded.
    """

    def __init__(self, options: ScrapeOptions, now: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._trust = _trust(options, now) if options.scheme == "https" else None
        self._timeout_text = f"no answer within {options.timeout:g} s"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=options.timeout),
            headers=_HEADERS,
        )

    async def close(self) -> None:
        """Closes the kept connections."""
        await self._session.close()

    async def page(self, url: str) -> bytes:
        """The page at this address.

        Raises:
            ScrapeError: it could not be had.
        """
        try:
            async with self._session.get(
                url, max_redirects=2, ssl=True if self._trust is None else self._trust.context()
            ) as response:
                if response.status != 200:
                    raise ScrapeError(f"HTTP status {response.status} from {url}", reachable=True)
                page = await self._body(response)
                if not page and "version=" in response.headers.get("Content-Type", ""):
                    return b"# EOF\n"  # prometheus_client's page before the first sample: empty, and rightly so
                return page
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._mapped(error) from error

    async def connect(self, host: str, port: int) -> None:
        """Opens a connection, and closes it.

        Raises:
            ScrapeError: it could not be opened.
        """
        try:
            async with asyncio.timeout(self._options.timeout):
                _, writer = await asyncio.open_connection(host, port)
        except OSError as error:  # TimeoutError is one
            raise self._mapped(error) from error
        writer.close()

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit, size, chunks = self._options.max_bytes, 0, []
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ScrapeError(f"the page is longer than {limit} bytes", reachable=True)
        return b"".join(chunks)

    def _mapped(self, error: Exception) -> ScrapeError:
        message, reachable = self._told(error)
        problem = self._trust.problem if self._trust else ""
        return ScrapeError(f"{message} ({problem})" if problem else message, reachable=reachable)

    def _told(self, error: Exception) -> tuple[str, bool | None]:
        match error:
            case TimeoutError():
                return self._timeout_text, True
            case aiohttp.ClientSSLError():
                return f"no TLS connection: {error}", True
            case OSError(errno=code) if code in _OUR_LIMITS:
                return f"no connection could be opened on our side: {error}", None
            case OSError():
                reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
                return f"can't connect: {reason}", False
            case _:  # it took the connection, and then answered badly or not at all
                return f"no page: {error or type(error).__name__}", True


def _trust(options: ScrapeOptions, now: Callable[[], float]) -> Trust:
    return Trust(insecure=options.insecure, ca=options.ca, certificate=options.certificate, key=options.key, now=now)
