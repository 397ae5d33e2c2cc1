"""Whether a file has changed, by polling: works with replaced symbolic links, as in Kubernetes' mounts, as well."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

Signature = tuple[int, int, int, int]
T = TypeVar("T")

SETTLE_ROUNDS = 20
"""Then a file that never comes to rest is read as it is."""


def signature(file: Path) -> Signature | None:
    """What changes when the file does, a replaced symbolic link included; None if it can't be looked at."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


async def at_rest(look: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What `look` gives twice in a row with so many seconds between: a file that has just changed may be half written.

    Args:
        look: gives a signature, or several.
        seconds: between two looks.
    """
    found = await look()
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(seconds)
        before, found = found, await look()
        if found == before:
            break
    return found
