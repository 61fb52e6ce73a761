"""The database under the ledger: transactions that end in time.

SQLite has one connection that writes, and a file that processes of a machine may share; PostgreSQL several.
Transactions wait in threads of their own, but for those on a temporary file, where there is nothing to wait
for. Whatever keeps one from being done is told as Unavailable. One is said again where the connection had
broken, or others stood in the way: each must be such that it does the same once and twice.

SQLAlchemy makes the statements and connects; the drivers execute what it has compiled, once: with its own
results a query's statements took as much time as the rest of the query.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from isoflop.errors import FailedPrecondition, Unavailable
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, Dialect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool, StaticPool
from sqlalchemy.sql import ClauseElement

T = TypeVar("T")

Row: TypeAlias = Mapping[str, Any]
"""By the columns' names."""

Values: TypeAlias = Mapping[str, Any]
"""By the parameters' names."""

LONG = 12.0
"""Times as long as others a transaction may take that is known to be long."""

TRIES = 5
"""Of a transaction that others stand in the way of."""

PAUSE_SECONDS = 0.05
"""Before another try, at most: whoever it gave way to goes first."""

CONFLICTS = {"40001", "40P01"}
"""SQLSTATEs of a transaction that has to be said again: serialization failure, deadlock."""


class Transaction:
    """One transaction, as it is said."""

    def __init__(self, cursor: Any, texts: Texts) -> None:
        self._cursor = cursor
        self._texts = texts

    def rows(self, statement: ClauseElement, values: Values) -> Sequence[Row]:
        """All rows."""
        self._cursor.execute(*self._texts.of(statement, values))
        found: Sequence[Row] = self._cursor.fetchall()
        return found

    def row(self, statement: ClauseElement, values: Values) -> Row | None:
        """The row, where there is one."""
        self._cursor.execute(*self._texts.of(statement, values))
        found: Row | None = self._cursor.fetchone()
        return found

    def write(self, statement: ClauseElement, values: Values) -> int:
        """How many rows it changed."""
        self._cursor.execute(*self._texts.of(statement, values))
        changed: int = self._cursor.rowcount
        return changed

    def write_each(self, statement: ClauseElement, values: Sequence[Values]) -> None:
        """The same for several values, in order."""
        said = [self._texts.of(statement, one) for one in values]
        if len(said) > 1:
            self._cursor.executemany(said[0][0], [one for _, one in said])
        elif said:
            self._cursor.execute(*said[0])


class Texts:
    """Statements as a database has them."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._kept: dict[ClauseElement, tuple[str, Values]] = {}

    def of(self, statement: ClauseElement, values: Values) -> tuple[str, Values]:
        """Its text, and all its values."""
        kept = self._kept.get(statement)
        if kept is None:
            compiled: Any = statement.compile(dialect=self._dialect)
            fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
            kept = self._kept[statement] = str(compiled), fixed
        text, fixed_values = kept
        return text, {**fixed_values, **values} if fixed_values else values


@dataclass(eq=False)
class _Line:
    """A connection of the driver's."""

    connection: Any
    wire: socket.socket | None
    """What it waits at, where that can be hung up: a descriptor of our own, as the driver's may be closed by
    then, and be another's."""

    def hang_up(self) -> None:
        if self.wire:
            with suppress(OSError):
                self.wire.shutdown(socket.SHUT_RDWR)


@dataclass
class _Task:
    """A transaction that somebody waits for."""

    reads: bool = False
    """And nothing else."""
    seconds: float = math.inf
    """How long it may take."""
    abandoned: bool = False
    """Nobody waits any more: it is rolled back if it still can be."""
    line: _Line | None = None
    """On which it is said."""

    def still_wanted(self) -> None:
        """Raises _Abandoned where nobody waits."""
        if self.abandoned:
            raise _Abandoned


class _Abandoned(Exception):
    """Rolls a transaction back."""


class Storage:
    """A database, and the threads that wait for it."""

    def __init__(self, url: str | None, connections: int, timeout_seconds: float) -> None:
        """`url`: as SQLAlchemy has them, sqlite:///FILE or postgresql://...; None: a temporary file that
        nobody else sees. `connections`: to PostgreSQL, at most, and one more for what takes long.

        Nothing is asked of the database yet. Raises FailedPrecondition where the URL is none, or the file
        cannot be made.
        """
        parsed = None if url is None else _parsed(url)
        self.temporary = parsed is None
        """Nobody else sees it."""
        self.file = parsed is None or parsed.get_backend_name() == "sqlite"
        """It is one of SQLite's."""
        self.name = _name(parsed)
        """In messages."""
        self.engine = (
            _sqlite(parsed, timeout_seconds)
            if parsed is None or self.file
            else _postgresql(parsed, timeout_seconds)
        )
        """For migrations."""
        self._timeout = timeout_seconds
        self._driver = self.engine.dialect.loaded_dbapi
        self._texts = Texts(self.engine.dialect)
        self._own = threading.local()
        self._lines: set[_Line] = set()
        threads = 1 if self.file else connections
        self._threads = None if self.temporary else ThreadPoolExecutor(threads, "ledger")
        self._aside = None if self.temporary else ThreadPoolExecutor(1, "ledger-aside")

    async def run(self, work: Callable[[Transaction], T], *, reads: bool = False, long: bool = False) -> T:
        """What `work` makes of a transaction; one that only `reads` locks nobody out, and one of those that
        takes `long` nobody waits for.

        Raises Unavailable where the database does not answer, or not in time. A call that was cancelled, or
        raised that, may have been done or not.
        """
        task = _Task(reads, self._timeout * (LONG if long else 1.0))
        threads = self._aside if long else self._threads
        if threads is None:
            return self._transact(work, task)
        try:
            async with asyncio.timeout(task.seconds):
                return await asyncio.get_running_loop().run_in_executor(threads, self._transact, work, task)
        except TimeoutError:
            # A server that is stopped answers nothing, not even to a cancellation.
            if task.line:
                task.line.hang_up()
            raise Unavailable(f"the ledger, {self.name}, has not answered for {task.seconds:g} s") from None
        finally:
            task.abandoned = True

    def unavailable(self, error: BaseException | None) -> Unavailable:
        """What a driver's error is to others."""
        reason = str(error).strip().partition("\n")[0]
        return Unavailable(f"the ledger, {self.name}, does not answer: {reason}")

    async def close(self) -> None:
        """Wait for what runs, but not for what does not answer, and disconnect."""
        patience = asyncio.get_running_loop().call_later(self._timeout, self._hang_up)
        for threads in (self._threads, self._aside):
            if threads:
                await asyncio.to_thread(threads.shutdown)
        patience.cancel()
        for line in self._lines:
            line.connection.close()

    def _hang_up(self) -> None:
        for line in list(self._lines):
            line.hang_up()

    def _transact(self, work: Callable[[Transaction], T], task: _Task) -> T:
        driver, tries = self._driver, 0
        while True:
            tries += 1
            try:
                return self._once(work, task)
            except (driver.IntegrityError, driver.ProgrammingError, driver.DataError):
                raise  # A bug.
            except driver.Error as error:
                broken = self._drop_broken(error)
                again = tries < 2 if broken else _conflicts(error) and tries < TRIES
                if not again or task.abandoned:
                    raise self.unavailable(error) from None
                if not broken:
                    time.sleep(random.uniform(0.0, PAUSE_SECONDS))

    def _once(self, work: Callable[[Transaction], T], task: _Task) -> T:
        task.line = self._line()
        connection = task.line.connection
        try:
            cursor = _cursor(connection)
            if self.file:
                # Who reads first and writes then might find that another has written between.
                cursor.execute("begin" if task.reads else "begin immediate")
            elif task.seconds > self._timeout:
                cursor.execute(f"set local statement_timeout = {math.ceil(task.seconds * 1000)}")
            result = work(Transaction(cursor, self._texts))
            task.still_wanted()
            connection.commit()
        except BaseException:
            with suppress(self._driver.Error):
                connection.rollback()
            raise
        finally:
            task.line = None
        return result

    def _line(self) -> _Line:
        """This thread's own, which it keeps."""
        line: _Line | None = getattr(self._own, "line", None)
        if line is None:
            try:
                connected = self.engine.raw_connection()
            except DBAPIError as error:
                raise error.orig or error from None
            connection = connected.driver_connection
            connected.detach()
            line = self._own.line = _Line(connection, _wire(connection))
            self._lines.add(line)
        return line

    def _drop_broken(self, error: Any) -> bool:
        """Let go of this thread's connection if it is broken; whether it was."""
        line: _Line | None = getattr(self._own, "line", None)
        if line is None or not self.engine.dialect.is_disconnect(error, line.connection, None):
            return False
        with suppress(self._driver.Error):
            line.connection.close()
        self._lines.discard(line)
        del self._own.line
        return True


def _conflicts(error: Exception) -> bool:
    return getattr(error, "sqlstate", None) in CONFLICTS


def _cursor(connection: Any) -> Any:
    """Rows by the columns' names."""
    cursor = connection.cursor()
    if isinstance(connection, sqlite3.Connection):
        cursor.row_factory = sqlite3.Row
    else:
        from psycopg.rows import dict_row

        cursor.row_factory = dict_row
    return cursor


def _wire(connection: Any) -> socket.socket | None:
    if isinstance(connection, sqlite3.Connection):
        return None
    return socket.socket(fileno=os.dup(connection.pgconn.socket))


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # It is not repeated: there might be a password in it.
        raise FailedPrecondition(
            "the ledger is at no URL: postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql") or not parsed.database:
        raise FailedPrecondition(
            f"a ledger is at sqlite:///FILE or postgresql://HOST/DATABASE, not at {kind}:"
        )
    return parsed


def _name(url: URL | None) -> str:
    """Without user and password."""
    if url is None:
        return "a temporary file"
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.database} at {url.host or 'localhost'}:{url.port or 5432}"


def _sqlite(url: URL | None, timeout_seconds: float) -> Engine:
    """None: a file that nobody else sees, and that goes with its one connection."""
    path = "" if url is None else _private(Path(str(url.database)))

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=timeout_seconds, check_same_thread=False, isolation_level=None
        )
        # Of a temporary file nothing has to outlive anything.
        connection.execute("pragma journal_mode = " + ("wal" if path else "memory"))
        connection.execute("pragma synchronous = " + ("normal" if path else "off"))
        return connection

    pool = NullPool if path else StaticPool
    return create_engine("sqlite://", creator=connect, poolclass=pool, paramstyle="named")


def _private(path: Path) -> str:
    """A file, made where there is none: what is asked and answered is nobody else's."""
    try:
        if not path.exists():
            path.touch(0o600)
    except OSError as error:
        raise FailedPrecondition(f"the ledger cannot be kept in {path}: {error}; name another file") from None
    return str(path)


def _postgresql(url: URL, timeout_seconds: float) -> Engine:
    milliseconds = math.ceil(timeout_seconds * 1000)
    limits = ("statement_timeout", "idle_in_transaction_session_timeout")
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=NullPool,
        use_native_hstore=False,
        connect_args={
            "application_name": "isoflop",
            "connect_timeout": max(2, math.ceil(timeout_seconds)),
            "options": " ".join(f"-c {limit}={milliseconds}" for limit in limits),
            # A machine that is gone says nothing: so many seconds, and tries, until that is noticed.
            "keepalives_idle": 5,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": milliseconds,
        },
    )
