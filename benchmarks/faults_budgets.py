"""Whether a budget holds when many ask at once, and whether a query that is asked twice is paid once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

import yaml
from isoflop import AsyncClient, Options
from isoflop.v1.router_pb2 import BudgetStanding

from tests.cluster.books import Counts
from tests.cluster.load import EASY, Asked, Kind, Problem, ask
from tests.cluster.parts import TENANTS, FaultSuite

QUERY: Final = Kind("one", EASY, {"models": ["abacus-s"], "strategies": ["majority"], "samples": 2})
PROBLEM: Final = Problem("17+24*3", "89")
TENANT: Final = "small"
ALONE: Final = 10
"""Queries that tell what one costs."""
PAID_FOR: Final = 50
AT_ONCE: Final = 200
TWICE: Final = 100
DEADLINE_SECONDS: Final = 30.0
FOLLOWED_SECONDS: Final = 30.0
"""How long a change of the tenants' file may take to be followed."""


@dataclass(frozen=True)
class Budgets:
    """What came of it."""

    each: float
    """Tokens that a query takes, on the mean."""
    limit: float
    """Tokens of the budget."""
    asked: int
    """Queries at once, of two routers."""
    outcomes: dict[str, int]
    spent: float
    """Tokens of the budget that are spent afterwards."""
    reserved: float
    """Tokens of it that are still reserved."""
    told: float
    """Tokens by the bills of the answers."""
    twice: int
    """Queries that were asked of both routers at once, with one request id."""
    alike: int
    """Of those: both callers got the same answer, with the same bill."""
    charged_off: dict[str, float]
    """By what the ledger has charged for them more than one of the two bills says."""


async def measure(suite: FaultSuite) -> Budgets:
    """Give a tenant a budget for 50 queries while the routers run, and ask 200 at once."""
    async with AsyncClient(suite.address, TENANT) as client:
        alone = [await _ask(client, seed) for seed in range(ALONE)]
        each = sum(_tokens(one) for one in alone) / ALONE
        limit = round(PAID_FOR * each)
        await _allow(suite, client, limit)
        asked = await asyncio.gather(*(_ask(client, seed) for seed in range(AT_ONCE)))
        (standing,) = await _own(client)
    alike, off = await _twice(suite)
    return Budgets(
        each=each,
        limit=limit,
        asked=len(asked),
        outcomes=dict(sorted(Counter(one.outcome for one in asked).items())),
        spent=float(standing.spent.tokens),
        reserved=float(standing.reserved.tokens),
        told=sum(map(_tokens, asked)),
        twice=TWICE,
        alike=alike,
        charged_off=off,
    )


async def _allow(suite: FaultSuite, client: AsyncClient, tokens: int) -> None:
    """Write the tenant's budget into the file, and wait until both routers go by it."""
    small = {"name": TENANT, "tier": "gold", "budgets": [{"period": "month", "tokens": tokens}]}
    suite.tenants.write_text(yaml.safe_dump({**TENANTS, "tenants": [*TENANTS["tenants"], small]}))
    deadline, known = time.monotonic() + FOLLOWED_SECONDS, 0
    # One after the other is asked: twice in a row is both.
    while known < 2:
        assert time.monotonic() < deadline, "the tenants' file is not followed"
        known = known + 1 if await _own(client) else 0
        await asyncio.sleep(0.1)


async def _own(client: AsyncClient) -> list[BudgetStanding]:
    """The tenant's budgets; those of all pay, too."""
    return [one for one in (await client.budget(TENANT)).budgets if one.tenant == TENANT]


async def _twice(suite: FaultSuite) -> tuple[int, dict[str, float]]:
    """Queries that are asked of both routers at once."""
    addresses = [suite.parts[name].link.address for name in ("router", "router-2")]
    async with AsyncClient(addresses[0]) as one, AsyncClient(addresses[1]) as other:
        pairs = await asyncio.gather(
            *(
                asyncio.gather(*(_ask(client, seed, f"twice-{seed}") for client in (one, other)))
                for seed in range(TWICE)
            )
        )
        alike = sum(a.response is not None and a.response == b.response for a, b in pairs)
        answers = [a.response for a, _ in pairs if a.response is not None]
        kept = [await one.query(answer.query_id) for answer in answers]
    charged = Counts.added(charge.usage for query in kept for charge in query.charges)
    return alike, charged.off(Counts.added(line for answer in answers for line in answer.bill.lines))


async def _ask(client: AsyncClient, seed: int, request_id: str = "") -> Asked:
    options: Options = {**QUERY.options, "seed": seed, "request_id": request_id}
    return await ask(client, QUERY, PROBLEM, DEADLINE_SECONDS, options)


def _tokens(one: Asked) -> float:
    return float(one.response.bill.tokens) if one.response is not None else 0.0
