import errno
import os
import ssl
from typing import Any

import aiohttp
import pytest

from epp.data.client import MetricsClient, ScrapeOptions


class Key:
    """As much of aiohttp's connection key as its errors print."""

    host, port, ssl, is_ssl = "10.0.0.1", 8000, True, False


def connector(number: int, kind: Any = aiohttp.ClientConnectorError) -> Exception:
    return kind(Key(), OSError(number, os.strerror(number)))  # type: ignore[no-any-return]


CASES: dict[str, tuple[Exception, bool | None, str]] = {
    "refused": (connector(errno.ECONNREFUSED), False, "can't connect: Connection refused"),
    "reset": (aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"), False, "can't connect: Conn"),
    "reset, in asyncio's words": (ConnectionResetError("lost"), False, "can't connect: lost"),
    "no route": (connector(errno.EHOSTUNREACH), False, "can't connect: No route to host"),
    "no network": (connector(errno.ENETUNREACH), False, "can't connect: Network is unreachable"),
    "timeout": (TimeoutError(), True, "no answer within 1 s"),
    "timeout of the connection": (aiohttp.ConnectionTimeoutError(), True, "no answer within 1 s"),
    "closed without an answer": (aiohttp.ServerDisconnectedError(), True, "no page: Server disconnected"),
    "closed in the midst of it": (aiohttp.ClientPayloadError("cut"), True, "no page: cut"),
    "TLS": (aiohttp.ClientConnectorSSLError(Key(), ssl.SSLError(1, "wrong version")), True, "no TLS connection"),  # type: ignore[arg-type]
    "too many open files here": (connector(errno.EMFILE), None, "on our side"),
    "no ports left here": (connector(errno.EADDRNOTAVAIL), None, "on our side"),
}  # fmt: skip


@pytest.mark.parametrize(("error", "reachable", "message"), CASES.values(), ids=CASES.keys())
async def test_what_an_error_says_of_the_endpoint(error: Exception, reachable: bool | None, message: str) -> None:
    """Unreachable, reachable, or a fault on our side."""
    client = MetricsClient(ScrapeOptions())
    try:
        mapped = client._mapped(error)
    finally:
        await client.close()
    assert mapped.reachable is reachable
    assert message in str(mapped)
