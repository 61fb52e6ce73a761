"""Brings a ledger's tables up to date: Alembic's migrations, in one transaction."""

from __future__ import annotations

from pathlib import Path

from isoflop.errors import FailedPrecondition
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, OperationalError

from router.ledger.schema import HEAD, metadata
from router.ledger.storage import Storage

MIGRATIONS = Path(__file__).parent / "migrations"

LOCK = 0x6C656467
"""Of whoever migrates a PostgreSQL; any number that nobody else has."""


def prepare(storage: Storage, *, migrates: bool) -> None:
    """See that the tables are there, and as this version has them.

    Those of a file are made or brought up to date; so are PostgreSQL's where it `migrates`. Raises
    FailedPrecondition where they are not, or are those of a later version; Unavailable.
    """
    try:
        with storage.engine.begin() as connection:
            if storage.file:
                connection.exec_driver_sql("begin immediate")
            if storage.temporary:
                metadata.create_all(connection)
                return
            found = version(connection)
            if found != HEAD and (migrates or storage.file):
                upgrade(connection)
                return
    except DBAPIError as error:
        if isinstance(error, OperationalError) and not storage.file:
            raise storage.unavailable(error.orig) from None
        raise FailedPrecondition(f"the ledger cannot be kept in {storage.name}: {error.orig}") from None
    if found != HEAD:
        raise FailedPrecondition(
            f"the ledger's tables in {storage.name} are of version {found or 'none'}, not {HEAD}: "
            "run `python -m router.ledger migrate --ledger URL`"
        )


def version(connection: Connection) -> str | None:
    """The last migration that was run; none: there was none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("select version_num from alembic_version")).scalar()


def upgrade(connection: Connection) -> None:
    """Run the migrations that are lacking; one process at a time."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        connection.execute(text(f"select pg_advisory_xact_lock({LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise FailedPrecondition(f"the ledger is of a later version of isoflop: {error}") from None
