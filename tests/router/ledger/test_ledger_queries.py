"""Queries in the ledger: begun once, taken over once, found again, billed, on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest
from isoflop.errors import FailedPrecondition
from isoflop.v1.common_pb2 import STAGE_DIFFICULTY, STAGE_VERIFICATION, Usage
from ledger_parts import (
    DAY,
    LEASE,
    NOW,
    Clock,
    MakeLedger,
    answer,
    begun,
    budget,
    entry,
    round,
    usage,
)

from router.cost import Cost
from router.ledger import BY, QueryKept, TakenOver
from router.ledger.schema import charges
from router.ledger.sql import SqlLedger, open_ledger
from router.ledger.statements import SUMMED


async def found(ledger: SqlLedger, query_id: str = "q") -> QueryKept:
    kept = await ledger.get(query_id)
    assert kept
    return kept


async def test_a_query_is_found_as_it_was_written(ledger: SqlLedger, clock: Clock) -> None:
    assert await ledger.get("q") is None
    written = entry(request_id="again", asked=b"\0\xff", seed=-(2**62))
    await ledger.alive("r", "host:1", LEASE)
    assert await ledger.begin(written) is None
    kept = await found(ledger)
    assert kept == QueryKept(written, "", None, None, [], [], "host:1")
    assert kept.running

    await ledger.reserve("q", "r", 0, round(), Cost(1.0, 2.0, 3), [])
    (one,) = (await found(ledger)).rounds
    assert (one.index, one.round, one.worst) == (0, round(), Cost(1.0, 2.0, 3))
    assert not one.settled
    assert not one.unreconciled

    what = round()
    what.completed = 3
    lines = [usage(1), usage(2, stage=STAGE_VERIFICATION)]
    await ledger.settle("q", 0, what, lines, b"candidates", [])
    (one,) = (await found(ledger)).rounds
    assert (one.round, list(one.charges), one.settled) == (what, lines, True)
    assert one.candidates == b"candidates"

    clock.now += 1
    await ledger.end("q", "r", "answered", answer(), [])
    kept = await found(ledger)
    assert (kept.outcome, kept.ended, kept.result) == ("answered", NOW + 1, answer())
    assert not kept.running
    assert kept.entry == written
    assert kept.rounds[0].candidates == b""


async def test_every_amount_of_a_charge_is_kept(ledger: SqlLedger) -> None:
    line = Usage(stage=STAGE_DIFFICULTY, model="e", strategy="s")
    for number, name in enumerate(SUMMED, 1):
        setattr(line, name, number)
    named = {field.name for field in Usage.DESCRIPTOR.fields}
    assert named == {"stage", "model", "strategy", *SUMMED}
    assert named <= set(charges.c.keys())
    await begun(ledger)
    await ledger.settle("q", 0, round(), [line], b"", [])
    assert list((await found(ledger)).rounds[0].charges) == [line]
    (row,) = await ledger.bill(0, math.inf, [])
    assert row.usage == Usage(**{name: getattr(line, name) for name in SUMMED})


async def test_a_retry_finds_the_query_that_it_repeats(ledger: SqlLedger, clock: Clock) -> None:
    await begun(ledger, "q", request_id="again")
    retry = entry("other", "again", router="s")
    kept = await ledger.begin(retry)
    assert kept
    assert (kept.entry.query_id, kept.running, kept.address) == ("q", True, "host:1")
    assert await ledger.get("other") is None
    # Its router has died.
    clock.now += LEASE + 1
    kept = await ledger.begin(retry)
    assert kept
    assert (kept.entry.router, kept.running, kept.address) == ("r", False, "")
    # It has ended.
    await ledger.end("q", "r", "abandoned", answer(), [])
    kept = await ledger.begin(retry)
    assert kept
    assert kept.result == answer()
    # Another tenant's is another one.
    assert await ledger.begin(replace(retry, tenant="u")) is None


async def test_one_that_has_failed_gives_its_request_id_away(ledger: SqlLedger) -> None:
    await begun(ledger, "q", request_id="again")
    await ledger.end("q", "r", "cancelled", None, [])
    assert await ledger.begin(entry("other", "again")) is None
    kept = await found(ledger)
    assert (kept.outcome, kept.entry.request_id, kept.result) == ("cancelled", "", None)


async def test_the_same_query_may_begin_twice(ledger: SqlLedger) -> None:
    for _ in range(2):
        assert await ledger.begin(entry("q", "again")) is None
        assert await ledger.begin(entry("p")) is None


async def test_of_retries_at_the_same_time_one_begins(make_ledger: MakeLedger) -> None:
    ledgers = [make_ledger(), make_ledger()]
    kept = await asyncio.gather(
        *(ledgers[number % 2].begin(entry(f"q{number}", "again")) for number in range(20))
    )
    assert sum(one is None for one in kept) == 1
    first = kept.index(None)
    assert {one.entry.query_id for one in kept if one} == {f"q{first}"}


async def test_the_query_of_a_dead_router_is_taken_over_once(make_ledger: MakeLedger, clock: Clock) -> None:
    ledger, day = make_ledger(), budget(tokens=100)
    await begun(ledger, "q", request_id="again")
    await ledger.settle("q", 0, round(), [usage(10)], b"kept", [day])
    await ledger.reserve("q", "r", 1, round(1), Cost(tokens=60), [day])
    assert not await ledger.take_over("q", "r", "s")  # It lives.
    clock.now += LEASE + 1
    others = [make_ledger(), make_ledger()]
    taken = await asyncio.gather(*(others[one % 2].take_over("q", "r", f"s{one}") for one in range(8)))
    assert sum(taken) == 1
    by = f"s{taken.index(True)}"
    kept = await found(ledger)
    assert kept.entry.router == by
    # What was lost is known to whoever goes on, and is charged once.
    assert [(one.settled, one.unreconciled) for one in kept.rounds] == [(True, False), (True, True)]
    assert kept.rounds[0].candidates == b"kept"
    await ledger.alive(by, "host:2", LEASE)
    assert (await ledger.standings([day]))[0].spent.tokens == 70
    assert (await found(ledger)).address == "host:2"

    # The first one was only late.
    await ledger.alive("r", "host:1", LEASE)
    with pytest.raises(TakenOver):
        await ledger.reserve("q", "r", 2, round(2), Cost(tokens=1), [day])
    with pytest.raises(TakenOver):
        await ledger.end("q", "r", "failed_unavailable", None, [day])
    await ledger.settle("q", 1, round(1), [usage(20)], b"", [day])
    await ledger.reserve("q", by, 2, round(2), Cost(tokens=70), [day])
    with pytest.raises(FailedPrecondition, match="another router's"):
        await ledger.reserve("q", by, 1, round(1), Cost(tokens=1), [day])
    await ledger.end("q", by, "answered", answer(), [day])
    assert not await ledger.take_over("q", by, "r")


async def test_a_bill_adds_up_by_what_it_is_asked(ledger: SqlLedger, clock: Clock) -> None:
    await begun(ledger, "q", tenant="t", tier="gold")
    await ledger.estimated("q", [Usage(stage=STAGE_DIFFICULTY, model="e", calls=1, flops=1.0)], [])
    await ledger.settle("q", 0, round(), [usage(10, 100.0, 0.5), usage(1, 10.0, model="n")], b"", [])
    clock.now += DAY
    await begun(ledger, "p", tenant="u", tier="free")
    await ledger.settle("p", 0, round(), [usage(5, 50.0, 0.25)], b"", [])
    await ledger.reserve("p", "r", 1, round(1), Cost(7.0, 0.125, 3), [])
    await ledger.end("p", "r", "failed_internal", None, [])

    (row,) = await ledger.bill(0, math.inf, [])
    assert (row.keys, row.queries, row.unreconciled_flops) == ((), 2, 7.0)
    assert (row.usage.completion_tokens, row.usage.aborted_tokens, row.usage.calls) == (16, 3, 4)
    assert (row.usage.flops, row.usage.money) == (168.0, 0.875)

    async def bill(*by: str, since: float = 0, until: float = math.inf) -> list[tuple[object, ...]]:
        rows = await ledger.bill(since, until, by)
        return [(*one.keys, one.queries, one.usage.flops) for one in rows]

    assert await bill("tenant") == [("t", 1, 111.0), ("u", 1, 57.0)]
    assert await bill("tier", "tenant") == [("gold", "t", 1, 111.0), ("free", "u", 1, 57.0)]
    assert await bill("stage") == [("generation", 2, 167.0), ("difficulty", 1, 1.0)]
    assert await bill("model") == [("m", 2, 157.0), ("n", 1, 10.0), ("e", 1, 1.0)]
    assert await bill("strategy") == [("majority", 2, 167.0), ("", 1, 1.0)]
    assert await bill("day") == [("2026-03-10", 1, 111.0), ("2026-03-11", 1, 57.0)]
    assert await bill("tenant", since=NOW, until=NOW + DAY) == [("t", 1, 111.0)]
    assert await bill("tenant", since=NOW + 1) == [("u", 1, 57.0)]
    assert await bill(since=NOW + 2 * DAY) == []
    assert len(await bill(*BY)) == 4
    with pytest.raises(ValueError, match="colour"):
        await bill("colour")


async def test_what_is_too_old_is_deleted(make_ledger: MakeLedger, clock: Clock) -> None:
    ledger = make_ledger(kept_query_days=2, kept_bill_days=10)
    day, month = budget(tokens=100), budget("t/month", "month", tokens=100)
    await begun(ledger, "old", request_id="again")
    await ledger.settle("old", 0, round(), [usage(10)], b"", [day, month])
    await ledger.end("old", "r", "answered", answer(), [day, month])
    await begun(ledger, "runs")
    clock.now += 2 * DAY - 1
    await begun(ledger, "new")
    assert await ledger.get("old")
    clock.now += 3600
    await ledger.alive("r", "host:1", LEASE)
    assert await ledger.get("old") is None
    assert await ledger.get("new")
    assert await ledger.get("runs")
    assert await ledger.begin(entry("again", "again")) is None
    assert (await ledger.bill(0, math.inf, []))[0].usage.completion_tokens == 10
    clock.now += 9 * DAY
    await ledger.alive("r", "host:1", LEASE)
    assert await ledger.bill(0, math.inf, []) == []
    # A window is not old before its end.
    assert [one.spent.tokens for one in await ledger.standings([month])] == [10]


async def test_a_temporary_ledger_is_one_of_its_own(clock: Clock) -> None:
    def temporary() -> SqlLedger:
        return open_ledger(None, lambda: 1e12, kept_query_days=1, kept_bill_days=1, clock=clock)

    one, other, day = temporary(), temporary(), budget(tokens=100)
    await begun(one)
    await one.reserve("q", "r", 0, round(), Cost(tokens=60), [day])
    (told,) = await one.settle("q", 0, round(), [usage(20)], b"", [day])
    assert told.spent.tokens == 20
    assert await other.get("q") is None
    await one.close()
    await other.close()
