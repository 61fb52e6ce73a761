"""What ledgers are told in tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from isoflop.v1.common_pb2 import STAGE_GENERATION, Usage
from isoflop.v1.router_pb2 import Action, Round, SolveResponse

from router.cost import Cost
from router.ledger import Budget, Entry
from router.ledger.sql import SqlLedger
from router.period import Period

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC).timestamp()
"""A Tuesday at noon."""

DAY = 86_400.0
LEASE = 10.0
WORTH = 1e12

MakeLedger = Callable[..., SqlLedger]


class Clock:
    """Seconds since the epoch, as the test has them."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def budget(
    name: str = "t/day",
    period: str = "day",
    flops: float = math.inf,
    money: float = math.inf,
    tokens: float = math.inf,
) -> Budget:
    return Budget(name, name.partition("/")[0], Period(period), Cost(flops, money, tokens))


def entry(query_id: str = "q", request_id: str = "", **fields: Any) -> Entry:
    given = {"asked": b"hash", "tenant": "t", "tier": "gold", "router": "r", "began": NOW, "seed": 7}
    return Entry(query_id=query_id, request_id=request_id, **(given | fields))


def round(index: int = 0, model: str = "m") -> Round:
    return Round(index=index, action=Action(model=model, strategy="majority", samples=4), reason="why")


def usage(tokens: int = 0, flops: float = 0.0, money: float = 0.0, **fields: Any) -> Usage:
    given = {"stage": STAGE_GENERATION, "model": "m", "strategy": "majority", "calls": 1}
    return Usage(completion_tokens=tokens, flops=flops, money=money, **(given | fields))


def answer(query_id: str = "q") -> SolveResponse:
    return SolveResponse(query_id=query_id, answer="42", confidence=0.9)


async def begun(ledger: SqlLedger, query_id: str = "q", **fields: Any) -> None:
    """A query that a router has begun which lives."""
    await ledger.alive(fields.get("router", "r"), "host:1", LEASE)
    assert await ledger.begin(entry(query_id, **fields)) is None
