"""Parts of a running suite that hang, die, or are restarted: what callers notice of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from isoflop import AsyncClient
from isoflop.errors import Unavailable
from isoflop.v1.router_pb2 import STATUS_ANSWERED, STATUS_DEGRADED, SolveResponse

from tests.cluster.conftest import Suite, distributed, start_services
from tests.cluster.processes import ROOT, Process

pytestmark = pytest.mark.cluster

HARD = "(43+(26+2)+39-97)%6*(18-(3+1-92+77)-26)-(12+7*(31-25))"
NOTICED_SECONDS = 15.0
"""A part that hangs is noticed within about 10 s."""
BACK_SECONDS = 5.0
"""A part that is back is used again within these."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """Of its own: breakers remember what the tests do."""
    with ExitStack() as stack:
        yield distributed(stack, tmp_path_factory.mktemp("failing"), ROOT / "models" / "catalog.yaml")


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(suite.address) as client:
        await client.solve("1+1")
        yield client


@contextmanager
def stopped(process: Process) -> Iterator[None]:
    """It hangs: its connections stay, and nothing comes."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


async def until_answered(client: AsyncClient) -> SolveResponse:
    """The answer to a query, asked as often as it is unavailable, as long as a part may take to be back."""
    async with asyncio.timeout(BACK_SECONDS):
        while True:
            try:
                return await client.solve("17+24*3", models=["abacus-l"], samples=2)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after)


async def test_a_difficulty_that_hangs_is_done_without(suite: Suite, client: AsyncClient) -> None:
    with stopped(suite.processes["difficulty"]):
        async with within(10):
            response = await client.solve("17+24*3", effort="high")
        assert (response.answer, response.status) == ("89", STATUS_DEGRADED)
        assert "difficulty was not estimated" in response.reason
    async with asyncio.timeout(BACK_SECONDS):
        while (await client.solve("17+24*3", effort="high")).status != STATUS_ANSWERED:
            pass


async def test_an_aggregation_that_hangs_is_missed_by_nobody(suite: Suite, client: AsyncClient) -> None:
    with stopped(suite.processes["aggregation"]):
        for _ in range(3):
            async with within(20):
                response = await client.solve("17+24*3", models=["abacus-m"], samples=4)
            assert (response.answer, response.status) == ("89", STATUS_ANSWERED)


async def test_a_verification_that_hangs_leaves_the_majority(suite: Suite, client: AsyncClient) -> None:
    with stopped(suite.processes["verification"]):
        async with within(NOTICED_SECONDS):
            response = await client.solve("17+24*3", models=["abacus-m"], samples=4, strategies=["best_of_n"])
        assert (response.answer, response.status) == ("89", STATUS_DEGRADED)
        assert "samples without scores: the verification service at" in response.reason
    async with asyncio.timeout(BACK_SECONDS):
        while (
            await client.solve("17+24*3", models=["abacus-m"], samples=4, strategies=["best_of_n"])
        ).status != STATUS_ANSWERED:
            pass


async def test_a_generation_that_hangs_is_unavailable_and_used_again_when_it_is_back(
    suite: Suite, client: AsyncClient
) -> None:
    with stopped(suite.generation):
        async with within(NOTICED_SECONDS):
            with pytest.raises(Unavailable, match="the generation service at"):
                await client.solve(HARD, models=["abacus-l"], samples=4)
        # It is known to be down now.
        async with within(1):
            with pytest.raises(Unavailable, match="the generation service at") as told:
                await client.solve(HARD, models=["abacus-l"], samples=4)
        assert 0 < told.value.retry_after <= 4
    assert (await until_answered(client)).status == STATUS_ANSWERED


async def test_a_router_that_ends_lets_its_queries_end_and_needs_its_services_for_it(
    suite: Suite, tmp_path: Path
) -> None:
    where = [word for name, one in suite.processes.items() for word in (f"--{name}", one.address)]
    router = Process(["router", *where[: where.index("--router")], "--drain-seconds", "30"], tmp_path)
    async with AsyncClient(router.address) as client:
        await client.solve("1+1")
        running = asyncio.ensure_future(client.solve("17+24*3", models=["abacus-l"], samples=48))
        async with asyncio.timeout(10):
            while not router.metrics("isoflop_router_queries_running"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await asyncio.to_thread(router.stop) == 0
        response = await running
        assert (response.answer, response.status) == ("89", STATUS_ANSWERED)
        with pytest.raises(Unavailable):
            await client.solve("1+1")
    assert "Traceback" not in router.log()


async def test_a_rolling_restart_of_replicas_under_load_fails_no_query(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = start_services(stack, tmp_path, ROOT / "models" / "catalog.yaml")
        replicas = [processes["generation"], Process(["services.generation"], tmp_path)]
        where = [word for name, one in processes.items() for word in (f"--{name}", one.address)]
        both = ",".join(replica.address for replica in replicas)
        router = Process(["router", *where, "--generation", both], tmp_path)
        stack.callback(router.stop)
        responses, over = list[SolveResponse](), asyncio.Event()

        async def ask(client: AsyncClient, number: int) -> None:
            while not over.is_set():
                number += 1
                query = f"{number % 97}*3+{number % 7}"
                responses.append(await client.solve(query, models=["abacus-m"], samples=3))

        async with AsyncClient(router.address) as client, asyncio.TaskGroup() as callers:
            for number in range(4):
                callers.create_task(ask(client, 100 * number))
            for replica in replicas:
                await asyncio.sleep(1)
                assert await asyncio.to_thread(replica.stop) == 0
                back = await asyncio.to_thread(
                    Process, ["services.generation", "--address", replica.address], tmp_path
                )
                stack.callback(back.stop)
            await asyncio.sleep(1)
            over.set()
        assert len(responses) > 20
        assert {response.status for response in responses} == {STATUS_ANSWERED}
        assert not [round.failure for response in responses for round in response.rounds if round.failure]


async def test_samples_of_a_generation_that_is_killed_are_bought_again_when_it_is_back(
    suite: Suite, client: AsyncClient, tmp_path: Path
) -> None:
    """The caller's next try finds it, and no sample has come twice."""
    address = suite.generation.address
    call = asyncio.ensure_future(client.solve(HARD, models=["abacus-l"], samples=64, seed=3))
    async with asyncio.timeout(10):
        while not suite.generation.metrics("isoflop_generation_samples_running"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    os.kill(suite.generation.pid, signal.SIGKILL)
    # What came before is an answer, and where nothing came there is none.
    (ended,) = await asyncio.gather(call, return_exceptions=True)
    if isinstance(ended, Unavailable):
        assert 0 < ended.retry_after <= 4
    else:
        assert isinstance(ended, SolveResponse)
        assert ended.status == STATUS_DEGRADED
        assert "no model is left to ask" in ended.reason
    with ExitStack() as stack:
        back = Process(["services.generation", "--address", address], tmp_path)
        stack.callback(back.stop)
        response = await until_answered(client)
        assert (response.answer, response.status) == ("89", STATUS_ANSWERED)
        assert [round.failure for round in response.rounds] == [""]
