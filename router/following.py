"""Files that are followed: what has changed in them is in force without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Mark = tuple[int, int, int] | None
"""Changes with a file's content: its time, size and inode; None: it is not there."""


def mark(path: Path) -> Mark:
    """Of a file as it is now; links are followed."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Followed(Protocol[T_co]):
    """A file, or several, that may change."""

    path: Path
    """Where they are."""

    def look(self) -> T_co | None:
        """What is in force now; None where nothing has changed since the last look."""
        ...


@asynccontextmanager
async def following(files: Followed[T], seconds: float, adopt: Callable[[T], None]) -> AsyncIterator[None]:
    """While the context lasts, look at the files every so many seconds, and `adopt` what has changed.

    That is off the event loop: the disk may be slow.
    """

    async def follow() -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                found = await asyncio.to_thread(files.look)
                if found is not None:
                    adopt(found)
            except Exception:
                # What is in force stays, and the next change is looked at.
                log.exception("files could not be looked at", path=str(files.path))

    task = asyncio.create_task(follow(), name=f"following {files.path}")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
