"""A retry that comes to another router: it waits, gets the result, or goes on where a dead router stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from isoflop.errors import InvalidArgument, NotFound
from isoflop.v1.router_pb2 import Filters, GetBillRequest, Objective, SolveRequest, SolveResponse
from scripted_stages import HOLD, Said, number, same
from scripted_suite import MakeSuite, Suite

ASKED = SolveRequest(
    prompt="17*24+13",
    request_id="a",
    filters=Filters(models=["m"], strategies=["majority"]),
    objective=Objective(flops_per_right_answer=1e12),
)


@pytest.fixture
def shared(tmp_path: Path) -> dict[str, Any]:
    """Settings of routers that share a ledger and buy two samples at a time."""
    return {"ledger": f"sqlite:///{tmp_path / 'ledger.db'}", "round_samples": 2}


async def begun(suite: Suite, held: asyncio.Event) -> asyncio.Task[SolveResponse]:
    """A call that waits for samples which never come."""
    task = asyncio.create_task(suite.router.solve(ASKED))
    await held.wait()
    await suite.written()
    return task


def level(index: int) -> Said:
    """No answer gets ahead."""
    return number(index % 2)


async def test_another_router_has_the_result(make_suite: MakeSuite, shared: dict[str, Any]) -> None:
    first, second = (make_suite(same(number(421)), **shared) for _ in range(2))
    result = await first.router.solve(ASKED)
    await first.written()
    assert await second.router.solve(ASKED) == result
    assert not second.generation.starts
    assert (await second.router.query(result.query_id)).result == result
    with pytest.raises(InvalidArgument, match="request_id"):
        await second.router.solve(SolveRequest(prompt="1+1", request_id="a"))


async def test_what_a_dead_router_has_settled_is_used_and_what_it_lost_is_charged_once(
    make_suite: MakeSuite, shared: dict[str, Any]
) -> None:
    # It never says that it lives.
    held = asyncio.Event()

    def dies(model: str, index: int) -> Said:
        if index < 4:
            return level(index)
        held.set()
        return HOLD

    dying = make_suite(dies, **shared)
    call = await begun(dying, held)
    before = len(dying.generation.starts)
    second = make_suite(same(number(1)), **shared)
    result = await second.router.solve(ASKED)
    assert result.answer == "1"
    # Rounds that were settled, one that was lost, and what the second router bought.
    assert [round.completed > 0 for round in result.rounds[:before]] == [True] * (before - 1) + [False]
    assert len(result.rounds) > before > 1
    voters = [member for cluster in result.clusters for member in cluster.members]
    assert len(voters) == sum(round.completed for round in result.rounds)
    # Samples are not numbered twice.
    assert min(start.first_sample for start in second.generation.starts) >= 4
    await second.written()
    found = await second.router.query(result.query_id)
    assert [charge.round for charge in found.charges if charge.unreconciled] == [before - 1]
    assert sum(charge.usage.flops for charge in found.charges) == pytest.approx(result.bill.flops, rel=1e-9)
    (row,) = (await second.router.bill(GetBillRequest())).rows
    assert row.queries == 1
    assert row.usage.flops == pytest.approx(result.bill.flops, rel=1e-9)
    assert row.unreconciled_flops > 0

    # It was not dead, but late: what it had bought is known, and its query is another's.
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await dying.router.close()
    await second.written()
    (late,) = (await second.router.bill(GetBillRequest())).rows
    assert late.unreconciled_flops == 0
    assert late.usage.flops < row.usage.flops
    assert (await second.router.query(result.query_id)).result == result


async def test_a_router_that_lives_keeps_its_query(make_suite: MakeSuite, shared: dict[str, Any]) -> None:
    held = asyncio.Event()

    def waits(model: str, index: int) -> Said:
        held.set()
        return HOLD

    first = make_suite(waits, **shared, address="127.0.0.1:1", rejoin_seconds=0.0)
    second = make_suite(same(number(1)), **shared)
    async with first.router.living():
        call = await begun(first, held)
        # Nobody answers at its address, but its lease runs.
        retry = asyncio.create_task(second.router.solve(ASKED))
        done, _ = await asyncio.wait({retry}, timeout=0.5)
        assert not done
        assert not second.generation.starts
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    # It has ended in order, and its query with it: the retry begins anew.
    assert (await retry).answer == "1"
    assert len(second.generation.starts) >= 1


async def test_queries_of_other_tenants_are_not_there(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)))
    with pytest.raises(NotFound):
        await suite.router.query("0" * 32)
