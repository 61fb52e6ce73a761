"""The database under the ledger: transactions, in threads of their own, that end in time.

SQLite has one connection, in one thread, and files that processes of a machine may share; PostgreSQL several.
Whatever keeps a transaction from being done is told as Unavailable. Transactions are said again where the
connection had broken, or others stood in the way: each must be one that does the same once and twice.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from isoflop.errors import FailedPrecondition, Unavailable
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.pool import QueuePool

T = TypeVar("T")

TRIES = 5
"""Of a transaction that others stand in the way of."""

CONFLICTS = {"40001", "40P01"}
"""SQLSTATEs of a transaction that has to be said again: serialization failure, deadlock."""

BUGS = (DataError, IntegrityError, ProgrammingError)
"""Errors of the driver that do not come from the database's health."""


@dataclass
class _Task:
    """A transaction that somebody waits for."""

    abandoned: bool = False
    """Nobody does any more: it is rolled back if it still can be."""
    wire: socket.socket | None = None
    """That it waits at, where it can be hung up."""


class _Abandoned(Exception):
    """Rolls a transaction back."""


class Storage:
    """A database and its threads."""

    def __init__(self, url: str | None, connections: int, timeout_seconds: float) -> None:
        """`url`: as SQLAlchemy has them, sqlite:/// or postgresql://; None: a private temporary file.

        Nothing is asked of the database yet. Raises FailedPrecondition where the URL is of neither, or the
        file cannot be made.
        """
        self._timeout = timeout_seconds
        self.temporary = url is None
        """Nobody else sees it."""
        if url is None:
            self.name, threads = "a temporary file", 1
            self.engine = _sqlite("", timeout_seconds)
        elif (parsed := _parsed(url)).get_backend_name() == "sqlite":
            self.name, threads = str(parsed.database), 1
            self.engine = _sqlite(_private(parsed), timeout_seconds)
        else:
            self.name, threads = f"{parsed.database} at {parsed.host}:{parsed.port or 5432}", connections
            self.engine = _postgresql(parsed, connections, timeout_seconds)
        self._threads = ThreadPoolExecutor(threads, "ledger")
        self._wires: set[socket.socket] = set()

    async def run(self, work: Callable[[Connection], T], *, reads: bool = False) -> T:
        """What `work` makes of a connection, in one transaction; one that only `reads` locks nobody out.

        Raises Unavailable where the database does not answer, or not in time. A call that was cancelled, or
        raised that, may have been done or not.
        """
        task = _Task()
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._transact, work, task, reads
                )
        except TimeoutError:
            # A server that is stopped answers nothing, not even to a cancellation.
            if task.wire:
                _hang_up(task.wire)
            raise Unavailable(f"the ledger, {self.name}, has not answered for {self._timeout:g} s") from None
        finally:
            task.abandoned = True

    def now(self, work: Callable[[Connection], T]) -> T:
        """The same in this thread, once; raises the driver's errors."""
        return self._once(work, _Task(), False)

    def unavailable(self, error: DBAPIError) -> Unavailable:
        """What a driver's error is to others."""
        reason = str(error.orig).strip().partition("\n")[0]
        return Unavailable(f"the ledger, {self.name}, does not answer: {reason}")

    async def close(self) -> None:
        """Wait for what runs, but not for what does not answer, and disconnect."""
        patience = asyncio.get_running_loop().call_later(self._timeout, self._hang_up)
        await asyncio.to_thread(self._threads.shutdown)
        patience.cancel()
        self.engine.dispose()

    def _hang_up(self) -> None:
        for wire in list(self._wires):
            _hang_up(wire)

    def _transact(self, work: Callable[[Connection], T], task: _Task, reads: bool) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return self._once(work, task, reads)
            except BUGS:
                raise
            except DBAPIError as error:
                if not _again(error, tries) or task.abandoned:
                    raise self.unavailable(error) from None

    def _once(self, work: Callable[[Connection], T], task: _Task, reads: bool) -> T:
        with self.engine.connect() as connection:
            if reads:
                connection.execution_options(isoflop_reads=True)
            with connection.begin(), self._watched(connection, task):
                result = work(connection)
                if task.abandoned:
                    raise _Abandoned
            return result

    @contextmanager
    def _watched(self, connection: Connection, task: _Task) -> Iterator[None]:
        """Know at which wire a task waits."""
        wire: socket.socket | None = connection.connection.info.get("wire")
        if wire is None:
            yield
            return
        self._wires.add(wire)
        task.wire = wire
        try:
            yield
        finally:
            task.wire = None
            self._wires.discard(wire)


def _hang_up(wire: socket.socket) -> None:
    with suppress(OSError):
        wire.shutdown(socket.SHUT_RDWR)


def _again(error: DBAPIError, tries: int) -> bool:
    """Whether a transaction may be tried once more: all connections may have broken, but once."""
    if error.connection_invalidated:
        return tries < 2
    return getattr(error.orig, "sqlstate", None) in CONFLICTS and tries < TRIES


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        # What the URL is might have a password in it.
        raise FailedPrecondition(
            "the ledger's URL is none: postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    kind = parsed.get_backend_name()
    if kind not in ("sqlite", "postgresql") or not parsed.database:
        raise FailedPrecondition(f"a ledger is sqlite:///FILE or postgresql://..., not {kind}:// alone")
    return parsed


def _private(url: URL) -> str:
    """The file of a URL, made where there is none: what is asked and answered is nobody else's."""
    path = Path(str(url.database))
    try:
        if not path.exists():
            path.touch(0o600)
    except OSError as error:
        raise FailedPrecondition(f"the ledger cannot be kept in {path}: {error}; name another file") from None
    return str(path)


def _sqlite(path: str, timeout_seconds: float) -> Engine:
    """One connection; an empty path: a file that nobody else sees, and that goes with it."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=timeout_seconds, check_same_thread=False, isolation_level=None
        )
        # Of a temporary file nothing has to outlive anything.
        connection.execute("pragma journal_mode = " + ("wal" if path else "memory"))
        connection.execute("pragma synchronous = " + ("normal" if path else "off"))
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("isoflop_reads")
        # Who reads first and writes then might find that another has written between.
        connection.exec_driver_sql("begin" if reads else "begin immediate")

    return engine


def _postgresql(url: URL, connections: int, timeout_seconds: float) -> Engine:
    milliseconds = math.ceil(timeout_seconds * 1000)
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=connections,
        max_overflow=0,
        use_native_hstore=False,
        connect_args={
            "application_name": "isoflop-router",
            "connect_timeout": max(2, math.ceil(timeout_seconds)),
            "options": " ".join(f"-c {limit}={milliseconds}" for limit in limits),
            # A machine that is gone says nothing: so many seconds, and tries, until that is noticed.
            "keepalives_idle": 5,
            "keepalives_interval": 1,
            "keepalives_count": 3,
            "tcp_user_timeout": milliseconds,
        },
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        # A descriptor of our own: the driver's may be closed, and be another's, when we hang up.
        record.info["wire"] = socket.socket(fileno=os.dup(connection.pgconn.socket))

    return engine
