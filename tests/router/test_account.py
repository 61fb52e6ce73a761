"""Queries that are paid from one budget: planned at its price, within what is left, and settled."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from isoflop.errors import FailedPrecondition, ResourceExhausted, Unavailable, to_status
from isoflop.v1.common_pb2 import Capabilities
from isoflop.v1.router_pb2 import (
    Budget,
    BudgetStanding,
    Effort,
    Filters,
    GetBudgetRequest,
    Objective,
    SolveRequest,
)
from scripted_stages import ESTIMATE_FLOPS, HOLD, Said, listed, number, same
from scripted_suite import MakeSuite, Suite
from synthetic import EASY, EFFORTS, MIDDLE, make_model, make_profile

LONG = {"budget_window_seconds": 1e9}
"""A window that does not end while a test runs."""


def ask(**fields: object) -> SolveRequest:
    return SolveRequest(prompt="17*24+13", **fields)  # type: ignore[arg-type]


async def standing(suite: Suite) -> BudgetStanding:
    await suite.settled()
    (found,) = (await suite.router.budget(GetBudgetRequest())).budgets
    return found


async def left(suite: Suite) -> float:
    its = await standing(suite)
    assert its.reserved.flops == 0
    return its.limit.flops - its.spent.flops


async def price(suite: Suite) -> float:
    """Right answers that one more FLOP would buy."""
    return (await standing(suite)).shadow_price


async def solve_for_ever(suite: Suite) -> None:
    while True:
        await suite.router.solve(ask(effort=Effort.EFFORT_HIGH))


async def test_bills_are_settled_and_move_the_price(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), MIDDLE, budget_flops=1e12, **LONG)
    assert await price(suite) == pytest.approx(1 / EFFORTS["medium"])
    assert (await standing(suite)).ends.seconds % 1e9 == 0
    first = await suite.router.solve(ask())
    assert await left(suite) == pytest.approx(1e12 - first.bill.flops, rel=1e-12)
    # It took less than its share, as many as come by now: the budget is worth less.
    assert await price(suite) < 1 / EFFORTS["medium"]
    second = await suite.router.solve(ask())
    assert await left(suite) == pytest.approx(1e12 - first.bill.flops - second.bill.flops, rel=1e-12)


async def test_without_a_budget_there_is_no_price(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), MIDDLE)
    await suite.router.solve(ask())
    price = suite.registry.get_sample_value("isoflop_router_shadow_price", {"budget": "all"})
    assert price is None


async def test_only_queries_without_an_objective_follow_the_price(make_suite: MakeSuite) -> None:
    rich = make_suite(same(number(421)), MIDDLE)
    # No right answer is worth more than the whole budget, which is less than this profile's medium effort.
    profile = make_profile(efforts=EFFORTS | {"medium": 1e14})
    poor = make_suite(same(number(421)), MIDDLE, profile=profile, budget_flops=2e10, **LONG)

    async def bought(suite: Suite, request: SolveRequest) -> str:
        plan = await suite.router.plan(request)
        return f"{plan.action.model} {plan.action.samples} {plan.reason}"

    at_its_price = await bought(rich, ask(objective=Objective(flops_per_right_answer=2e10)))
    assert at_its_price != await bought(rich, ask())
    assert await bought(poor, ask()) == at_its_price
    for own in (
        ask(effort=Effort.EFFORT_LOW),
        ask(objective=Objective(target_accuracy=0.6)),
        ask(objective=Objective(flops_per_right_answer=1e9)),
    ):
        assert await bought(poor, own) == await bought(rich, own) != at_its_price


async def test_one_query_has_a_share_and_all_that_is_left_where_that_pays_for_nothing(
    make_suite: MakeSuite,
) -> None:
    def level(model: str, index: int) -> Said:
        """No answer gets ahead: it would go on until all is spent that a right answer is worth."""
        return number(index % 2)

    profile = make_profile(efforts=EFFORTS | {"medium": 1e10})
    votes = Filters(models=["m"], strategies=["majority"])
    wide = make_suite(level, MIDDLE, profile=profile, budget_flops=1e10, **LONG)
    free = make_suite(level, MIDDLE, profile=profile)
    shared, alone = [await suite.router.solve(ask(filters=votes)) for suite in (wide, free)]
    assert 0 < shared.bill.flops < 0.5e10 < alone.bill.flops

    # A share of this would pay for no sample.
    narrow = make_suite(level, EASY, budget_flops=3e7, **LONG)
    assert (await narrow.router.solve(ask())).bill.flops > ESTIMATE_FLOPS


async def test_a_query_can_spend_no_more_than_is_left(make_suite: MakeSuite) -> None:
    budget = 5e7
    suite = make_suite(same(number(1)), MIDDLE, budget_flops=budget, **LONG)
    result = await suite.router.solve(
        ask(effort=Effort.EFFORT_HIGH, filters=Filters(strategies=["majority"]))
    )
    free = make_suite(same(number(1)), MIDDLE)
    unbound = await free.router.solve(
        ask(effort=Effort.EFFORT_HIGH, filters=Filters(strategies=["majority"]))
    )
    assert result.bill.flops <= budget < unbound.bill.flops


async def test_a_spent_window_refuses_until_the_next(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, budget_flops=2e8, **LONG)
    with pytest.raises(ResourceExhausted, match="budget all") as caught:
        await solve_for_ever(suite)
    assert suite.metric("queries_total", outcome="answered") > 1
    assert await left(suite) < 2e8
    assert 0 < caught.value.retry_after <= 1e9
    assert [detail.TypeName() for detail in to_status(caught.value).details] == ["google.rpc.RetryInfo"]
    assert suite.metric("queries_total", outcome="failed_resource_exhausted") == 1
    with pytest.raises(ResourceExhausted):
        await suite.router.plan(ask())


async def test_who_allows_too_little_is_told_so_whatever_the_window_has(make_suite: MakeSuite) -> None:
    suite = make_suite(same(number(421)), EASY, budget_flops=1e12, **LONG)
    with pytest.raises(FailedPrecondition, match="the cheapest"):
        await suite.router.solve(ask(budget=Budget(flops=1000.0)))


async def test_a_query_that_no_model_can_serve_is_no_matter_of_the_window(make_suite: MakeSuite) -> None:
    # Its verifier needs log-probabilities.
    models = [make_model("plain", capabilities=Capabilities())]
    suite = make_suite(same(number(421)), EASY, models=models, budget_flops=1e12, **LONG)
    with pytest.raises(FailedPrecondition, match="no model can serve"):
        await suite.router.solve(ask(filters=Filters(models=["plain"], strategies=["best_of_n"])))


async def test_failed_and_cancelled_queries_are_paid_for_and_teach_no_price(make_suite: MakeSuite) -> None:
    failing = make_suite(same(Unavailable("gone")), MIDDLE, budget_flops=1e12, **LONG)
    before = await price(failing)
    with pytest.raises(Unavailable):
        await failing.router.solve(ask())
    assert await left(failing) == pytest.approx(1e12 - ESTIMATE_FLOPS, abs=1e-3)
    assert await price(failing) == before

    hanging = make_suite(listed(number(1), HOLD), MIDDLE, budget_flops=1e12, **LONG)
    async with aclosing(hanging.router.stream(ask(filters=Filters(models=["s"], samples=2)))) as events:
        async for event in events:
            if event.HasField("sample"):
                break
    await hanging.router.close()
    assert hanging.metric("queries_total", outcome="cancelled") == 1
    spent = hanging.generation.flops() + ESTIMATE_FLOPS
    assert await left(hanging) == pytest.approx(1e12 - spent, abs=1e-3)
    assert await price(hanging) == before
