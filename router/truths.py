"""What was decided for each finished query, and the truth about its answer where a caller has told it.

A truth comes from a caller and from nowhere else: that samples agree is none. Prompts are not kept; answers
and the regular expressions that find them are. Records go to one SQLite file, in a thread of their own: what
was answered, or taken as feedback, outlives a killed process (a write-ahead log; where a machine loses power
the last seconds may be lost). Routers on one machine may share a file, and none on a network's file system.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from isoflop.errors import FailedPrecondition, Unavailable
from isoflop.v1.router_pb2 import ListModelsResponse, SolveRequest

from router.catalog import Catalog
from router.explore import Offer

SCHEMA = 1
"""Number of the form of the file, in its `user_version`."""

BUSY_SECONDS = 0.1
"""How long a write waits for that of another process: less than the margin before a caller's deadline."""

PURGE_SECONDS = 3600.0
"""How often records that are too old are deleted."""

DAY = 86_400.0

TABLES = """
create table if not exists catalogs (id text primary key, described text not null);
create table if not exists queries (
    query_id text primary key, ended real not null, profile text not null, tenant text not null,
    asked text not null, prompt_bytes integer not null, seconds real,
    difficulty real not null, difficulty_sd real not null,
    round_samples integer not null, max_samples integer not null,
    offers text not null, taken integer not null,
    rounds integer not null, flops real not null, answer text not null, confidence real not null,
    catalog text not null references catalogs,
    was_right integer, truth text, told real
);
create index if not exists queries_ended on queries (ended);
create index if not exists queries_told on queries (told);
"""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Truth:
    """What a caller says of an answer."""

    right: bool
    """Whether the answer that was returned is right."""
    answer: str | None
    """The right answer; None: it was not said."""


@dataclass(frozen=True)
class Answered:
    """A finished query: what was known before the first round, what was decided, and what came."""

    query_id: str
    ended: float
    """Unix time, in seconds."""
    profile: str
    """Version of the profile that decided."""
    tenant: str
    """Who asked."""
    asked: SolveRequest
    """The request without its text and its id."""
    prompt_bytes: int
    seconds: float
    """Time left before the first round; infinite where there was no deadline."""
    difficulty: float
    """Mean of the first belief about latent difficulty."""
    difficulty_sd: float
    round_samples: int
    """As the planner had it: see `router.planner.Planner`."""
    max_samples: int
    offers: tuple[Offer, ...]
    """First rounds that could be bought, the planner's own choice first, with their propensities."""
    taken: int
    """Index of the one that was."""
    rounds: int
    flops: float
    """Of the whole query, as billed."""
    answer: str
    """As returned; empty where there was none."""
    confidence: float
    """As returned: P(the answer is right) by the profile."""
    catalog: Catalog
    """What could be bought."""
    truth: Truth | None = None
    """None: nobody has told it."""

    @property
    def first(self) -> Offer:
        """The first round that was bought."""
        return self.offers[self.taken]


def without_text(request: SolveRequest) -> SolveRequest:
    """A request as it is kept: what was asked for, not the query itself."""
    kept = SolveRequest()
    kept.CopyFrom(request)
    for name in ("prompt", "messages", "request_id"):
        kept.ClearField(name)
    return kept


class Truths(Protocol):
    """Finished queries and truths; each method raises Unavailable where the storage fails."""

    async def add(self, answered: Answered) -> None:
        """Keep a finished query."""
        ...

    async def get(self, query_id: str) -> Answered | None:
        """A finished query; None where there is none of that id, or no more."""
        ...

    async def tell(self, query_id: str, truth: Truth) -> bool:
        """Keep the truth about a query in place of an earlier one; whether it is the first."""
        ...

    async def drift(self, most: int) -> float:
        """Share of right answers less mean confidence, over the `most` truths told last; NaN: none."""
        ...

    async def close(self) -> None:
        """Wait for what is being written."""
        ...


class SqliteTruths:
    """Truths in one SQLite file, which is made where there is none."""

    def __init__(self, path: Path, kept_days: float, clock: Callable[[], float] = time.time) -> None:
        """Raises FailedPrecondition where the file cannot be used."""
        self._path = path
        self._kept_seconds = kept_days * DAY
        self._clock = clock
        self._purge_at = -math.inf
        self._described: tuple[Catalog, str] | None = None
        self._connection = _open(path)
        self._thread = ThreadPoolExecutor(1, "truths")

    async def add(self, answered: Answered) -> None:
        """As in Truths."""
        await self._run(lambda: self._add(answered))

    async def get(self, query_id: str) -> Answered | None:
        """As in Truths."""
        return await self._run(lambda: next(_read(self._connection, query_id), None))

    async def tell(self, query_id: str, truth: Truth) -> bool:
        """As in Truths."""
        return await self._run(lambda: self._tell(query_id, truth))

    async def drift(self, most: int) -> float:
        """As in Truths."""
        return await self._run(lambda: self._drift(most))

    async def close(self) -> None:
        """As in Truths."""
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            raise Unavailable(f"{self._path} cannot be read or written: {error}") from error

    def _add(self, answered: Answered) -> None:
        seconds = answered.seconds if math.isfinite(answered.seconds) else None
        offers = json.dumps([astuple(offer) for offer in answered.offers])
        values = {
            **{name: getattr(answered, name) for name in PLAIN},
            "asked": json.dumps(MessageToDict(answered.asked, preserving_proto_field_name=True)),
            "seconds": seconds,
            "offers": offers,
        }
        with self._connection as connection:
            if self._clock() >= self._purge_at:
                oldest = self._clock() - self._kept_seconds
                connection.execute("delete from queries where ended < ?", (oldest,))
                self._purge_at = self._clock() + PURGE_SECONDS
            values["catalog"] = self._catalog_id(answered.catalog)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(f"insert into queries ({', '.join(values)}) values ({places})", values)

    def _catalog_id(self, catalog: Catalog) -> str:
        """The id under which a catalogue is kept: once, however many queries there are."""
        if self._described is None or self._described[0] is not catalog:
            message = ListModelsResponse(models=catalog.models.values(), verifiers=catalog.verifiers.values())
            self._described = catalog, json.dumps(MessageToDict(message, preserving_proto_field_name=True))
        described = self._described[1]
        name = hashlib.sha256(described.encode()).hexdigest()[:16]
        self._connection.execute("insert or ignore into catalogs values (?, ?)", (name, described))
        return name

    def _tell(self, query_id: str, truth: Truth) -> bool:
        with self._connection as connection:
            values = (truth.right, truth.answer, self._clock(), query_id)
            update = "update queries set was_right = ?, truth = ?, told = ? where query_id = ?"
            first = connection.execute(f"{update} and was_right is null", values).rowcount
            if not first:
                connection.execute(update, values)
        return bool(first)

    def _drift(self, most: int) -> float:
        last = "select was_right, confidence from queries where told is not null order by told desc limit ?"
        found = self._connection.execute(f"select avg(was_right - confidence) from ({last})", (most,))
        value = found.fetchone()[0]
        return math.nan if value is None else float(value)


PLAIN = (
    "query_id",
    "ended",
    "profile",
    "tenant",
    "prompt_bytes",
    "difficulty",
    "difficulty_sd",
    "round_samples",
    "max_samples",
    "taken",
    "rounds",
    "flops",
    "answer",
    "confidence",
)
"""Columns that are fields of Answered as they are."""


def read(path: Path) -> list[Answered]:
    """All that is kept in a file, the oldest first; raises FailedPrecondition where it cannot be read."""
    if not path.is_file():
        raise FailedPrecondition(f"there is no file {path}: name the one that the router has as --feedback")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _check(connection, path)
            return list(_read(connection))
    except sqlite3.Error as error:
        raise FailedPrecondition(f"{path} cannot be read: {error}") from None


def _open(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        if not path.exists():
            path.touch(0o600)  # Answers are nobody else's.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        if not _form(connection):
            connection.executescript(f"begin immediate; {TABLES} pragma user_version = {SCHEMA}; commit;")
        _check(connection, path)
    except (sqlite3.Error, OSError, FailedPrecondition) as error:
        if connection:
            connection.close()
        if isinstance(error, FailedPrecondition):
            raise
        raise FailedPrecondition(f"feedback cannot be kept in {path}: {error}; name another file") from None
    return connection


def _form(connection: sqlite3.Connection) -> int:
    return int(connection.execute("pragma user_version").fetchone()[0])


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Raises FailedPrecondition where the file has another form."""
    if (form := _form(connection)) != SCHEMA:
        raise FailedPrecondition(
            f"{path} is no file of feedback, or of another version: its form is {form}, not {SCHEMA}"
        )
    connection.row_factory = sqlite3.Row


def _read(connection: sqlite3.Connection, query_id: str | None = None) -> Iterator[Answered]:
    """All queries, the oldest first, or the one with an id."""
    catalogs: dict[str, Catalog] = {}
    where = "" if query_id is None else " where query_id = :query_id"
    for row in connection.execute(f"select * from queries{where} order by ended", {"query_id": query_id}):
        name = row["catalog"]
        if name not in catalogs:
            found = connection.execute("select described from catalogs where id = ?", (name,)).fetchone()
            message = ParseDict(json.loads(found["described"]), ListModelsResponse())
            catalogs[name] = Catalog.of(message.models, message.verifiers)
        yield _answered(row, catalogs[name])


def _answered(row: Any, catalog: Catalog) -> Answered:
    answered = Answered(
        **{name: row[name] for name in PLAIN},
        asked=ParseDict(json.loads(row["asked"]), SolveRequest()),
        seconds=math.inf if row["seconds"] is None else row["seconds"],
        offers=tuple(Offer(*offer) for offer in json.loads(row["offers"])),
        catalog=catalog,
    )
    if row["was_right"] is None:
        return answered
    return replace(answered, truth=Truth(bool(row["was_right"]), row["truth"]))
