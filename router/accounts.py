"""Budgets, bills and queries of the ledger as the contract has them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from isoflop.errors import InvalidArgument
from isoflop.v1 import router_pb2 as pb

from router.cost import Cost
from router.ledger import BY, BillRow, QueryKept, Standing


def standing_message(standing: Standing) -> pb.BudgetStanding:
    """A budget in its present window."""
    budget = standing.budget
    price = standing.pace.price if math.isfinite(budget.limit.flops) else None
    return pb.BudgetStanding(
        name=budget.name,
        tenant=budget.tenant,
        period=budget.period.name,
        starts=_time(standing.starts),
        ends=_time(standing.ends),
        limit=_amount(budget.limit),
        spent=_amount(standing.spent),
        reserved=_amount(standing.reserved),
        shadow_price=price,
    )


def query_message(kept: QueryKept) -> pb.GetQueryResponse:
    """A query with what was charged for it."""
    charges = [pb.Charge(usage=usage) for usage in kept.estimate]
    for one in kept.rounds:
        charges += [
            pb.Charge(round=one.index, usage=usage, unreconciled=one.unreconciled) for usage in one.charges
        ]
    return pb.GetQueryResponse(
        running=kept.running,
        rounds=[one.round for one in kept.rounds],
        result=kept.result,
        request_id=kept.entry.request_id,
        tenant=kept.entry.tenant,
        tier=kept.entry.tier,
        began=_time(kept.entry.began),
        ended=None if kept.ended is None else _time(kept.ended),
        outcome=kept.outcome,
        charges=charges,
    )


def bill_asked(request: pb.GetBillRequest, now: float) -> tuple[float, float, tuple[str, ...]]:
    """From when, until when, in seconds since the epoch, and by what; raises InvalidArgument."""
    for number, name in enumerate(request.by):
        if name not in BY:
            raise InvalidArgument(f"by[{number}]", f"{name[:32]!r} is none of {', '.join(BY)}")
        if name in request.by[:number]:
            raise InvalidArgument(f"by[{number}]", f"{name} is there already")
    since = _seconds("since", request.since) if request.HasField("since") else 0.0
    until = _seconds("until", request.until) if request.HasField("until") else now
    if since > until:
        raise InvalidArgument("since", f"lies after {'until' if request.HasField('until') else 'now'}")
    return since, until, tuple(request.by)


def bill_message(rows: Sequence[BillRow], currency: str) -> pb.GetBillResponse:
    """What queries cost together."""
    return pb.GetBillResponse(
        rows=[
            pb.BillRow(
                keys=row.keys,
                queries=row.queries,
                usage=row.usage,
                unreconciled_flops=row.unreconciled_flops,
            )
            for row in rows
        ],
        currency=currency,
    )


def _amount(cost: Cost) -> pb.Amount:
    """What is infinite is absent."""
    amount = pb.Amount()
    if math.isfinite(cost.flops):
        amount.flops = cost.flops
    if math.isfinite(cost.money):
        amount.money = cost.money
    if math.isfinite(cost.tokens):
        amount.tokens = round(cost.tokens)
    return amount


def _time(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(round(seconds * 1e6))
    return time


def _seconds(field: str, time: Timestamp) -> float:
    try:
        return float(time.ToMicroseconds()) / 1e6
    except ValueError:
        raise InvalidArgument(field, "is no time of the years 1 to 9999") from None
