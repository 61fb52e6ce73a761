"""Several replicas of generation: a query stays with one of them, and goes elsewhere where that is down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import grpc
import pytest
from isoflop.v1.generation_pb2 import DescribeModelsRequest, GenerateRequest
from prometheus_client import CollectorRegistry
from scripted_backend import NAME, ScriptedBackend, make_core, start, two_lines

from services.common.channels import Channels
from services.common.server import serving
from services.generation.remote import RemoteGeneration
from services.generation.servicer import face
from services.generation.settings import GenerationSettings

QUERIES = [f"query-{number}" for number in range(40)]


async def _one(query_id: str) -> AsyncIterator[GenerateRequest]:
    yield GenerateRequest(start=start(query_id=query_id))


async def play(remote: RemoteGeneration, query_id: str) -> int:
    """A round; how many samples have come."""
    async with aclosing(remote.generate(_one(query_id))) as responses:
        return sum([response.HasField("sample") async for response in responses])


class Replicas:
    """Two services, which may be ended one by one."""

    def __init__(self) -> None:
        self.backends = [ScriptedBackend(two_lines) for _ in range(2)]
        self.running = [AsyncExitStack() for _ in self.backends]
        self.channels = Channels()

    async def open(self) -> RemoteGeneration:
        addresses = []
        for backend, stack in zip(self.backends, self.running, strict=True):
            registry = CollectorRegistry()
            faces = [face(make_core(backend, registry=registry))]
            settings = GenerationSettings(address="127.0.0.1:0", drain_seconds=0)
            addresses.append(await stack.enter_async_context(serving(settings, faces, registry)))
        return RemoteGeneration(",".join(addresses), self.channels)

    def seen(self, number: int) -> list[str]:
        """Queries that one of them has had, a round each."""
        return [round.jobs[0].query_id for round in self.backends[number].rounds]

    async def close(self) -> None:
        await self.channels.close()
        for stack in self.running:
            await stack.aclose()


@pytest.fixture
async def replicas() -> AsyncIterator[Replicas]:
    made = Replicas()
    yield made
    await made.close()


async def test_all_rounds_of_a_query_go_to_one_replica_and_queries_to_both(replicas: Replicas) -> None:
    remote = await replicas.open()
    for _ in range(3):
        for query_id in QUERIES:
            assert await play(remote, query_id) == 1
    one, other = set(replicas.seen(0)), set(replicas.seen(1))
    assert not one & other
    assert one | other == set(QUERIES)
    # By lot, fewer than 8 of 40 for one of them would come once in 20,000 times.
    assert min(len(one), len(other)) >= 8
    assert (await remote.describe(DescribeModelsRequest())).models[0].name == NAME


async def test_where_its_replica_is_down_a_query_goes_to_another(replicas: Replicas) -> None:
    remote = await replicas.open()
    for query_id in QUERIES:
        await play(remote, query_id)
    moved = replicas.seen(0)
    await replicas.running[0].aclose()
    down = next(iter(remote._channels.values()))
    while (state := down.get_state(try_to_connect=True)) != grpc.ChannelConnectivity.TRANSIENT_FAILURE:
        await down.wait_for_state_change(state)
    for query_id in moved:
        assert await play(remote, query_id) == 1
    assert set(replicas.seen(1)) == set(QUERIES)
