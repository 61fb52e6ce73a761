"""Ledgers on SQLite and on a PostgreSQL of the tests' own, with a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger_parts import WORTH, Clock, MakeLedger

from router.ledger.migrate import prepare
from router.ledger.sql import SqlLedger, open_ledger
from router.ledger.storage import Storage
from tests.postgres_server import NoPostgres, PostgresServer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server with a database `ledger` to copy, whose tables are there."""
    try:
        server = PostgresServer()
    except NoPostgres as reason:
        pytest.skip(str(reason))
    try:
        server.start()
        server.execute("create database ledger")
        prepare(Storage(server.url("ledger"), 1, 5.0), migrates=True)
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """An empty ledger on PostgreSQL."""
    url = postgres.new_database(like="ledger")
    yield url
    postgres.execute(f"drop database {url.rpartition('/')[2]} with (force)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """One that is not there yet, in a file."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """Each of the two in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def make_ledger(ledger_url: str, clock: Clock) -> AsyncIterator[MakeLedger]:
    """Opens the same ledger once more, and closes all."""
    opened: list[SqlLedger] = []

    def make(**settings: Any) -> SqlLedger:
        kept: dict[str, Any] = {"kept_query_days": 30, "kept_bill_days": 400, "clock": clock, **settings}
        opened.append(open_ledger(ledger_url, lambda: WORTH, **kept))
        return opened[-1]

    yield make
    for ledger in opened:
        await ledger.close()


@pytest.fixture
async def ledger(make_ledger: MakeLedger) -> SqlLedger:
    """One of it."""
    return make_ledger()
