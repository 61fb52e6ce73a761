"""The ledger in SQLite or PostgreSQL: each method is a short transaction, and does the same once and twice.

Rows are locked in one order, so that no two transactions wait for each other: a query, its rounds, windows in
the order of their budgets' names, prices likewise.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

from isoflop.v1.common_pb2 import STAGE_GENERATION, Stage, Usage
from isoflop.v1.router_pb2 import Round, SolveResponse
from sqlalchemy import Connection, Row, Select

from router import price
from router.cost import Cost
from router.ledger import (
    BY,
    ESTIMATE,
    BillRow,
    Budget,
    Entry,
    QueryKept,
    RoundKept,
    Short,
    Standing,
    TakenOver,
)
from router.ledger import statements as sql
from router.ledger.migrate import prepare
from router.ledger.schema import LOST, RESERVED, SETTLED
from router.ledger.statements import COUNTED, MEASURED, PURGED, SUMMED, UNITS
from router.ledger.storage import Storage

Held: TypeAlias = Sequence[tuple[str, float]]
"""The windows that pay for a round: names of budgets, in order, and when each window began."""

Present: TypeAlias = Sequence[tuple[Budget, float]]
"""Budgets, in the order of their names, and when their windows of now began."""

DAY = 86_400.0

PURGE_SECONDS = 3600.0
"""How often it is looked for what is too old."""

ROUNDING = 1e-12
"""Of a limit of FLOPs or money: three tenths added up are a little more than three tenths."""

MOST_TOKENS = 2**63 - 1
"""No limit."""

UNLIMITED = Cost(math.inf, math.inf, math.inf)

PLAIN = ("query_id", "asked", "tenant", "tier", "router", "began", "seed")
"""Columns of a query that are fields of Entry as they are."""


@dataclass(frozen=True)
class _Settled:
    """A round, and what it cost."""

    query_id: str
    index: int
    round: Round
    charges: Sequence[Usage]
    candidates: bytes

    @property
    def cost(self) -> Cost:
        return _cost(self.charges)

    def columns(self, now: float) -> dict[str, Any]:
        return {
            "query": self.query_id,
            "of": self.index,
            "now": now,
            "what": self.round.SerializeToString(),
            "came": self.candidates or None,
        }


def open_ledger(
    url: str | None,
    worth: Callable[[], float],
    *,
    kept_query_days: float,
    kept_bill_days: float,
    connections: int = 8,
    timeout_seconds: float = 5.0,
    migrates: bool = False,
    clock: Callable[[], float] = time.time,
) -> SqlLedger:
    """The ledger at a URL: sqlite:///FILE, which is made where there is none, or postgresql://...; None: one in
    a temporary file.

    `connections`: to PostgreSQL, at most; `timeout_seconds`: after which whatever the database has not done is
    Unavailable; `migrates`: bring PostgreSQL's tables up to date, which a file's always are; for the rest see
    SqlLedger. Raises FailedPrecondition where it is of no use, and Unavailable where it does not answer.
    """
    storage = Storage(url, connections, timeout_seconds)
    try:
        prepare(storage, migrates=migrates)
    except BaseException:
        storage.engine.dispose()
        raise
    return SqlLedger(
        storage, worth, kept_query_days=kept_query_days, kept_bill_days=kept_bill_days, clock=clock
    )


class SqlLedger:
    """A Ledger, of all routers that open the same database."""

    def __init__(
        self,
        storage: Storage,
        worth: Callable[[], float],
        *,
        kept_query_days: float,
        kept_bill_days: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`worth`: a first guess of a right answer's, in FLOPs; `clock`: seconds since the epoch. Queries are
        kept for so many days; charges, and windows that have ended, for so many others."""
        self._storage = storage
        self._inserts = sql.Inserts(storage.engine.dialect.name)
        self._worth = worth
        self._clock = clock
        self._kept_query_seconds = kept_query_days * DAY
        self._kept_bill_seconds = kept_bill_days * DAY
        self._purge_at = -math.inf
        self._begun: dict[str, float] = {}
        """When the window began that is surely there, by the budget's name."""

    async def alive(self, router: str, address: str, lease_seconds: float) -> None:
        """As in Ledger."""
        now = self._clock()
        leased = {"id": router, "address": address, "lease_until": now + lease_seconds}
        await self._storage.run(lambda connection: connection.execute(self._inserts.router, leased))
        await self._bury(now)
        if now >= self._purge_at:
            more = await self._storage.run(partial(self._purge, now))
            self._purge_at = now if more else now + PURGE_SECONDS

    async def gone(self, router: str) -> None:
        """As in Ledger."""
        await self._storage.run(lambda connection: connection.execute(sql.GONE, {"gone": router}))
        await self._bury(self._clock())

    async def begin(self, entry: Entry) -> QueryKept | None:
        """As in Ledger."""
        return await self._storage.run(partial(self._begin, entry))

    async def take_over(self, query_id: str, dead: str, router: str) -> bool:
        """As in Ledger."""
        values = {"query": query_id, "dead": dead, "by": router, "now": self._clock()}

        def take_over(connection: Connection) -> bool:
            taken = bool(connection.execute(sql.TAKE_OVER, values).rowcount)
            if taken:
                self._lose_all(connection, query_id)
            return taken

        return await self._storage.run(take_over)

    async def standings(self, budgets: Sequence[Budget]) -> Sequence[Standing]:
        """As in Ledger."""
        present = await self._present(budgets)
        found = await self._storage.run(partial(self._standings, present), reads=True)
        return _ordered(found, budgets)

    async def estimated(self, query_id: str, charges: Sequence[Usage], budgets: Sequence[Budget]) -> None:
        """As in Ledger."""
        held = _held(await self._present(budgets))
        settled = _Settled(query_id, ESTIMATE, Round(), charges, b"")

        def estimated(connection: Connection) -> None:
            if not self._settle_new(connection, settled, held):
                self._correct(connection, settled)

        await self._storage.run(estimated)

    async def reserve(
        self, query_id: str, router: str, index: int, round: Round, worst: Cost, budgets: Sequence[Budget]
    ) -> Sequence[Standing]:
        """As in Ledger."""
        if not all(0 <= amount < math.inf for amount in (worst.flops, worst.money, worst.tokens)):
            raise ValueError(f"what is reserved is finite and not negative: {worst}")
        worst = replace(worst, tokens=math.ceil(worst.tokens))
        present = await self._present(budgets)

        def reserve(connection: Connection) -> Sequence[Standing]:
            held: Held = _held(present)
            more = worst
            values = {
                "query": query_id,
                "owner": router,
                **self._round_columns(index, round, RESERVED, worst, held, b""),
            }
            if not connection.execute(self._inserts.own_round, values).first():
                held, more = self._change(connection, query_id, router, index, worst)
            self._take(connection, held, more, present)
            return self._standings(present, connection)

        return _ordered(await self._storage.run(reserve), budgets)

    async def settle(
        self,
        query_id: str,
        index: int,
        round: Round,
        charges: Sequence[Usage],
        candidates: bytes,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """As in Ledger."""
        present = await self._present(budgets)
        settled = _Settled(query_id, index, round, charges, candidates)

        def settle(connection: Connection) -> Sequence[Standing]:
            row = connection.execute(sql.SETTLE, settled.columns(self._clock())).first()
            if row:
                self._charge(connection, query_id, index, row, charges)
                _pay(connection, json.loads(row.held), settled.cost, _worst(row))
            elif not self._settle_new(connection, settled, _held(present)):
                self._correct(connection, settled)
            return self._standings(present, connection)

        return _ordered(await self._storage.run(settle), budgets)

    async def end(
        self,
        query_id: str,
        router: str,
        outcome: str,
        result: SolveResponse | None,
        budgets: Sequence[Budget],
    ) -> Sequence[Standing]:
        """As in Ledger."""
        present = await self._present(budgets)
        values = {
            "query": query_id,
            "owner": router,
            "how": outcome,
            "now": self._clock(),
            "what": None if result is None else result.SerializeToString(),
        }

        def end(connection: Connection) -> Sequence[Standing]:
            statement = sql.END_IN_VAIN if result is None else sql.END
            if connection.execute(statement, values).rowcount:
                self._lose_all(connection, query_id)
                connection.execute(sql.FORGET, {"query": query_id})
                if result is not None:
                    return self._move_prices(connection, query_id, present)
            else:
                query = connection.execute(sql.OWNER, {"query": query_id}).first()
                if query is None:
                    raise LookupError(f"there is no query {query_id}")
                if query.router != router:
                    raise TakenOver
            return self._standings(present, connection)

        return _ordered(await self._storage.run(end), budgets)

    async def get(self, query_id: str) -> QueryKept | None:
        """As in Ledger."""
        get = partial(self._get, sql.QUERY_OF_ID, {"query": query_id})
        return await self._storage.run(get, reads=True)

    async def bill(self, since: float, until: float, by: Sequence[str]) -> Sequence[BillRow]:
        """As in Ledger."""
        if unknown := set(by) - set(BY):
            raise ValueError(f"a bill is by {', '.join(BY)}, not {', '.join(sorted(unknown))}")
        statement, times = sql.bill(tuple(dict.fromkeys(by))), {"since": since, "until": until}
        found = await self._storage.run(lambda to: to.execute(statement, times).all(), reads=True)
        rows = [
            BillRow(
                tuple(_key(name, _columns_of(row)[name]) for name in by),
                row.queries,
                _usage(_columns_of(row)),
                row.unreconciled_flops,
            )
            for row in found
            if row.queries
        ]
        return sorted(rows, key=lambda row: (-row.usage.money, -row.usage.flops, row.keys))

    async def close(self) -> None:
        """As in Ledger."""
        await self._storage.close()

    # Routers.

    async def _bury(self, now: float) -> None:
        """Charge what those have reserved that do not live any more."""
        dead = {"now": now}
        lost = await self._storage.run(lambda to: to.execute(sql.OF_THE_DEAD, dead).all(), reads=True)
        for query_id, index in lost:
            await self._storage.run(partial(self._lose, query_id, index))
        await self._storage.run(lambda to: to.execute(sql.BURY, dead))

    def _lose_all(self, connection: Connection, query_id: str) -> None:
        for (index,) in connection.execute(sql.RUNNING, {"query": query_id}).all():
            self._lose(query_id, index, connection)

    def _lose(self, query_id: str, index: int, connection: Connection) -> None:
        """Charge a round its worst case, unless another router has, or it was settled."""
        values = {"query": query_id, "of": index, "now": self._clock()}
        row = connection.execute(sql.LOSE, values).first()
        if row is None:
            return
        action = Round.FromString(row.round).action
        line = Usage(
            stage=STAGE_GENERATION,
            model=action.model,
            strategy=action.strategy,
            aborted_tokens=row.worst_tokens,
            flops=row.worst_flops,
            aborted_flops=row.worst_flops,
            money=row.worst_money,
            aborted_money=row.worst_money,
        )
        self._charge(connection, query_id, index, row, [line], unreconciled=True)
        _pay(connection, json.loads(row.held), _worst(row), _worst(row))

    # Queries.

    def _begin(self, entry: Entry, connection: Connection) -> QueryKept | None:
        values = {name: getattr(entry, name) for name in PLAIN} | {"request_id": entry.request_id or None}
        # What is there may end in vain between two statements, and gives its request id away.
        while not connection.execute(self._inserts.query, values).first():
            of_request = {"tenant": entry.tenant, "request": entry.request_id}
            same = self._get(sql.QUERY_OF_REQUEST, of_request, connection)
            if same and same.entry.query_id != entry.query_id:
                return same
            if same or connection.execute(sql.OWNER, {"query": entry.query_id}).first():
                return None
        return None

    def _get(
        self, statement: Select[Any], which: Mapping[str, str], connection: Connection
    ) -> QueryKept | None:
        row = connection.execute(statement, {**which, "now": self._clock()}).first()
        if row is None:
            return None
        entry = Entry(**{name: _columns_of(row)[name] for name in PLAIN}, request_id=row.request_id or "")
        kept: list[RoundKept] = []
        estimate: list[Usage] = []
        found = connection.execute(sql.ROUNDS, {"query": row.query_id}).all()
        for index, lines in groupby(found, key=lambda one: _columns_of(one)["index"]):
            first, *others = lines
            usages = [_line(_columns_of(one)) for one in (first, *others) if one.line is not None]
            if index == ESTIMATE:
                estimate = usages
                continue
            kept.append(
                RoundKept(
                    index,
                    Round.FromString(first.round),
                    _worst(first),
                    usages,
                    settled=first.state != RESERVED,
                    unreconciled=first.state == LOST,
                    candidates=first.candidates or b"",
                )
            )
        result = None if row.result is None else SolveResponse.FromString(row.result)
        return QueryKept(entry, row.outcome, row.ended, result, kept, estimate, row.address or "")

    # Rounds.

    def _round_columns(
        self, index: int, round: Round, state: str, worst: Cost, held: Held, candidates: bytes
    ) -> dict[str, Any]:
        return {
            "index": index,
            "state": state,
            "at": self._clock(),
            "round": round.SerializeToString(),
            **_columns("worst", worst),
            "held": json.dumps(held),
            "candidates": candidates or None,
        }

    def _change(
        self, connection: Connection, query_id: str, router: str, index: int, worst: Cost
    ) -> tuple[Held, Cost]:
        """Reserve another amount for a round that is there: which windows pay, and how much more."""
        query = connection.execute(sql.OWNER, {"query": query_id}).first()
        if query is None or query.router != router or query.outcome:
            raise TakenOver
        of = {"query": query_id, "of": index}
        row = connection.execute(sql.ROUND, of).one()
        if row.state == SETTLED or row.router != router:
            raise ValueError(f"round {index} of query {query_id} was settled, or is another router's")
        held, before = json.loads(row.held), _worst(row)
        if row.state == LOST:
            # This router was late: it lives, and so does the round.
            _pay(connection, held, Cost() - self._refund(connection, query_id, index), Cost())
            before = Cost()
        connection.execute(sql.CHANGE, {**of, "state": RESERVED, **_columns("worst", worst)})
        return held, worst - before

    def _take(self, connection: Connection, held: Held, more: Cost, present: Present) -> None:
        """Reserve so much more in each of these windows; raises Short."""
        budgets = {one.name: (one, starts) for one, starts in present}
        for name, starts in held:
            budget = budgets.get(name)  # None: there is no such budget any more.
            most = _most(budget[0].limit if budget else UNLIMITED, more)
            values = {"name": name, "from": starts, **_columns("more", more), **most}
            if not connection.execute(sql.TAKE, values).rowcount and budget:
                raise Short(self._standings([(budget[0], starts)], connection)[0])

    def _settle_new(self, connection: Connection, settled: _Settled, held: Held) -> bool:
        """Charge what was never reserved; whether it was not there yet."""
        values = {
            "query": settled.query_id,
            **self._round_columns(settled.index, settled.round, SETTLED, Cost(), held, settled.candidates),
        }
        row = connection.execute(self._inserts.round, values).first()
        if row:
            self._charge(connection, settled.query_id, settled.index, row, settled.charges)
            _pay(connection, held, settled.cost, Cost())
        return row is not None

    def _correct(self, connection: Connection, settled: _Settled) -> None:
        """Charge this in place of what was charged."""
        row = connection.execute(sql.ROUND, {"query": settled.query_id, "of": settled.index}).first()
        if row is None:
            raise LookupError(f"there is no query {settled.query_id}")
        before = self._refund(connection, settled.query_id, settled.index)
        self._charge(connection, settled.query_id, settled.index, row, settled.charges)
        _pay(connection, json.loads(row.held), settled.cost - before, Cost())
        connection.execute(sql.CORRECT, settled.columns(self._clock()))

    # Charges.

    def _charge(
        self,
        connection: Connection,
        query_id: str,
        index: int,
        row: Row[Any],
        lines: Sequence[Usage],
        *,
        unreconciled: bool = False,
    ) -> None:
        now = self._clock()
        of = {
            "query_id": query_id,
            "index": index,
            "at": now,
            "day": math.floor(now / DAY),
            "tenant": row.tenant,
            "tier": row.tier,
            "unreconciled": unreconciled,
        }
        names = ("stage", "model", "strategy", *SUMMED)
        values = [
            {**of, "line": number, **{name: getattr(line, name) for name in names}}
            for number, line in enumerate(lines)
        ]
        if values:
            connection.execute(sql.CHARGE, values)

    def _refund(self, connection: Connection, query_id: str, index: int) -> Cost:
        """Delete the charges of a round; what they were."""
        of = {"query": query_id, "of": index}
        before = _cost(_line(_columns_of(row)) for row in connection.execute(sql.CHARGED, of))
        connection.execute(sql.REFUND, of)
        return before

    # Budgets.

    async def _present(self, budgets: Sequence[Budget]) -> Present:
        """The windows of now, which are there from then on."""
        now = self._clock()
        present = [(one, one.period.start(now)) for one in sorted(budgets, key=lambda one: one.name)]
        new = [(one, starts) for one, starts in present if self._begun.get(one.name) != starts]
        if new:
            await self._storage.run(partial(self._begin_windows, new))
            self._begun.update((one.name, starts) for one, starts in new)
        return present

    def _begin_windows(self, new: Present, connection: Connection) -> None:
        for one, starts in new:
            window = {"budget": one.name, "starts": starts, "ends": one.period.end(starts)}
            connection.execute(self._inserts.window, window)
            guess = {"budget": one.name, **_pace_columns(self._guess(one))}
            connection.execute(self._inserts.price, guess)

    def _guess(self, budget: Budget) -> price.Pace:
        """Before the first query; one more of what has no limit buys nothing."""
        window, now = _window(budget), self._clock()
        return price.begin(window, self._worth(), now) if window else price.Pace(0.0, now)

    def _standings(
        self, present: Present, connection: Connection, statement: Select[Any] = sql.STANDINGS
    ) -> list[Standing]:
        """In the order of names."""
        if not present:
            return []
        found = connection.execute(statement, {"held": _held(present)})
        rows = {row.budget: row for row in found}
        return [self._standing(one, rows[one.name]) for one, _ in present]

    def _standing(self, budget: Budget, row: Row[Any]) -> Standing:
        columns = _columns_of(row)
        # What was subtracted from sums of doubles may leave a little less than nothing.
        spent, reserved = (
            Cost(*(max(0.0, columns[f"{kind}_{unit}"]) for unit in UNITS)) for kind in ("spent", "reserved")
        )
        window = _window(budget)
        if window and row.price:
            kept = price.Pace(row.price, row.at, 0.0, row.queries, row.watched)
            pace = price.charge(window, kept, 0.0, self._clock())
        else:
            pace = self._guess(budget)
        return Standing(budget, row.starts, row.ends, spent, reserved, replace(pace, spent=spent.flops))

    def _move_prices(self, connection: Connection, query_id: str, present: Present) -> list[Standing]:
        """Each budget's price takes the step of a query that has ended."""
        flops = connection.execute(sql.FLOPS, {"query": query_id}).scalar_one() or 0.0
        moved = []
        for standing in self._standings(present, connection, sql.LOCKED_STANDINGS):
            pace, window = standing.pace, _window(standing.budget)
            if window:
                # What it took in the window before is not in this one's: a little too much seems left, once.
                others = replace(pace, spent=max(0.0, pace.spent - flops))
                pace = replace(price.settle(window, others, flops, pace.at), spent=pace.spent)
                connection.execute(sql.PRICE, {"name": standing.budget.name, **_pace_columns(pace)})
            moved.append(replace(standing, pace=pace))
        return moved

    # What is too old.

    def _purge(self, now: float, connection: Connection) -> bool:
        """Delete some of it; whether there may be more."""
        before = {"before": now - self._kept_query_seconds}
        old = connection.execute(sql.OLD_QUERIES, {**before, "now": now}).scalars().all()
        for statement in (sql.FORGET_ROUNDS, sql.FORGET_QUERIES):
            connection.execute(statement, {"old": old})
        before = {"before": now - self._kept_bill_seconds}
        billed = connection.execute(sql.OLD_CHARGES, before).scalars().all()
        connection.execute(sql.FORGET_CHARGES, {"old": billed, **before})
        connection.execute(sql.FORGET_WINDOWS, before)
        return PURGED in (len(old), len(billed))


def _ordered(standings: Sequence[Standing], budgets: Sequence[Budget]) -> Sequence[Standing]:
    """In the caller's order."""
    by_name = {standing.budget.name: standing for standing in standings}
    return [by_name[one.name] for one in budgets]


def _held(present: Present) -> Held:
    return [(one.name, starts) for one, starts in present]


def _pay(connection: Connection, held: Held, spent: Cost, freed: Cost) -> None:
    """What was spent, and what is not reserved any more, in each of these windows."""
    amounts = {**_columns("pay", spent), **_columns("free", freed)}
    if held:
        connection.execute(sql.PAY, [{"name": name, "from": starts, **amounts} for name, starts in held])


def _columns(kind: str, cost: Cost) -> dict[str, float]:
    return {f"{kind}_flops": cost.flops, f"{kind}_money": cost.money, f"{kind}_tokens": int(cost.tokens)}


def _most(limit: Cost, more: Cost) -> dict[str, float]:
    """Most that may be spent and reserved: no matter of what is not to be reserved."""
    tokens = more.tokens > 0 and limit.tokens < MOST_TOKENS
    return {
        "most_flops": limit.flops * (1 + ROUNDING) if more.flops > 0 else math.inf,
        "most_money": limit.money * (1 + ROUNDING) if more.money > 0 else math.inf,
        "most_tokens": math.floor(limit.tokens) if tokens else MOST_TOKENS,
    }


def _columns_of(row: Row[Any]) -> Mapping[str, Any]:
    """By name: a row's own attributes hide some."""
    return row._asdict()


def _worst(row: Row[Any]) -> Cost:
    return Cost(row.worst_flops, row.worst_money, row.worst_tokens)


def _cost(lines: Iterable[Usage]) -> Cost:
    """What lines of a bill come to."""
    total = Cost()
    for line in lines:
        tokens = line.prompt_tokens + line.completion_tokens + line.aborted_tokens
        total += Cost(line.flops, line.money, tokens)
    return total


def _line(columns: Mapping[str, Any]) -> Usage:
    usage = _usage(columns)
    usage.stage, usage.model, usage.strategy = columns["stage"], columns["model"], columns["strategy"]
    return usage


def _usage(columns: Mapping[str, Any]) -> Usage:
    usage = Usage(**{name: columns[name] for name in MEASURED})
    for name in COUNTED:
        setattr(usage, name, int(columns[name]))  # PostgreSQL's sums of whole numbers are decimals.
    return usage


def _key(name: str, value: Any) -> str:
    """A value that a bill is by, in words."""
    if name == "stage":
        return Stage.Name(value).removeprefix("STAGE_").lower()
    return datetime.fromtimestamp(value * DAY, UTC).date().isoformat() if name == "day" else str(value)


def _window(budget: Budget) -> price.Window | None:
    """What the price of FLOPs is of; none where they have no limit, or there are none."""
    flops = budget.limit.flops
    return price.Window(flops, budget.period) if 0 < flops < math.inf else None


def _pace_columns(pace: price.Pace) -> dict[str, float]:
    return {"price": pace.price, "at": pace.at, "queries": pace.queries, "watched": pace.watched}
