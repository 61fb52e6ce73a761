"""A TCP proxy between two parts, whose network can be made bad while they talk.

It runs in a thread of its own, so that it works however busy the caller's event loop is, and is told from any
thread or task.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")

CHUNK_BYTES = 16 << 10
"""Most bytes that are forwarded, and held up, at once."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 seconds: closing sends RST, and not FIN."""


@dataclass(frozen=True)
class Network:
    """How what comes is forwarded, in both directions."""

    delay_seconds: float = 0.0
    """Before each chunk."""
    bytes_per_second: float = float("inf")
    """In each direction of each connection."""
    stalled: bool = False
    """Connections are taken, and nothing is forwarded: it is held until the network is good again."""
    refusing: bool = False
    """Connections are reset as they come."""


GOOD = Network()


class Proxy:
    """Forwards to `target`; a context manager, or close it."""

    def __init__(self, target: str) -> None:
        """`target` as host:port; nothing needs to listen there yet."""
        self.target = target
        self._network = GOOD
        self._changed = asyncio.Event()
        self._links: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy of {target}", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        """Where it listens, as host:port."""

    def heal(self) -> None:
        """Forward at once again; what was held goes on."""
        self._become(GOOD)

    def slow(self, delay_seconds: float = 0.0, bytes_per_second: float = float("inf")) -> None:
        """Hold up each chunk by so long, and let no more through than this."""
        self._become(Network(delay_seconds, bytes_per_second))

    def stall(self) -> None:
        """Take connections, and forward nothing."""
        self._become(Network(stalled=True))

    def reset(self) -> None:
        """Reset (RST) each connection, and new ones as they come."""
        self._become(Network(refusing=True))

    def cut(self) -> None:
        """Reset each connection once; new ones are as they were."""
        self._there(self._reset_all)

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._there(lambda: len(self._links))

    def close(self) -> None:
        """Reset all, and listen no more; harmless a second time."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _there(self, call: Callable[[], T]) -> T:
        """What `call` returns in the proxy's own thread, once it has run."""

        async def run() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _become(self, network: Network) -> None:
        def change() -> None:
            self._network = network
            self._changed.set()
            self._changed = asyncio.Event()
            if network.refusing:
                self._reset_all()

        self._there(change)

    def _reset_all(self) -> None:
        for link in self._links:
            link.cancel()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK_BYTES)

    async def _close(self) -> None:
        self._server.close()
        links = list(self._links)
        self._reset_all()
        await asyncio.gather(*links, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = self._loop.create_task(self._link(reader, writer))
        self._links[link] = [writer]
        link.add_done_callback(self._ended)

    def _ended(self, link: asyncio.Task[None]) -> None:
        """A link ends with a reset of both sides, unless both have closed in order before."""
        for writer in self._links.pop(link):
            with suppress(OSError):
                connection: socket.socket = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until both sides have closed it, one breaks, or it is cancelled."""
        await self._until_good()
        if self._network.refusing:
            return
        host, _, port = self.target.rpartition(":")
        this = asyncio.current_task()
        assert this is not None
        try:
            back, forth = await asyncio.open_connection(host, int(port), limit=CHUNK_BYTES)
            self._links[this].append(forth)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, forth))
                both.create_task(self._pump(back, writer))
        except* OSError:
            pass  # Both sides are reset.

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            network = self._network
            if seconds := network.delay_seconds + len(chunk) / network.bytes_per_second:
                await asyncio.sleep(seconds)
            await self._until_good()
            writer.write(chunk)
            await writer.drain()
        await self._until_good()
        writer.write_eof()

    async def _until_good(self) -> None:
        while self._network.stalled:
            await self._changed.wait()
