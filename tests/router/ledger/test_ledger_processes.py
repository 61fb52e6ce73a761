"""Ledgers at the same time, in one process and in several, and one that is killed: on both databases."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from ledger_parts import Clock, MakeLedger
from ledger_process import LEASE_SECONDS, RACED, WIDE, race

from router.ledger.sql import open_ledger

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]


def start(url: str, router: str, what: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "client" / "src"), str(FOLDER)])
    return subprocess.Popen(
        [sys.executable, str(FOLDER / "ledger_process.py"), url, router, what],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def test_200_reservations_at_once_do_not_overspend_a_budget_for_50(
    make_ledger: MakeLedger, clock: Clock
) -> None:
    one, other = make_ledger(timeout_seconds=60.0), make_ledger(timeout_seconds=60.0)
    made = await asyncio.gather(race(one, "r", 100), race(other, "s", 100))
    assert sum(made) == 50
    for standing in await one.standings([RACED, WIDE]):
        assert standing.reserved.tokens == 50
        assert standing.reserved.flops == 50e12
        assert abs(standing.reserved.money - 5.0) < 1e-9


async def test_200_reservations_of_two_processes_do_not_overspend_a_budget_for_50(ledger_url: str) -> None:
    ledger = open_ledger(ledger_url, lambda: 1e12, kept_query_days=1e5, kept_bill_days=1e5)
    racing = [start(ledger_url, router, "race") for router in ("r", "s")]
    for process in racing:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    made = [process.communicate(timeout=100)[0] for process in racing]
    assert sum(map(int, made)) == 50
    (standing,) = await ledger.standings([RACED])
    assert standing.reserved.tokens == 50
    assert standing.reserved.flops == 50e12
    await ledger.close()


async def test_what_was_settled_outlives_kill_9(ledger_url: str) -> None:
    ledger = open_ledger(ledger_url, lambda: 1e12, kept_query_days=1e5, kept_bill_days=1e5)
    process = start(ledger_url, "r", "settle")
    assert process.stdout
    settled = [int(process.stdout.readline()) for _ in range(50)]
    process.kill()
    settled += [int(line) for line in process.communicate()[0].split()]
    await asyncio.sleep(2 * LEASE_SECONDS)  # The killed router's lease is on the real clock.
    await ledger.alive("s", "host:2", 60)
    kept = await ledger.get("q")
    assert kept
    assert [one.index for one in kept.rounds[: len(settled)]] == settled
    assert not any(one.unreconciled for one in kept.rounds[: len(settled)])
    # One more may have been settled without being told, and one was perhaps running.
    assert all(one.settled for one in kept.rounds)
    assert len(kept.rounds) - len(settled) <= 2
    tokens = sum(line.completion_tokens + line.aborted_tokens for one in kept.rounds for line in one.charges)
    assert tokens == len(kept.rounds) + sum(one.unreconciled for one in kept.rounds)
    (standing,) = await ledger.standings([WIDE])
    assert (standing.spent.tokens, standing.reserved.tokens) == (tokens, 0)
    await ledger.close()
