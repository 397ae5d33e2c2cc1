"""Who gets at the metrics port: bearer tokens that somebody else judges, and TLS with or without clients' certificates.

The certificate's files are looked at again at every handshake, so that renewed ones are taken without a restart.
"""

import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from epp.errors import ConfigError, EppError
from epp.files import signature

Verdict = Literal["allowed", "unauthenticated", "forbidden"]
Authorize = Callable[[str, str, str], Awaitable[Verdict]]
"""Judges a token, a path and a verb ("get"); raises EppError if there is no telling."""

log = logging.getLogger("epp.observe")

_REFUSALS: dict[Verdict, type[web.HTTPException]] = {
    "unauthenticated": web.HTTPUnauthorized,
    "forbidden": web.HTTPForbidden,
}


def authorized(authorize: Authorize) -> Middleware:
    """Lets through who may do what they ask for: 401 without a good token, 403 without permission, 503 otherwise."""

    @web.middleware
    async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"}, text="a bearer token is needed\n")
        try:
            verdict = await authorize(token.strip(), request.path, request.method.lower())
        except EppError as error:
            log.warning("nobody can say who may read %s: %s", request.path, error)
            raise web.HTTPServiceUnavailable(text="authorization can't be checked now\n") from None
        if verdict in _REFUSALS:
            raise _REFUSALS[verdict](text=f"{verdict}\n")
        return await handler(request)

    return checked


def server_tls(folder: Path, client_ca: Path | None) -> ssl.SSLContext:
    """TLS for a server, 1.2 or later.

    Args:
        folder: holds `tls.crt` and `tls.key`.
        client_ca: what signs the certificates of clients, which must then show one; None for any client.

    Raises:
        ConfigError: a file can't be used.
    """
    return _Reloading(folder, client_ca).outer


class _Reloading:
    """One context for the listener, which hands every handshake over to the one of the latest files."""

    def __init__(self, folder: Path, client_ca: Path | None) -> None:
        self._folder, self._client_ca = folder, client_ca
        self._files = [folder / "tls.crt", folder / "tls.key", *([client_ca] if client_ca else [])]
        self._stamp = [signature(file) for file in self._files]
        self._latest = self._load()
        self.outer = self._load()
        self.outer.sni_callback = self._chosen  # OpenSSL calls it for clients that name no host, too

    def _chosen(self, connection: ssl.SSLObject | ssl.SSLSocket, _: str, __: ssl.SSLContext) -> None:
        stamp = [signature(file) for file in self._files]
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._latest = self._load()
            except ConfigError as error:
                log.warning("the old certificate of the metrics port stays in use: %s", error)
            else:
                log.info("the metrics port has a new certificate from %s", self._folder)
        connection.context = self._latest

    def _load(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._folder / "tls.crt", self._folder / "tls.key")
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"TLS of the metrics port: {self._folder}, {self._client_ca or 'no CA'}: {error}"
            ) from error
        return context
