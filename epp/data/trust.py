"""The certificates of scrapes over https: those that endpoints' are checked against, and ours; renewed in place.

Whoever mounts them renews them under the same names. Connections that are there go on with what they began with, new
ones have what the files say.
"""

import contextlib
import os
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from epp.errors import ConfigError
from epp.files import Signature, signature

LOOK = 5.0
"""Seconds between two looks at the files."""


class Trust:
    """The TLS context of the latest files that could be loaded.

    `problem` is why the ones that are there now can't be; "" if they can.

    Args:
        insecure: whether to accept any certificate.
        ca: certificates (PEM) to check others against; None for the system's and those in SSL_CERT_DIR.
        certificate: of ours (PEM); None for none.
        key: its private key (PEM); None if it is in the same file.
        now: the monotonic clock, seconds.

    Raises:
        ConfigError: they can't be loaded.
    """

    def __init__(
        self,
        *,
        insecure: bool,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem = ""
        self._insecure, self._ca, self._certificate, self._key = insecure, ca, certificate, key
        self._now = now
        self._looked = now()
        self._stamp = self._look()
        self._context = self._load()

    def __repr__(self) -> str:
        return f"<Trust: {len(self._stamp)} files{', not those of now' if self.problem else ''}>"

    def context(self) -> ssl.SSLContext:
        """For the next connection: another object whenever the files have changed."""
        now = self._now()
        if now - self._looked >= LOOK:
            self._looked = now
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
        return self._context

    def _renew(self) -> None:
        try:
            self._context = self._load()
            self.problem = ""
        except ConfigError as error:  # half written, or half of a pair: then they change once more
            self.problem = f"those of before are in use: {error}"

    def _look(self) -> dict[Path, Signature | None]:
        named = [file for file in (self._ca, self._certificate, self._key) if file is not None]
        return {file: signature(file) for file in [*named, *self._mounted()]}

    def _load(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca)
            for file in self._mounted():
                with contextlib.suppress(OSError):  # such as an ssl.SSLError: it is a key, or a folder
                    context.load_verify_locations(file)
            if self._certificate is not None:
                context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the certificates for scraping over https can't be loaded: {error}") from error
        if self._insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _mounted(self) -> Sequence[Path]:
        """What lies in the folders of SSL_CERT_DIR, as Go reads them; OpenSSL takes files named by hashes only."""
        if self._insecure or self._ca is not None:
            return ()
        folders = filter(None, os.environ.get("SSL_CERT_DIR", "").split(os.pathsep))
        return [file for folder in folders for file in sorted(Path(folder).glob("*"))]
