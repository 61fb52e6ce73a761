"""The ledger's tables: migrations lead to the schema, one process at a time; what is no ledger is told."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from isoflop.errors import FailedPrecondition, Unavailable
from ledger_parts import WORTH

from router.ledger.migrate import MIGRATIONS, prepare, version
from router.ledger.schema import HEAD, metadata
from router.ledger.sql import SqlLedger, open_ledger
from router.ledger.storage import Storage
from router.truths import SqliteTruths
from tests.cluster.processes import free_ports
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        url: str = request.getfixturevalue("sqlite_url")
        return url
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


def opened(url: str | None) -> SqlLedger:
    return open_ledger(url, lambda: WORTH, kept_query_days=1, kept_bill_days=1)


def storage(url: str) -> Storage:
    return Storage(url, 1, 5.0)


def migrate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "client" / "src")])
    return subprocess.run(
        [sys.executable, "-m", "router.ledger", "migrate", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_migrations_lead_to_the_schema(empty_url: str) -> None:
    database = storage(empty_url)
    for _ in range(2):
        prepare(database, migrates=True)
        with database.engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
            assert version(connection) == HEAD
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


def test_several_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        for made in [threads.submit(prepare, storage(empty_url), migrates=True) for _ in range(4)]:
            made.result()
    opened(empty_url)


def test_postgresql_is_migrated_by_a_command(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with pytest.raises(FailedPrecondition, match=r"python -m router\.ledger migrate --ledger"):
        opened(url)
    for done in (migrate("--ledger", url), migrate(ISOFLOP_ROUTER_LEDGER=url)):
        assert (done.returncode, done.stderr) == (0, "")
        assert "up to date" in done.stdout
    opened(url)


def test_the_command_says_what_is_wrong() -> None:
    (port,) = free_ports(1)
    done = migrate("--ledger", f"postgresql://somebody:secret@127.0.0.1:{port}/ledger")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "refused" in done.stderr
    assert "secret" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_tables_of_a_later_version_are_left_alone(empty_url: str) -> None:
    database = storage(empty_url)
    prepare(database, migrates=True)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = 'later'")
    with pytest.raises(FailedPrecondition, match="later"):
        opened(empty_url)
    with pytest.raises(FailedPrecondition, match="later version"):
        prepare(database, migrates=True)


def test_a_file_is_nobody_elses(sqlite_url: str) -> None:
    opened(sqlite_url)
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"no database" * 1000)
    SqliteTruths(tmp_path / "truths.db", 1.0)
    for name in ("junk", "truths.db", ".", "none/ledger.db"):
        with pytest.raises(FailedPrecondition, match="the ledger cannot be kept in"):
            opened(f"sqlite:///{tmp_path / name}")
    assert (tmp_path / "junk").read_bytes() == b"no database" * 1000
    with closing(sqlite3.connect(tmp_path / "truths.db")) as connection:
        tables = connection.execute("select name from sqlite_master where type = 'table' order by name")
        assert tables.fetchall() == [("catalogs",), ("queries",)]


@pytest.mark.parametrize(
    "url", ["ledger.db", "mysql://host/ledger", "postgresql://u:secret@host", "sqlite://"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"URL|ledger is at") as refused:
        opened(url)
    assert "secret" not in str(refused.value)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match="does not answer") as down:
        opened(f"postgresql://somebody:secret@127.0.0.1:{port}/ledger")
    assert "secret" not in str(down.value)
    assert "\n" not in str(down.value)
