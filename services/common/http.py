"""HTTP to servers that others run: one client for each, where its key comes from, when it may be asked again.

Needs httpx (an extra of what uses it), so it is imported where a catalogue asks for such a server.
A key is in no log, no error and no repr: errors quote a server only through `Key.hide`.
"""

from __future__ import annotations

import email.utils
import math
import os
import time
from collections.abc import Generator
from pathlib import Path

import httpx

LONGEST_SECONDS = 86_400.0
"""Most that a server's Retry-After is believed."""


class KeyUnusable(Exception):
    """The key cannot be read; `str(error)` says where it was looked for, never what was found."""


class Key:
    """A server's API key: from an environment variable, or from a file that is read again when it changes."""

    def __init__(self, env: str = "", file: Path | None = None) -> None:
        """With neither, no key is sent. Raises KeyUnusable where there is none to be had."""
        self._env = env
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._value = ""
        if file is not None:
            self._read(file)
        elif env:
            self._value = _checked(os.environ.get(env, ""), f"environment variable {env}")

    def __repr__(self) -> str:
        return f"Key(env={self._env!r}, file={self._file!r})"

    @property
    def value(self) -> str:
        """The key as it is now; empty: none is sent."""
        if self._file is not None:
            try:
                self._read(self._file)
            except KeyUnusable:
                # A key that is being replaced: the last one holds until the new one is there.
                return self._value
        return self._value

    def hide(self, text: str) -> str:
        """`text`, as a server said it, without the key."""
        return text.replace(self._value, "[key]") if self._value else text

    def _read(self, file: Path) -> None:
        try:
            status = file.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            text = file.read_text(encoding="ascii")
        except OSError as error:
            raise KeyUnusable(f"key file {file}: {error.strerror or 'cannot be read'}") from None
        except UnicodeDecodeError:
            raise KeyUnusable(f"key file {file}: is not ASCII text") from None
        self._value, self._stamp = _checked(text, f"key file {file}"), stamp


class KeyAuth(httpx.Auth):
    """Sends the key as it is at each request: `Authorization: Bearer ...`."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Called by httpx for each request."""
        if value := self._key.value:
            request.headers["Authorization"] = f"Bearer {value}"
        yield request


def make_client(base_url: str, key: Key, connections: int, connect_seconds: float) -> httpx.AsyncClient:
    """A client of one server, for the life of the process; close it with `aclose()`.

    Paths are relative to `base_url`. At most `connections` at a time, kept alive. It follows no redirects:
    a key goes to nobody but the server it is for. Only connecting has a time limit; whoever reads an answer
    knows how long that may take, and says so with `asyncio.timeout`.
    """
    return httpx.AsyncClient(
        base_url=base_url,
        auth=KeyAuth(key),
        timeout=httpx.Timeout(None, connect=connect_seconds),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        follow_redirects=False,
    )


def retry_after(response: httpx.Response) -> float | None:
    """Seconds until the server may be asked again, by its Retry-After: seconds or a date (RFC 9110, 10.2.3).

    None where it does not say so, or not understandably. A date that has passed is 0; nobody is left alone
    for longer than a day.
    """
    said = response.headers.get("Retry-After", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_SECONDS) if math.isfinite(seconds) else None


async def read_some(response: httpx.Response, most: int = 64 << 10) -> bytes:
    """The first `most` bytes of a streamed answer: what an error says, however long it is."""
    body = b""
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) >= most:
            break
    return body[:most]


def _checked(text: str, where: str) -> str:
    value = text.strip()
    if not value:
        raise KeyUnusable(f"{where}: there is no key")
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise KeyUnusable(f"{where}: holds what is no key")
    return value
