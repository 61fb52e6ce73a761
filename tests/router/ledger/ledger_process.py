"""A router's writes in a process of its own: `python ledger_process.py URL NAME race|settle`.

`race`: a hundred queries at once try to reserve 1 token each of a budget of 50, and so does another process;
it prints how many could. `settle`: one round after the other of 2 tokens at most is settled at 1, and its
index printed, until somebody kills it.
"""

from __future__ import annotations

import asyncio
import sys

from ledger_parts import budget, entry, round, usage

from router.cost import Cost
from router.ledger import Short
from router.ledger.sql import SqlLedger, open_ledger

RACED = budget("all/day", flops=50e12, money=5.0, tokens=50)
WIDE = budget("all/month", "month", tokens=1e9)
ATTEMPTS = 100
LEASE_SECONDS = 0.5


async def attempt(ledger: SqlLedger, query_id: str, router: str) -> bool:
    """Reserve a round of a new query; whether there was room."""
    assert await ledger.begin(entry(query_id, router=router)) is None
    try:
        await ledger.reserve(query_id, router, 0, round(), Cost(1e12, 0.1, 1), [RACED, WIDE])
    except Short:
        return False
    return True


async def race(ledger: SqlLedger, router: str, attempts: int) -> int:
    """How many of that many at once had room."""
    made = await asyncio.gather(
        *(attempt(ledger, f"{router}-{number}", router) for number in range(attempts))
    )
    return sum(made)


async def settle(ledger: SqlLedger, router: str) -> None:
    """Settle rounds until the end."""
    await ledger.begin(entry("q", router=router))
    index = 0
    while True:
        await ledger.reserve("q", router, index, round(index), Cost(tokens=2), [WIDE])
        await ledger.settle("q", index, round(index), [usage(1)], b"", [WIDE])
        print(index, flush=True)
        index += 1


async def main(url: str, router: str, what: str) -> None:
    """As the command line says."""
    ledger = open_ledger(url, lambda: 1e12, kept_query_days=1e5, kept_bill_days=1e5, timeout_seconds=60)
    await ledger.alive(router, "host:1", 60 if what == "race" else LEASE_SECONDS)
    if what == "race":
        print("ready", flush=True)
        sys.stdin.readline()
        print(await race(ledger, router, ATTEMPTS), flush=True)
    else:
        await settle(ledger, router)
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
