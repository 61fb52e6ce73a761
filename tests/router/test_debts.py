"""What a round has cost that could not say so is asked for, and paid when it is known."""

from __future__ import annotations

import asyncio

from isoflop.errors import Unavailable
from isoflop.v1.generation_pb2 import RoundUsage
from isoflop.v1.router_pb2 import STATUS_DEGRADED, Filters, GetBillRequest, SolveRequest
from scripted_stages import listed, number
from scripted_suite import MakeSuite

ASKED = SolveRequest(prompt="17*24+13", filters=Filters(models=["m"], samples=2))


async def test_a_broken_round_is_paid_when_generation_tells(make_suite: MakeSuite) -> None:
    broken = listed(number(1), Unavailable("the connection broke"))
    suite = make_suite(broken, breaker_failures=1)
    assert (await suite.router.solve(ASKED)).status == STATUS_DEGRADED
    await suite.settled()
    labels = {"stage": "generation", "model": "m", "strategy": "majority", "kind": "completion"}
    seen = suite.metric("tokens_total", **labels)
    # The round is not known, and nothing more is paid; the next one is.
    told = RoundUsage(samples=2, prompt_tokens=9, completion_tokens=int(seen) + 30, context_tokens=100)
    original = suite.generation.usage

    async def usage(request):  # type: ignore[no-untyped-def]
        suite.generation.usages[request.round_id] = told
        return await original(request)

    suite.generation.usage = usage  # type: ignore[method-assign]
    await asyncio.sleep(1.0)  # The breaker lets a trial through.
    assert (await suite.router.solve(ASKED)).status == STATUS_DEGRADED
    await suite.settled()
    assert suite.metric("tokens_total", **labels) == 2 * seen + 30
    (row,) = [
        row
        for row in (await suite.router.bill(GetBillRequest(by=["stage"]))).rows
        if row.keys == ["generation"]
    ]
    assert row.usage.completion_tokens == 2 * seen + 30
    assert row.usage.prompt_tokens == 9
