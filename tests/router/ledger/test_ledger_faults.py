"""A database that dies, stands still or is locked: Unavailable in time, and then all is as before."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial

import psycopg
import pytest
from isoflop.errors import Unavailable
from ledger_parts import WORTH, answer, begun, budget, entry, round, usage
from sqlalchemy import text

from router.cost import Cost
from router.ledger import Budget
from router.ledger.sql import SqlLedger, open_ledger
from router.ledger.storage import Storage, Transaction
from tests.postgres_server import NoPostgres, PostgresServer

TIMEOUT_SECONDS = 2.0
PATIENCE_SECONDS = 30.0

DAY = budget(tokens=1000)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server to be hurt."""
    try:
        server = PostgresServer()
    except NoPostgres as reason:
        pytest.skip(str(reason))
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def own_url(own_postgres: PostgresServer) -> str:
    """A database on it."""
    return own_postgres.new_database()


@pytest.fixture
async def hurt(own_url: str) -> AsyncIterator[SqlLedger]:
    """A ledger in it, with a query that runs."""
    ledger = open_ledger(
        own_url,
        lambda: WORTH,
        kept_query_days=1e5,
        kept_bill_days=1e5,
        connections=2,
        timeout_seconds=TIMEOUT_SECONDS,
        migrates=True,
    )
    await begun(ledger)
    await ledger.reserve("q", "r", 0, round(), Cost(tokens=100), [DAY])
    yield ledger
    await ledger.close()


async def until_it_works(ledger: SqlLedger, budgets: list[Budget]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await ledger.standings(budgets)
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


async def test_a_server_that_was_killed_is_unavailable_and_then_as_before(
    own_postgres: PostgresServer, hurt: SqlLedger
) -> None:
    await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
    own_postgres.kill()
    try:
        for _ in range(3):
            with pytest.raises(Unavailable) as down:
                await hurt.reserve("q", "r", 1, round(1), Cost(tokens=100), [DAY])
            assert "\n" not in str(down.value)
    finally:
        own_postgres.start()
    await until_it_works(hurt, [DAY])
    (told,) = await hurt.reserve("q", "r", 1, round(1), Cost(tokens=100), [DAY])
    assert (told.spent.tokens, told.reserved.tokens) == (10, 100)


async def test_a_restart_between_two_calls_is_not_noticed(
    own_postgres: PostgresServer, hurt: SqlLedger
) -> None:
    await asyncio.gather(*(hurt.get("q") for _ in range(4)))  # All connections are there.
    own_postgres.stop()
    own_postgres.start()
    for _ in range(4):
        (told,) = await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
        assert told.spent.tokens == 10


async def test_a_server_that_stands_still_is_unavailable_in_time(
    own_postgres: PostgresServer, hurt: SqlLedger
) -> None:
    own_postgres.signal(signal.SIGSTOP)
    try:
        calls = [
            hurt.reserve("q", "r", 1 + number, round(1 + number), Cost(tokens=1), [DAY])
            for number in range(8)
        ]
        told = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE_SECONDS)
        assert {type(one) for one in told} == {Unavailable}
        assert "has not answered for 2 s" in str(told[0])
    finally:
        own_postgres.signal(signal.SIGCONT)
    await until_it_works(hurt, [DAY])
    # What nobody waited for was not done.
    kept = await hurt.get("q")
    assert kept
    assert [one.index for one in kept.rounds] == [0]
    (told_now,) = await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
    assert (told_now.spent.tokens, told_now.reserved.tokens) == (10, 0)


async def test_a_ledger_closes_while_its_server_stands_still(own_postgres: PostgresServer) -> None:
    ledger = open_ledger(
        own_postgres.new_database(),
        lambda: WORTH,
        kept_query_days=1,
        kept_bill_days=1,
        timeout_seconds=TIMEOUT_SECONDS,
        migrates=True,
    )
    await begun(ledger)
    own_postgres.signal(signal.SIGSTOP)
    try:
        left = asyncio.ensure_future(ledger.get("q"))
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.wait_for(ledger.close(), PATIENCE_SECONDS)
    finally:
        own_postgres.signal(signal.SIGCONT)


async def test_a_lock_that_is_held_elsewhere_is_unavailable_in_time(own_url: str, hurt: SqlLedger) -> None:
    with psycopg.connect(own_url) as other:
        other.execute("select * from windows for update")
        with pytest.raises(Unavailable):
            await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
    (told,) = await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
    assert told.spent.tokens == 10


async def test_a_bill_may_take_longer_than_a_reservation_and_keeps_none_waiting(
    own_url: str, hurt: SqlLedger
) -> None:
    await hurt.settle("q", 0, round(), [usage(10)], b"", [DAY])
    with psycopg.connect(own_url) as other:
        other.execute("lock table charges in access exclusive mode")
        bill = asyncio.ensure_future(hurt.bill(0, 1e12, ["tenant"]))
        for _ in range(3):
            await hurt.reserve("q", "r", 1, round(1), Cost(tokens=1), [DAY])
            await asyncio.sleep(0.6 * TIMEOUT_SECONDS)
        assert not bill.done()
    (row,) = await bill
    assert row.usage.completion_tokens == 10


async def test_a_cancelled_call_breaks_nothing(hurt: SqlLedger) -> None:
    for index in range(1, 30):
        call = asyncio.ensure_future(hurt.reserve("q", "r", index, round(index), Cost(tokens=1), [DAY]))
        await asyncio.sleep(0.0005 * (index % 7))
        call.cancel()
        await asyncio.wait({call})
    kept = await hurt.get("q")
    assert kept
    (told,) = await hurt.standings([DAY])
    assert told.reserved.tokens == sum(one.worst.tokens for one in kept.rounds)


async def test_transactions_that_wait_for_each_other_are_said_again(own_postgres: PostgresServer) -> None:
    storage = Storage(own_postgres.new_database(), 2, PATIENCE_SECONDS)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("create table pairs (id int primary key, told int)")
        connection.exec_driver_sql("insert into pairs values (1, 0), (2, 0)")
    tell, met, tries = text("update pairs set told = told + 1 where id = :id"), threading.Barrier(2), []

    def move(first: int, second: int, transaction: Transaction) -> None:
        tries.append(first)
        transaction.write(tell, {"id": first})
        if tries.count(first) == 1:
            met.wait(PATIENCE_SECONDS)
        transaction.write(tell, {"id": second})

    await asyncio.gather(storage.run(partial(move, 1, 2)), storage.run(partial(move, 2, 1)))
    assert len(tries) > 2
    told = await storage.run(lambda transaction: transaction.rows(text("select told from pairs"), {}))
    assert [row["told"] for row in told] == [2, 2]
    await storage.close()


async def test_a_file_that_another_process_locks_is_unavailable_in_time(sqlite_url: str) -> None:
    ledger = open_ledger(
        sqlite_url, lambda: WORTH, kept_query_days=1, kept_bill_days=1, timeout_seconds=TIMEOUT_SECONDS
    )
    await begun(ledger)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable):
            await ledger.begin(entry("p"))
        assert await ledger.get("q")  # Who reads is not locked out.
        other.rollback()
    await until_it_works(ledger, [DAY])
    assert await ledger.begin(entry("p")) is None
    await ledger.end("q", "r", "answered", answer(), [DAY])
    await ledger.close()
