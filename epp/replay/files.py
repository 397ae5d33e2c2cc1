"""Files that may be gzipped, whatever they are called."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

_GZIP = b"\x1f\x8b"


@contextmanager
def opened(file: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    """A file's content.

    Raises:
        OSError: it can't be read; EOFError, OSError or zlib.error while it is read, if its gzip is damaged.
    """
    with file.open("rb") as raw:
        if raw.peek(len(_GZIP))[: len(_GZIP)] != _GZIP:
            yield raw
            return
        with gzip.open(raw) as content:
            yield content
