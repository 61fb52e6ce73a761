"""How a server ends: it takes nothing new, lets what runs end, and has the rest ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from isoflop.errors import Unavailable
from isoflop.rpc import CHANNEL_OPTIONS, from_rpc_error
from isoflop.v1 import verification_pb2 as pb
from isoflop.v1 import verification_pb2_grpc as rpc
from prometheus_client import CollectorRegistry

from services.common.server import Face, serving
from services.common.settings import ServiceSettings

SERVING = health_pb2.HealthCheckResponse.SERVING


class Verifier(rpc.VerificationServiceServicer):
    """Each call runs until the test lets all go on, or the service ends."""

    def __init__(self) -> None:
        self.running = 0
        self.go_on = asyncio.Event()
        self.ended = False

    async def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:
        self.running += 1
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        if self.ended:
            raise Unavailable("shutting down", 0.25)
        return pb.ScoreResponse(tokens=1)

    async def end(self) -> None:
        self.ended = True
        self.go_on.set()


class Drained:
    """A server, and a caller of it."""

    def __init__(self, **settings: float) -> None:
        self.verifier = Verifier()
        self.settings = ServiceSettings(address="127.0.0.1:0", **settings)  # type: ignore[arg-type]
        self.stack = AsyncExitStack()

    async def open(self, *, ends: bool = True) -> Drained:
        name, add = "isoflop.v1.VerificationService", rpc.add_VerificationServiceServicer_to_server
        face = Face(name, self.verifier, add, end=self.verifier.end if ends else None)
        registry = CollectorRegistry()
        self.address = await self.stack.enter_async_context(serving(self.settings, [face], registry))
        self.channel = grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
        return self

    def drain(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.stack.aclose())

    async def call(self) -> pb.ScoreResponse:
        try:
            return await rpc.VerificationServiceStub(self.channel).Score(pb.ScoreRequest())
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from None

    async def begin(self) -> asyncio.Task[pb.ScoreResponse]:
        """A call that runs."""
        before = self.verifier.running
        call = asyncio.create_task(self.call())
        async with asyncio.timeout(5):
            while self.verifier.running == before:  # noqa: ASYNC110 (the server tells nobody)
                await asyncio.sleep(0.01)
        return call

    async def health(self) -> health_pb2.HealthCheckResponse.ServingStatus:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest())).status

    async def until_not_serving(self, *, seen: bool = True) -> None:
        """Where it is not `seen`, until nobody answers."""
        async with asyncio.timeout(5):
            while await self.health() == SERVING or not seen:  # noqa: ASYNC110 (nor of this)
                await asyncio.sleep(0.01)


@pytest.fixture
async def made() -> AsyncIterator[list[Drained]]:
    all_of_them: list[Drained] = []
    yield all_of_them
    for one in all_of_them:
        one.verifier.go_on.set()
        await one.channel.close()
        await one.stack.aclose()


async def test_what_runs_ends_and_what_is_new_is_refused_at_once(made: list[Drained]) -> None:
    server = await Drained(drain_seconds=60).open()
    made.append(server)
    running = await server.begin()
    draining = server.drain()
    with pytest.raises(grpc.aio.AioRpcError):
        await server.until_not_serving(seen=False)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(server.call(), 1)
    assert not draining.done()
    server.verifier.go_on.set()
    assert (await running).tokens == 1
    await asyncio.wait_for(draining, 5)


async def test_while_it_is_heard_of_it_is_not_serving_and_takes_calls(made: list[Drained]) -> None:
    server = await Drained(drain_notice_seconds=60, drain_seconds=0).open()
    made.append(server)
    draining = server.drain()
    await server.until_not_serving()
    running = await server.begin()
    server.verifier.go_on.set()
    assert (await running).tokens == 1
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)


async def test_what_takes_too_long_is_ended_and_its_caller_is_told(made: list[Drained]) -> None:
    server = await Drained(drain_seconds=0.1).open()
    made.append(server)
    running = await server.begin()
    await asyncio.wait_for(server.drain(), 5)
    with pytest.raises(Unavailable, match="shutting down") as told:
        await running
    assert told.value.retry_after == 0.25


async def test_what_cannot_end_is_cut_and_unavailable_all_the_same(made: list[Drained]) -> None:
    server = await Drained(drain_seconds=0.1).open(ends=False)
    made.append(server)
    running = await server.begin()
    await asyncio.wait_for(server.drain(), 5)
    with pytest.raises(Unavailable):
        await running
    assert server.verifier.running == 0


async def test_who_watches_health_does_not_hold_it_up(made: list[Drained]) -> None:
    server = await Drained(drain_seconds=60).open()
    made.append(server)
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    draining = server.drain()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await asyncio.wait_for(draining, 10)
