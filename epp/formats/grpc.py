"""gRPC messages in HTTP/2 bodies: a flag, a length of four bytes (big-endian), the message; gzip can be read.

In Envoy's GRPC body mode messages come without their five bytes. Which it is can be seen: no message of protobuf
begins with the byte 0 or 1, which would be the field number 0.
"""

import zlib
from collections.abc import Iterator

from epp.errors import BadRequest
from epp.formats.answers import RESPONSE_BYTES

HEAD = 5
"""Bytes before each message."""

INFLATED_BYTES = 64 * 2**20
"""The longest message that is taken out of a compressed one: a small body must not take all memory."""

_GZIP = b"\x1f\x8b"


def message(body: bytes) -> bytes:
    """The one message of a unary request.

    Raises:
        BadRequest: it isn't whole, there is another one, or it is compressed in another way than by gzip.
    """
    if not body or body[0] > 1:
        return _inflated(body) if body.startswith(_GZIP) else body
    if len(body) < HEAD or int.from_bytes(body[1:HEAD], "big") != len(body) - HEAD:
        raise BadRequest("invalid or unsupported gRPC payload: one whole message is due")
    return _inflated(body[HEAD:]) if body[0] else body[HEAD:]


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        found = inflater.decompress(data, INFLATED_BYTES)
    except zlib.error as error:
        raise BadRequest(f"invalid or unsupported gRPC payload: no gzip: {error}") from error
    if not inflater.eof or inflater.unused_data:
        raise BadRequest("invalid or unsupported gRPC payload: the gzip data is cut off, or too long when unpacked")
    return found


class Messages:
    """Takes messages out of a response's body, split at any byte; messages too long to keep are skipped."""

    __slots__ = ("_bare", "_data", "_skip")

    def __init__(self) -> None:
        self._bare: bool | None = None
        self._data = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that have become whole; one that can't be unpacked is left out."""
        if self._bare is None and data:
            self._bare = data[0] > 1
        if self._bare:
            if data:
                yield data
            return
        dropped = min(self._skip, len(data))
        self._skip -= dropped
        self._data += data[dropped:]
        while (found := self._next()) is not None:
            compressed, packed = found
            try:
                yield _inflated(packed) if compressed else packed
            except BadRequest:
                continue

    def _next(self) -> tuple[bool, bytes] | None:
        while len(self._data) >= HEAD:
            size = HEAD + int.from_bytes(self._data[1:HEAD], "big")
            if len(self._data) >= size:
                found = bool(self._data[0]), bytes(self._data[HEAD:size])
                del self._data[:size]
                return found
            if size <= RESPONSE_BYTES:
                return None
            self._skip = size - len(self._data)
            self._data.clear()
        return None
