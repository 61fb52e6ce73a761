"""The proxy that makes networks bad: what it does to bytes and connections, seen from both ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.cluster.proxy import Proxy

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo(reply: bytes = b"") -> AsyncIterator[str]:
    """A server that sends `reply`, and then back what it gets; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        try:
            while chunk := await reader.read(1 << 16):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"


async def connect(proxy: Proxy) -> Ends:
    host, _, port = proxy.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def said(ends: Ends, text: bytes) -> bytes:
    ends[1].write(text)
    return await ends[0].readexactly(len(text))


async def until(holds: Callable[[], bool]) -> bool:
    """Wait until it holds, a while; whether it does."""
    for _ in range(500):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


async def gone(ends: Ends) -> bool:
    """Whether the connection was reset, and not ended."""
    try:
        return await ends[0].read(1) == b"never"
    except ConnectionResetError:
        return True


async def refused(proxy: Proxy) -> bool:
    """Whether a new connection is reset: while it is made, or soon after."""
    try:
        return await gone(await connect(proxy))
    except ConnectionResetError:
        return True


async def test_bytes_pass_both_ways_and_ends_in_order() -> None:
    text = bytes(range(256)) * 4096
    async with echo() as target:
        with Proxy(target) as proxy:
            ends = await connect(proxy)
            back, _ = await asyncio.gather(ends[0].readexactly(len(text)), _send(ends[1], text))
            assert back == text
            ends[1].write_eof()
            assert await ends[0].read() == b""
            assert await until(lambda: proxy.connections == 0)


async def _send(writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    await writer.drain()


async def test_slow_holds_each_chunk_up_and_heal_ends_it() -> None:
    async with echo() as target:
        with Proxy(target) as proxy:
            ends = await connect(proxy)
            assert await said(ends, b"1") == b"1"
            proxy.slow(delay_seconds=0.1)
            begin = time.monotonic()
            assert await said(ends, b"2") == b"2"
            assert time.monotonic() - begin >= 0.2, "once there and once back"
            proxy.slow(bytes_per_second=10_000)
            begin = time.monotonic()
            assert len(await said(ends, bytes(1000))) == 1000
            assert time.monotonic() - begin >= 0.2
            proxy.heal()
            assert await said(ends, b"3") == b"3"


async def test_stalled_connections_are_taken_and_what_was_said_goes_on_later() -> None:
    async with echo(b"hello") as target:
        with Proxy(target) as proxy:
            ends = await connect(proxy)
            assert await ends[0].readexactly(5) == b"hello"
            proxy.stall()
            ends[1].write(b"held")
            new = await connect(proxy)
            for end in (ends, new):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(end[0].read(1), 0.1)
            proxy.heal()
            assert await ends[0].readexactly(4) == b"held"
            assert await new[0].readexactly(5) == b"hello"


async def test_reset_breaks_what_there_is_and_what_comes() -> None:
    async with echo() as target:
        with Proxy(target) as proxy:
            ends = await connect(proxy)
            assert await said(ends, b"1") == b"1"
            proxy.reset()
            assert await gone(ends)
            assert await refused(proxy)
            proxy.heal()
            ends = await connect(proxy)
            assert await said(ends, b"2") == b"2"
            proxy.cut()
            assert await gone(ends)
            assert await said(await connect(proxy), b"3") == b"3"


async def test_a_stalled_connection_can_be_reset() -> None:
    async with echo() as target:
        with Proxy(target) as proxy:
            proxy.stall()
            ends = await connect(proxy)
            proxy.reset()
            assert await gone(ends)


async def test_where_nobody_listens_connections_are_reset() -> None:
    async with echo() as target:
        pass
    with Proxy(target) as proxy:
        assert await refused(proxy)


def test_it_can_be_closed_twice() -> None:
    proxy = Proxy("127.0.0.1:1")
    proxy.close()
    proxy.close()
