"""Several replicas of generation: a query stays with one of them, and goes elsewhere where that is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing

import grpc
import pytest
from isoflop.errors import Unavailable
from isoflop.v1.generation_pb2 import AbortSamples, Branch, DescribeModelsRequest, GenerateRequest
from prometheus_client import CollectorRegistry
from scripted_backend import (
    NAME,
    ScriptedBackend,
    make_core,
    put_two_lines,
    start,
    two_lines,
    until_aborted,
)

from services.common.channels import Channels
from services.common.server import serving
from services.generation.backends import Round
from services.generation.remote import RemoteGeneration
from services.generation.servicer import face
from services.generation.settings import GenerationSettings

QUERIES = [f"query-{number}" for number in range(40)]


async def _one(query_id: str, samples: int) -> AsyncIterator[GenerateRequest]:
    yield GenerateRequest(start=start(query_id=query_id, branches=[Branch(samples=samples)]))


async def play(remote: RemoteGeneration, query_id: str, samples: int = 1) -> int:
    """A round; how many samples have come."""
    async with aclosing(remote.generate(_one(query_id, samples))) as responses:
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

    def number_of(self, query_id: str) -> int:
        """The one that a query went to first."""
        return 0 if query_id in self.seen(0) else 1

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


async def test_a_round_that_its_replica_does_not_take_goes_to_another_at_once(replicas: Replicas) -> None:
    """Though the router has not heard yet that the replica has gone."""
    remote = await replicas.open()
    for query_id in QUERIES:
        await play(remote, query_id)
    moved = replicas.seen(0)
    await replicas.running[0].aclose()
    for query_id in moved:
        assert await play(remote, query_id) == 1
    assert set(replicas.seen(1)) == set(QUERIES)
    assert (await remote.describe(DescribeModelsRequest())).models[0].name == NAME


async def failing_at_once(round: Round) -> None:
    raise Unavailable("the engine is down")


async def failing_in_the_middle(round: Round) -> None:
    put_two_lines(round, round.jobs[0])
    await asyncio.sleep(0)
    raise Unavailable("the engine is down")


async def test_a_round_of_which_nothing_was_sampled_goes_to_another_replica_and_others_do_not(
    replicas: Replicas,
) -> None:
    remote = await replicas.open()
    assert await play(remote, "a") == 1
    first = replicas.number_of("a")
    replicas.backends[first].play = failing_at_once
    assert await play(remote, "a") == 1
    assert replicas.seen(1 - first) == ["a"]
    replicas.backends[first].play = failing_in_the_middle
    with pytest.raises(Unavailable, match="the engine is down"):
        await play(remote, "a", samples=2)
    assert replicas.seen(1 - first) == ["a"]


async def test_where_all_replicas_fail_the_round_does(replicas: Replicas) -> None:
    remote = await replicas.open()
    for backend in replicas.backends:
        backend.play = failing_at_once
    with pytest.raises(Unavailable, match="the engine is down"):
        await play(remote, "a")
    assert replicas.seen(0) == replicas.seen(1) == ["a"]


async def test_a_round_that_went_to_another_replica_can_be_aborted_there(replicas: Replicas) -> None:
    remote = await replicas.open()
    assert await play(remote, "a") == 1
    first = replicas.number_of("a")
    replicas.backends[first].play = failing_at_once
    replicas.backends[1 - first].play = until_aborted
    enough = asyncio.Event()

    async def requests() -> AsyncIterator[GenerateRequest]:
        yield GenerateRequest(start=start(query_id="a"))
        await enough.wait()
        yield GenerateRequest(abort=AbortSamples())

    async with aclosing(remote.generate(requests())) as responses, asyncio.timeout(5):
        asyncio.get_running_loop().call_later(0.1, enough.set)
        found = [response async for response in responses]
    assert [response.WhichOneof("event") for response in found] == ["sample", "usage"]
    assert found[1].usage.aborted_tokens == 3
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "requests of a round"]
