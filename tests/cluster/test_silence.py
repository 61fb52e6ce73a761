"""Long calls through a network that drops what is silent: pings keep the connection, and are let in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from isoflop.v1 import verification_pb2 as pb
from isoflop.v1 import verification_pb2_grpc as rpc
from prometheus_client import CollectorRegistry

from services.common.channels import Channels
from services.common.server import Face, serving
from services.common.settings import ServiceSettings

pytestmark = pytest.mark.cluster

IDLE_SECONDS = 7.0
"""A connection that is silent for longer is dropped."""
SILENT_SECONDS = 22.0
"""How long the call says nothing: for more than two pings."""


class Verifier(rpc.VerificationServiceServicer):
    """Takes its time."""

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        await asyncio.sleep(SILENT_SECONDS)
        return pb.ScoreResponse(tokens=1)


@asynccontextmanager
async def dropping(target: str) -> AsyncIterator[str]:
    """The address of a proxy that drops connections to `target` that are idle."""
    host, _, port = target.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError, ConnectionError):
            while piece := await asyncio.wait_for(reader.read(65536), IDLE_SECONDS):
                writer.write(piece)
        writer.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    server = await asyncio.start_server(link, "127.0.0.1", 0)
    try:
        yield "{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


async def test_a_call_that_is_silent_for_long_keeps_its_connection() -> None:
    add, channels = rpc.add_VerificationServiceServicer_to_server, Channels()
    faces = [Face("isoflop.v1.VerificationService", Verifier(), add)]
    settings = ServiceSettings(address="127.0.0.1:0", drain_seconds=0)
    async with serving(settings, faces, CollectorRegistry()) as address, dropping(address) as proxy:
        stub = rpc.VerificationServiceStub(channels.to(proxy))
        assert (await stub.Score(pb.ScoreRequest())).tokens == 1
        await channels.close()
