"""Two routers on one PostgreSQL: two hundred do not overspend a budget for fifty, and both know its price."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import yaml
from isoflop import AsyncClient
from isoflop.errors import PermissionDenied, ResourceExhausted
from isoflop.v1.common_pb2 import STAGE_GENERATION
from isoflop.v1.router_pb2 import BudgetStanding, SolveResponse

from tests.cluster.conftest import Suite
from tests.cluster.processes import Process, run
from tests.postgres_server import NoPostgres, PostgresServer

pytestmark = pytest.mark.cluster

TENANTS = {
    "tiers": [{"name": "only"}],
    "tenants": [
        {"name": "fifty", "tier": "only", "budgets": [{"period": "month", "flops": 1e15, "tokens": 2500}]},
        {"name": "priced", "tier": "only", "budgets": [{"period": "month", "flops": 1e12}]},
    ],
}
# Some fifty tokens each, its prompt with them.
ASKED = {"models": ["abacus-s"], "samples": 1, "thinking_tokens": 40}


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of both routers."""
    path = tmp_path_factory.mktemp("budgets") / "tenants.yaml"
    path.write_text(yaml.safe_dump(TENANTS))
    return path


@pytest.fixture(scope="module")
def routers(
    distributed_suite: Suite, tenants: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, Process]]:
    """Two, on the services of the suite, with a ledger of their own."""
    with ExitStack() as stack:
        try:
            postgres = PostgresServer()
        except NoPostgres as reason:
            pytest.skip(str(reason))
        stack.callback(postgres.remove)
        postgres.start()
        done = run("router.ledger", "migrate", "--ledger", postgres.url())
        assert done.returncode == 0, done.stderr
        names = ("generation", "verification", "difficulty", "aggregation")
        where = [word for name in names for word in (f"--{name}", distributed_suite.processes[name].address)]
        options = ["--ledger", postgres.url(), "--tenants", str(tenants), "--max-running", "400"]
        options += ["--tenants-poll-seconds", "0.2"]
        started = [Process(["router", *where, *options], tmp_path_factory.mktemp("router")) for _ in range(2)]
        for router in started:
            stack.callback(router.stop)
        yield started[0], started[1]


@pytest.fixture
async def callers(routers: tuple[Process, Process]) -> AsyncIterator[dict[str, list[AsyncClient]]]:
    """By tenant: a caller of each router."""
    async with AsyncExitStack() as stack:
        yield {
            tenant: [
                await stack.enter_async_context(AsyncClient(router.address, tenant=tenant))
                for router in routers
            ]
            for tenant in ("fifty", "priced")
        }


async def standing(client: AsyncClient, tenant: str) -> BudgetStanding:
    """Once nothing is reserved any more."""
    while True:
        (found,) = (await client.budget(tenant)).budgets
        if not (found.reserved.tokens or found.reserved.flops):
            return found
        await asyncio.sleep(0.05)


async def test_two_hundred_at_once_do_not_overspend_it_by_one_token(
    callers: dict[str, list[AsyncClient]],
) -> None:
    clients = callers["fifty"]
    asked = [clients[number % 2].solve(f"{number}+17*3", **ASKED) for number in range(200)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    answered = [one for one in outcomes if isinstance(one, SolveResponse)]
    refused = [one for one in outcomes if isinstance(one, ResourceExhausted)]
    assert len(answered) + len(refused) == 200
    assert answered
    assert refused
    assert all(error.retry_after > 0 and "fifty/month" in str(error) for error in refused)
    found = await standing(clients[0], "fifty")
    assert found.spent.tokens == sum(response.bill.tokens for response in answered) <= 2500
    # What is left is bought by those who come again, up to the last query that fits.
    while True:
        try:
            answered.append(await clients[len(answered) % 2].solve("3+4", **ASKED))
        except ResourceExhausted:
            break
    found = await standing(clients[1], "fifty")
    assert found.spent.tokens == sum(response.bill.tokens for response in answered) <= 2500
    assert found.spent.tokens > 2200
    # Who was refused has cost the estimate of its difficulty at most.
    rows = {row.keys[1]: row for row in (await clients[0].bill(by=["tenant", "stage"])).rows}
    assert rows["generation"].queries == len(answered)
    lines = [line for response in answered for line in response.bill.lines if line.stage == STAGE_GENERATION]
    assert rows["generation"].usage.flops == pytest.approx(sum(line.flops for line in lines), rel=1e-9)


async def test_both_routers_know_one_price(callers: dict[str, list[AsyncClient]]) -> None:
    clients = callers["priced"]
    first = (await standing(clients[0], "priced")).shadow_price
    for number in range(6):
        await clients[number % 2].solve("17+24*3")
    async with asyncio.timeout(20):
        # It moves when a query has ended, which is after its answer.
        while True:
            one, other = [(await standing(client, "priced")).shadow_price for client in clients]
            if one == other != first:
                break
            await asyncio.sleep(0.1)


async def test_tenants_change_without_a_restart(routers: tuple[Process, Process], tenants: Path) -> None:
    async def until_planned(client: AsyncClient) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.plan("1+1")
                except PermissionDenied:
                    await asyncio.sleep(0.1)
                else:
                    return

    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(one.address, tenant="late")) for one in routers
        ]
        for client in clients:
            with pytest.raises(PermissionDenied, match="late"):
                await client.plan("1+1")
        known = [*TENANTS["tenants"], {"name": "late", "tier": "only"}]
        await asyncio.to_thread(tenants.write_text, yaml.safe_dump(TENANTS | {"tenants": known}))
        for client in clients:
            await until_planned(client)
        # What is no good changes nothing.
        await asyncio.to_thread(tenants.write_text, "tenants: [{name: late, tier: none}]")
        await asyncio.sleep(1.0)
        for client, router in zip(clients, routers, strict=True):
            await client.plan("1+1")
            assert "the tenants' file is not used" in router.log()
