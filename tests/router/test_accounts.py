"""Budgets, bills and queries of the ledger, as the contract has them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import InvalidArgument
from isoflop.v1.common_pb2 import STAGE_DIFFICULTY, STAGE_GENERATION, Usage
from isoflop.v1.router_pb2 import Action, GetBillRequest, Round, SolveResponse

from router.accounts import bill_asked, bill_message, query_message, standing_message
from router.cost import Cost
from router.ledger import BY, BillRow, Budget, Entry, QueryKept, RoundKept, Standing
from router.period import MONTH, Period
from router.price import Pace

NOVEMBER, DECEMBER = (datetime(2026, month, 1, tzinfo=UTC).timestamp() for month in (11, 12))
NOW = NOVEMBER + 86400.0

ESTIMATE = Usage(stage=STAGE_DIFFICULTY, model="difficulty", calls=1, flops=1192.0)
SAMPLES = Usage(stage=STAGE_GENERATION, model="abacus-s", strategy="majority", calls=4, flops=2e8)
SCORES = Usage(stage=STAGE_GENERATION, model="abacus-prm", strategy="majority", calls=4, flops=1e8)
ENTRY = Entry("q1", "r1", b"asked", "acme", "gold", "router-1", NOW, 7)


def standing(limit: Cost) -> Standing:
    return Standing(
        Budget("acme/month", "acme", Period(MONTH), limit),
        NOVEMBER,
        DECEMBER,
        spent=Cost(1e12, 3.5, 12_345),
        reserved=Cost(2e9, 0.25, 678.0),
        pace=Pace(1.8e-10, NOW),
    )


def kept(*rounds: RoundKept, outcome: str = "", ended: float | None = None, address: str = "") -> QueryKept:
    return QueryKept(ENTRY, outcome, ended, None, rounds, [ESTIMATE], address)


def a_round(index: int, *charges: Usage, unreconciled: bool = False) -> RoundKept:
    told = Round(index=index, action=Action(model="abacus-s", samples=4), reason="it pays")
    return RoundKept(index, told, Cost(1e9, 1.0, 512), charges, bool(charges), unreconciled, b"")


# Budgets.


def test_a_budget_in_its_window() -> None:
    told = standing_message(standing(Cost(5e15, 2000.0, 10**9)))
    assert (told.name, told.tenant, told.period) == ("acme/month", "acme", "month")
    assert told.starts.ToDatetime(UTC) == datetime(2026, 11, 1, tzinfo=UTC)
    assert told.ends.ToDatetime(UTC) == datetime(2026, 12, 1, tzinfo=UTC)
    assert (told.limit.flops, told.limit.money, told.limit.tokens) == (5e15, 2000.0, 10**9)
    assert (told.spent.flops, told.spent.money, told.spent.tokens) == (1e12, 3.5, 12_345)
    assert (told.reserved.flops, told.reserved.money, told.reserved.tokens) == (2e9, 0.25, 678)
    assert told.shadow_price == 1.8e-10


@given(st.sets(st.sampled_from(["flops", "money", "tokens"])))
def test_what_has_no_limit_is_absent(limited: set[str]) -> None:
    limit = Cost(**{unit: 5.0 if unit in limited else math.inf for unit in ("flops", "money", "tokens")})
    told = standing_message(standing(limit))
    assert {field.name for field, _ in told.limit.ListFields()} == limited
    # What is spent is told of each, limited or not; and only FLOPs have a price.
    assert len(told.spent.ListFields()) == len(told.reserved.ListFields()) == 3
    assert told.HasField("shadow_price") == ("flops" in limited)


def test_a_limit_of_nothing_is_a_limit() -> None:
    told = standing_message(standing(Cost(0.0, 0.0, 0)))
    assert all(told.limit.HasField(unit) for unit in ("flops", "money", "tokens"))


# Queries.


def test_a_query_with_what_was_charged_for_it_in_order() -> None:
    result = SolveResponse(query_id="q1", answer="421")
    rounds = a_round(0, SAMPLES, SCORES), a_round(1, SAMPLES, unreconciled=True)
    told = query_message(QueryKept(ENTRY, "answered", NOW + 1.5, result, rounds, [ESTIMATE], ""))
    assert (told.request_id, told.tenant, told.tier, told.outcome) == ("r1", "acme", "gold", "answered")
    assert told.result == result
    assert not told.running
    assert told.ended.ToMicroseconds() - told.began.ToMicroseconds() == 1_500_000
    assert [each.index for each in told.rounds] == [0, 1]
    charges = [
        (each.round if each.HasField("round") else None, each.usage, each.unreconciled)
        for each in told.charges
    ]
    assert charges == [
        (None, ESTIMATE, False),
        (0, SAMPLES, False),
        (0, SCORES, False),
        (1, SAMPLES, True),
    ]


def test_a_query_that_runs_has_neither_end_nor_result() -> None:
    told = query_message(kept(a_round(0), address="router-1:50051"))
    assert told.running
    assert not told.HasField("ended")
    assert not told.HasField("result")
    assert (told.outcome, len(told.rounds), len(told.charges)) == ("", 1, 1)
    assert not query_message(kept(a_round(0))).running


# Bills.


def test_what_a_bill_is_asked_for() -> None:
    asked = GetBillRequest(
        since=Timestamp(seconds=100, nanos=250_000_000), until=Timestamp(seconds=200), by=["day", "tenant"]
    )
    assert bill_asked(asked, NOW) == (100.25, 200.0, ("day", "tenant"))
    assert bill_asked(GetBillRequest(), NOW) == (0.0, NOW, ())
    assert bill_asked(GetBillRequest(by=BY), NOW)[2] == BY
    same = Timestamp(seconds=100)
    assert bill_asked(GetBillRequest(since=same, until=same), NOW)[:2] == (100.0, 100.0)


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (GetBillRequest(by=["tenant", "colour"]), "by[1]", "'colour' is none of tenant, tier, stage, model"),
        (GetBillRequest(by=["", "tenant"]), "by[0]", "'' is none of"),
        (GetBillRequest(by=["x" * 100]), "by[0]", f"'{'x' * 32}' is none of"),
        (GetBillRequest(by=["model", "tenant", "model"]), "by[2]", "model is there already"),
        (GetBillRequest(since=Timestamp(seconds=200), until=Timestamp(seconds=100)), "since", "after until"),
        (GetBillRequest(since=Timestamp(seconds=int(NOW) + 9)), "since", "after now"),
        (GetBillRequest(since=Timestamp(seconds=2**62)), "since", "no time"),
        (GetBillRequest(until=Timestamp(seconds=-(2**62))), "until", "no time"),
        (GetBillRequest(until=Timestamp(seconds=1, nanos=2_000_000_000)), "until", "no time"),
    ],
)
def test_what_no_bill_is_by_is_named(request_: GetBillRequest, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        bill_asked(request_, NOW)
    assert caught.value.field == field
    assert words in caught.value.description


def test_a_bill() -> None:
    rows = [
        BillRow(("acme", "2026-11-01"), 3, SAMPLES, 1e7),
        BillRow(("globex", "2026-11-01"), 1, SCORES, 0.0),
    ]
    told = bill_message(rows, "EUR")
    assert told.currency == "EUR"
    assert [list(row.keys) for row in told.rows] == [["acme", "2026-11-01"], ["globex", "2026-11-01"]]
    assert [(row.queries, row.usage, row.unreconciled_flops) for row in told.rows] == [
        (3, SAMPLES, 1e7),
        (1, SCORES, 0.0),
    ]
