"""Budgets: what is reserved, settled, lost and set right, on SQLite and PostgreSQL."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from isoflop.errors import FailedPrecondition, NotFound
from ledger_parts import (
    DAY,
    LEASE,
    NOW,
    WORTH,
    Clock,
    MakeLedger,
    answer,
    begun,
    budget,
    entry,
    round,
    usage,
)

from router import price
from router.cost import Cost
from router.ledger import Budget, Short, TakenOver
from router.ledger.sql import SqlLedger


async def test_a_round_is_reserved_and_settled(ledger: SqlLedger) -> None:
    day, everybody = budget(tokens=100), budget("all", "month", flops=1e15, money=1.0)
    await begun(ledger)

    told = await ledger.reserve("q", "r", 0, round(), Cost(1e12, 0.25, 60), [day, everybody])
    assert [one.budget for one in told] == [day, everybody]
    assert [one.reserved for one in told] == [Cost(1e12, 0.25, 60)] * 2
    assert told[0].left == Cost(math.inf, math.inf, 40)
    assert (told[0].starts, told[0].ends) == (NOW - DAY / 2, NOW + DAY / 2)

    told = await ledger.settle("q", 0, round(), [usage(30, 5e11, 0.125), usage(10)], b"", [everybody, day])
    assert [one.budget for one in told] == [everybody, day]
    assert [one.reserved for one in told] == [Cost()] * 2
    assert [one.spent for one in told] == [Cost(5e11, 0.125, 40)] * 2
    assert await ledger.standings([day, everybody]) == list(reversed(told))


@pytest.mark.parametrize(
    ("unit", "worst"), [("flops", Cost(6, 1, 1)), ("money", Cost(1, 6, 1)), ("tokens", Cost(1, 1, 6))]
)
async def test_each_unit_of_each_budget_binds(ledger: SqlLedger, unit: str, worst: Cost) -> None:
    tight, wide = budget("b/day", **{unit: 10}), budget("a/day", flops=100, money=100, tokens=100)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), worst, [tight, wide])
    with pytest.raises(Short) as short:
        await ledger.reserve("q", "r", 1, round(1), worst, [tight, wide])
    assert short.value.standing.budget == tight
    assert getattr(short.value.standing.left, unit) == 4
    # Nothing was written, not even where there was room.
    assert [one.reserved for one in await ledger.standings([tight, wide])] == [worst] * 2
    kept = await ledger.get("q")
    assert kept
    assert [one.index for one in kept.rounds] == [0]
    # Other units of that budget are free.
    more = replace(Cost(6, 6, 6), **{unit: 4})
    await ledger.reserve("q", "r", 1, round(1), more, [tight, wide])


async def test_a_limit_may_be_used_up_to_the_last(ledger: SqlLedger) -> None:
    tenths = budget(money=0.3)
    await begun(ledger)
    for index in range(3):  # 0.1 + 0.1 + 0.1 > 0.3
        (told,) = await ledger.reserve("q", "r", index, round(index), Cost(money=0.1), [tenths])
    assert told.left.money == 0
    with pytest.raises(Short):
        await ledger.reserve("q", "r", 3, round(3), Cost(money=1e-6), [tenths])


async def test_what_is_spent_already_keeps_nothing_from_what_costs_none_of_it(ledger: SqlLedger) -> None:
    day = budget(money=1.0)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(money=1.0), [day])
    await ledger.settle("q", 0, round(), [usage(money=2.0)], b"", [day])
    await ledger.reserve("q", "r", 1, round(1), Cost(flops=1e9, tokens=100), [day])
    with pytest.raises(Short):
        await ledger.reserve("q", "r", 2, round(2), Cost(money=1e-9), [day])


async def test_a_round_may_take_more_and_less(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    await begun(ledger)
    for worst in (50, 80, 80, 30, 100):
        (told,) = await ledger.reserve("q", "r", 0, round(), Cost(tokens=worst), [day])
        assert told.reserved.tokens == worst
    with pytest.raises(Short):
        await ledger.reserve("q", "r", 0, round(), Cost(tokens=101), [day])
    kept = await ledger.get("q")
    assert kept
    assert [one.worst.tokens for one in kept.rounds] == [100]
    (told,) = await ledger.settle("q", 0, round(), [usage(7)], b"", [day])
    assert (told.spent.tokens, told.reserved.tokens) == (7, 0)


@pytest.mark.parametrize("worst", [Cost(math.inf), Cost(money=-1.0), Cost(tokens=math.nan)])
async def test_what_is_reserved_is_finite(ledger: SqlLedger, worst: Cost) -> None:
    await begun(ledger)
    with pytest.raises(ValueError, match="finite"):
        await ledger.reserve("q", "r", 0, round(), worst, [budget()])


async def test_tokens_are_whole(ledger: SqlLedger) -> None:
    day = budget(tokens=10.9)
    await begun(ledger)
    (told,) = await ledger.reserve("q", "r", 0, round(), Cost(tokens=9.2), [day])
    assert told.reserved.tokens == 10
    with pytest.raises(Short):
        await ledger.reserve("q", "r", 1, round(1), Cost(tokens=0.5), [day])


async def test_the_window_that_was_reserved_in_pays(ledger: SqlLedger, clock: Clock) -> None:
    day, month = budget(tokens=100), budget("t/month", "month", tokens=1000)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day, month])
    clock.now += DAY
    assert [one.reserved.tokens for one in await ledger.standings([day, month])] == [0, 60]
    told = await ledger.reserve("q", "r", 0, round(), Cost(tokens=90), [day, month])
    assert [one.reserved.tokens for one in told] == [0, 90]
    with pytest.raises(Short):  # In that window, too.
        await ledger.reserve("q", "r", 0, round(), Cost(tokens=110), [day, month])
    told = await ledger.settle("q", 0, round(), [usage(50)], b"", [day, month])
    assert [one.spent.tokens for one in told] == [0, 50]
    clock.now -= DAY
    assert [one.spent.tokens for one in await ledger.standings([day, month])] == [50, 50]
    assert [one.reserved.tokens for one in await ledger.standings([day, month])] == [0, 0]


async def test_a_budget_that_is_gone_is_still_freed(ledger: SqlLedger) -> None:
    day, month = budget(tokens=100), budget("t/month", "month", tokens=100)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day, month])
    # Meanwhile the tenant has no budget of months any more, and a lower one of days.
    (told,) = await ledger.reserve("q", "r", 0, round(), Cost(tokens=50), [budget(tokens=10)])
    assert told.reserved.tokens == 50
    await ledger.settle("q", 0, round(), [usage(20)], b"", [])
    assert [one.spent.tokens for one in await ledger.standings([day, month])] == [20, 20]
    assert [one.reserved.tokens for one in await ledger.standings([day, month])] == [0, 0]


async def test_settling_twice_charges_once(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    for _ in range(2):
        (told,) = await ledger.settle("q", 0, round(), [usage(50)], b"", [day])
        assert (told.spent.tokens, told.reserved.tokens) == (50, 0)
    (told,) = await ledger.settle("q", 0, round(), [usage(40)], b"", [day])
    assert told.spent.tokens == 40
    with pytest.raises(FailedPrecondition, match="settled"):
        await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day])


async def test_what_was_never_reserved_is_charged(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    await begun(ledger)
    for _ in range(2):
        await ledger.estimated("q", [usage(5, model="e")], [day])
        (told,) = await ledger.settle("q", 0, round(), [usage(200)], b"", [day])
        assert (told.spent.tokens, told.reserved.tokens) == (205, 0)
    kept = await ledger.get("q")
    assert kept
    assert list(kept.estimate) == [usage(5, model="e")]
    assert [list(one.charges) for one in kept.rounds] == [[usage(200)]]


async def test_nothing_is_charged_to_a_query_that_is_not_there(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    with pytest.raises(TakenOver):
        await ledger.reserve("q", "r", 0, round(), Cost(tokens=1), [day])
    with pytest.raises(NotFound):
        await ledger.settle("q", 0, round(), [usage(1)], b"", [day])
    with pytest.raises(NotFound):
        await ledger.estimated("q", [usage(1)], [day])
    with pytest.raises(NotFound):
        await ledger.end("q", "r", "answered", answer(), [day])
    (told,) = await ledger.standings([day])
    assert (told.spent, told.reserved) == (Cost(), Cost())


async def test_what_a_dead_router_has_reserved_is_charged_in_full(
    make_ledger: MakeLedger, clock: Clock
) -> None:
    one, other, day = make_ledger(), make_ledger(), budget(tokens=100)
    await begun(one)
    await one.reserve("q", "r", 0, round(), Cost(1e9, 0.5, 60), [day])
    await one.settle("q", 0, round(), [usage(10)], b"", [day])
    await one.reserve("q", "r", 1, round(1, "big"), Cost(1e9, 0.5, 60), [day])
    clock.now += LEASE
    await other.alive("s", "host:2", LEASE)
    (told,) = await other.standings([day])
    assert (told.spent.tokens, told.reserved.tokens) == (10, 60)

    clock.now += 0.1
    for _ in range(2):
        await other.alive("s", "host:2", LEASE)
        (told,) = await other.standings([day])
        assert (told.spent, told.reserved) == (Cost(1e9, 0.5, 70), Cost())
    kept = await other.get("q")
    assert kept
    assert [one.settled for one in kept.rounds] == [True, True]
    assert [one.unreconciled for one in kept.rounds] == [False, True]
    (line,) = kept.rounds[1].charges
    assert (line.model, line.strategy) == ("big", "majority")
    assert (line.aborted_tokens, line.aborted_flops, line.aborted_money) == (60, 1e9, 0.5)
    assert (line.flops, line.money, line.completion_tokens) == (1e9, 0.5, 0)


async def test_a_late_router_sets_right_what_was_charged_as_lost(
    make_ledger: MakeLedger, clock: Clock
) -> None:
    late, other, day = make_ledger(), make_ledger(), budget(tokens=100)
    await begun(late)
    await late.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    clock.now += 2 * LEASE
    await other.alive("s", "host:2", LEASE)
    await late.alive("r", "host:1", LEASE)
    (told,) = await late.settle("q", 0, round(), [usage(20)], b"kept", [day])
    assert (told.spent.tokens, told.reserved.tokens) == (20, 0)
    kept = await late.get("q")
    assert kept
    assert kept.running
    assert not kept.rounds[0].unreconciled
    assert kept.rounds[0].candidates == b"kept"
    assert list(kept.rounds[0].charges) == [usage(20)]
    (row,) = await late.bill(0, math.inf, [])
    assert row.unreconciled_flops == 0
    # It goes on.
    (told,) = await late.reserve("q", "r", 1, round(1), Cost(tokens=60), [day])
    assert told.reserved.tokens == 60


async def test_a_late_router_may_go_on_with_a_round_that_was_charged_as_lost(
    make_ledger: MakeLedger, clock: Clock
) -> None:
    late, other, day = make_ledger(), make_ledger(), budget(tokens=100)
    await begun(late)
    await late.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    clock.now += 2 * LEASE
    await other.alive("s", "host:2", LEASE)
    await late.alive("r", "host:1", LEASE)
    (told,) = await late.reserve("q", "r", 0, round(), Cost(tokens=90), [day])
    assert (told.spent.tokens, told.reserved.tokens) == (0, 90)
    assert await late.bill(0, math.inf, []) == []


async def test_a_router_that_has_gone_holds_nothing(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    await ledger.gone("r")
    (told,) = await ledger.standings([day])
    assert (told.spent.tokens, told.reserved.tokens) == (60, 0)
    kept = await ledger.get("q")
    assert kept
    assert not kept.running


async def test_the_price_takes_the_step_of_a_query_that_has_ended(ledger: SqlLedger, clock: Clock) -> None:
    day, hour, free = budget(flops=1e15), budget("all", "hour", flops=1e14), budget("u/day")
    budgets = [day, free, hour]
    before = {one.budget.name: one for one in await ledger.standings(budgets)}
    assert before["t/day"].pace.worth == pytest.approx(WORTH)
    assert before["u/day"].pace.price == 0
    paces = {one.name: price.begin(_window(one), WORTH, clock.now) for one in (day, hour)}
    for number in range(3):
        query_id = f"q{number}"
        await begun(ledger, query_id)
        clock.now += 60
        await ledger.estimated(query_id, [usage(flops=1e10)], budgets)
        await ledger.reserve(query_id, "r", 0, round(), Cost(4e13), budgets)
        await ledger.settle(query_id, 0, round(), [usage(flops=2e13)], b"", budgets)
        for _ in range(2):  # Saying it twice moves it once.
            told = await ledger.end(query_id, "r", "answered", answer(query_id), budgets)
        assert [one.budget for one in told] == budgets
        for one in (day, hour):
            paces[one.name] = price.settle(_window(one), paces[one.name], 2e13 + 1e10, clock.now)
            (standing,) = await ledger.standings([one])
            assert standing.pace.price == pytest.approx(paces[one.name].price)
            assert standing.pace.queries == pytest.approx(paces[one.name].queries)
            assert standing.pace.watched == pytest.approx(paces[one.name].watched)
            assert standing.pace.spent == pytest.approx(paces[one.name].spent)
    # One that fails says nothing of it.
    await begun(ledger, "failed")
    await ledger.settle("failed", 0, round(), [usage(flops=2e13)], b"", budgets)
    told = await ledger.end("failed", "r", "failed_internal", None, budgets)
    assert told[0].pace.price == pytest.approx(paces["t/day"].price)
    assert told[0].pace.spent == pytest.approx(paces["t/day"].spent + 2e13)
    # A new window has all of it; the price stays.
    clock.now += DAY
    (standing,) = await ledger.standings([day])
    assert standing.pace.spent == 0
    assert standing.pace.price == pytest.approx(paces["t/day"].price)


async def test_routers_share_a_price(make_ledger: MakeLedger) -> None:
    one, other, day = make_ledger(), make_ledger(), budget(flops=1e15)
    (before,) = await other.standings([day])
    await begun(one)
    await one.settle("q", 0, round(), [usage(flops=5e14)], b"", [day])
    (told,) = await one.end("q", "r", "answered", answer(), [day])
    assert told.pace.price > before.pace.price
    assert (await other.standings([day]))[0].pace.price == told.pace.price


async def test_a_limit_of_flops_that_is_new_has_a_first_price(ledger: SqlLedger) -> None:
    assert (await ledger.standings([budget()]))[0].pace.price == 0
    (standing,) = await ledger.standings([budget(flops=1e15)])
    assert standing.pace.worth == pytest.approx(WORTH)


async def test_a_round_that_is_still_reserved_at_the_end_is_charged_in_full(ledger: SqlLedger) -> None:
    day = budget(tokens=100)
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    (told,) = await ledger.end("q", "r", "failed_unavailable", None, [day])
    assert (told.spent.tokens, told.reserved.tokens) == (60, 0)
    (told,) = await ledger.settle("q", 0, round(), [usage(20)], b"", [day])
    assert told.spent.tokens == 20
    with pytest.raises(TakenOver):
        await ledger.reserve("q", "r", 1, round(1), Cost(tokens=1), [day])


async def test_no_budgets_is_none(ledger: SqlLedger) -> None:
    await begun(ledger)
    assert await ledger.reserve("q", "r", 0, round(), Cost(tokens=60), []) == []
    assert await ledger.settle("q", 0, round(), [usage(20)], b"", []) == []
    assert await ledger.end("q", "r", "answered", answer(), []) == []
    assert await ledger.standings([]) == []
    assert await ledger.begin(entry("other")) is None


def _window(one: Budget) -> price.Window:
    return price.Window(one.limit.flops, one.period)


async def test_explored_rounds_are_the_platforms_expense(ledger: SqlLedger) -> None:
    await begun(ledger)
    explored = round()
    explored.explored = True
    await ledger.reserve("q", "r", 0, explored, Cost(tokens=9), [])
    await ledger.settle("q", 0, explored, [usage(5)], b"", [])
    await ledger.reserve("q", "r", 1, round(1), Cost(tokens=9), [])
    await ledger.settle("q", 1, round(1), [usage(7)], b"", [])
    rows = await ledger.bill(0.0, math.inf, ["tenant"])
    assert {row.keys[0]: row.usage.completion_tokens for row in rows} == {"platform": 5, "t": 7}
