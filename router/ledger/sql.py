"""The ledger in SQLite or PostgreSQL: each method is a short transaction, and does the same once and twice.

Rows are locked in one order, so that no two transactions wait for each other: a query, its rounds, windows in
the order of their budgets' names, prices likewise.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

from isoflop.errors import FailedPrecondition, NotFound
from isoflop.v1.common_pb2 import STAGE_GENERATION, Stage, Usage
from isoflop.v1.router_pb2 import Round, SolveResponse
from sqlalchemy import Select

from router import price
from router.cost import Cost
from router.ledger import (
    BY,
    ESTIMATE,
    PLATFORM,
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
from router.ledger.statements import COUNTED, ENTRY, MEASURED, PACE, PURGED, SUMMED
from router.ledger.storage import Row, Storage, Transaction

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


def open_ledger(
    url: str | None,
    worth: Callable[[], float],
    *,
    kept_query_days: float,
    kept_bill_days: float,
    connections: int = 8,
    timeout_seconds: float = 5.0,
    migrates: bool = False,
    lost: Callable[[int], None] = lambda rounds: None,
    clock: Callable[[], float] = time.time,
) -> SqlLedger:
    """The ledger at a URL: sqlite:///FILE, which is made where there is none, or postgresql://...; None: one
    that nobody else sees, in a temporary file.

    `connections`: to PostgreSQL, at most; `timeout_seconds`: what the database has not done by then is
    Unavailable; `migrates`: bring PostgreSQL's tables up to date, as those of a file always are; for the rest
    see SqlLedger. Raises FailedPrecondition where it cannot be used, and Unavailable where it is down.
    """
    storage = Storage(url, connections, timeout_seconds)
    prepare(storage, migrates=migrates)
    return SqlLedger(
        storage,
        worth,
        kept_query_days=kept_query_days,
        kept_bill_days=kept_bill_days,
        lost=lost,
        clock=clock,
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
        lost: Callable[[int], None] = lambda rounds: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`worth`: a first guess of a right answer's, in FLOPs; `lost`: takes how many rounds of routers that
        died were charged in full; `clock`: seconds since the epoch, on which
        routers agree within much less than a lease. Queries are kept for so many days; charges, and windows
        that have ended, for so many others."""
        self._storage = storage
        self._lost = lost
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
        await self._storage.run(lambda transaction: transaction.write(self._inserts.router, leased))
        await self._bury(now)
        if now >= self._purge_at:
            more = await self._storage.run(partial(self._purge, now))
            self._purge_at = now if more else now + PURGE_SECONDS

    async def gone(self, router: str) -> None:
        """As in Ledger."""
        await self._storage.run(lambda transaction: transaction.write(sql.GONE, {"gone": router}))
        await self._bury(self._clock())

    async def begin(self, entry: Entry) -> QueryKept | None:
        """As in Ledger."""
        return await self._storage.run(partial(self._begin, entry))

    async def take_over(self, query_id: str, dead: str, router: str) -> bool:
        """As in Ledger."""
        values = {"query": query_id, "dead": dead, "by": router, "now": self._clock()}

        def take_over(transaction: Transaction) -> bool:
            if not transaction.write(sql.TAKE_OVER, values):
                return False
            for row in transaction.rows(sql.RUNNING, {"query": query_id}):
                self._lose(query_id, row["index"], transaction)
            return True

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

        def estimated(transaction: Transaction) -> None:
            if not self._settle_new(settled, held, transaction):
                self._correct(settled, transaction)

        await self._storage.run(estimated)

    async def reserve(
        self, query_id: str, router: str, index: int, round: Round, worst: Cost, budgets: Sequence[Budget]
    ) -> Sequence[Standing]:
        """As in Ledger."""
        if not all(0 <= amount < math.inf for amount in (worst.flops, worst.money, worst.tokens)):
            raise ValueError(f"what is reserved is finite and not negative: {worst}")
        worst = replace(worst, tokens=math.ceil(worst.tokens))
        present = await self._present(budgets)

        def reserve(transaction: Transaction) -> Sequence[Standing]:
            held, more = _held(present), worst
            values = self._round_columns(query_id, index, round, RESERVED, worst, held, b"")
            if not transaction.row(self._inserts.own_round, {**values, "owner": router}):
                held, more = self._change(query_id, router, index, worst, transaction)
            self._take(held, more, present, transaction)
            return self._standings(present, transaction)

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

        def settle(transaction: Transaction) -> Sequence[Standing]:
            row = transaction.row(sql.SETTLE, self._settled_columns(settled))
            if row:
                self._charge(query_id, index, round, row, charges, transaction)
                _pay(json.loads(row["held"]), settled.cost, _worst(row), transaction)
            elif not self._settle_new(settled, _held(present), transaction):
                self._correct(settled, transaction)
            return self._standings(present, transaction)

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
        statement = sql.END_IN_VAIN if result is None else sql.END

        def end(transaction: Transaction) -> Sequence[Standing]:
            if transaction.write(statement, values):
                for row in transaction.rows(sql.FORGET_CANDIDATES, {"query": query_id}):
                    if row["state"] == RESERVED:
                        self._lose(query_id, row["index"], transaction)
                if result is not None:
                    return self._move_prices(query_id, present, transaction)
            else:
                query = transaction.row(sql.OWNER, {"query": query_id})
                if query is None:
                    raise NotFound(f"the ledger has no query {query_id}")
                if query["router"] != router:
                    raise TakenOver
            return self._standings(present, transaction)

        return _ordered(await self._storage.run(end), budgets)

    async def get(self, query_id: str) -> QueryKept | None:
        """As in Ledger."""
        get = partial(self._get, sql.QUERY_OF_ID, {"query": query_id})
        return await self._storage.run(get, reads=True)

    async def bill(self, since: float, until: float, by: Sequence[str]) -> Sequence[BillRow]:
        """As in Ledger."""
        if unknown := set(by) - set(BY):
            raise ValueError(f"a bill is by {', '.join(BY)}, not {', '.join(sorted(unknown))}")
        statement, values = sql.bill(tuple(by)), {"since": since, "until": until}
        found = await self._storage.run(
            lambda transaction: transaction.rows(statement, values), reads=True, long=True
        )
        rows = [
            BillRow(
                tuple(_key(name, row[name]) for name in by),
                row["queries"],
                _usage(row),
                row["unreconciled_flops"],
            )
            for row in found
            if row["queries"]
        ]
        return sorted(rows, key=lambda row: (-row.usage.money, -row.usage.flops, row.keys))

    async def close(self) -> None:
        """As in Ledger."""
        await self._storage.close()

    # Routers and queries.

    async def _bury(self, now: float) -> None:
        """Charge what those have reserved that do not live any more."""
        lost = await self._storage.run(
            lambda transaction: transaction.rows(sql.OF_THE_DEAD, {"now": now}), reads=True
        )
        for row in lost:
            if await self._storage.run(partial(self._lose, row["query_id"], row["index"])):
                self._lost(1)
        await self._storage.run(lambda transaction: transaction.write(sql.BURY, {"now": now}))

    def _begin(self, entry: Entry, transaction: Transaction) -> QueryKept | None:
        values = {name: getattr(entry, name) for name in ENTRY} | {"request_id": entry.request_id or None}
        same = {"tenant": entry.tenant, "request": entry.request_id}
        while not transaction.row(self._inserts.query, values):
            if transaction.row(sql.OWNER, {"query": entry.query_id}):
                return None  # It is this one: said for the second time.
            if kept := self._get(sql.QUERY_OF_REQUEST, same, transaction):
                return kept
            # That one has ended in vain between two statements, and given its request id away.
        return None

    def _get(
        self, statement: Select[Any], which: dict[str, str], transaction: Transaction
    ) -> QueryKept | None:
        query = transaction.row(statement, {**which, "now": self._clock()})
        if query is None:
            return None
        of = {name: query[name] for name in ENTRY} | {"request_id": query["request_id"] or ""}
        entry = Entry(**of)
        kept: list[RoundKept] = []
        estimate: list[Usage] = []
        rows = transaction.rows(sql.ROUNDS, {"query": entry.query_id})
        for index, group in groupby(rows, key=lambda row: int(row["index"])):
            lines = list(group)
            row, charges = lines[0], [_line(line) for line in lines if line["line"] is not None]
            if index == ESTIMATE:
                estimate = charges
                continue
            kept.append(
                RoundKept(
                    index,
                    Round.FromString(row["round"]),
                    _worst(row),
                    charges,
                    settled=row["state"] != RESERVED,
                    unreconciled=row["state"] == LOST,
                    candidates=row["candidates"] or b"",
                )
            )
        result = None if query["result"] is None else SolveResponse.FromString(query["result"])
        address = query["address"] or ""
        return QueryKept(entry, query["outcome"], query["ended"], result, kept, estimate, address)

    # Rounds.

    def _round_columns(
        self,
        query_id: str,
        index: int,
        round: Round,
        state: str,
        worst: Cost,
        held: Held,
        candidates: bytes,
    ) -> dict[str, Any]:
        return {
            "query": query_id,
            "index": index,
            "state": state,
            "at": self._clock(),
            "round": round.SerializeToString(),
            **_amounts("worst", worst),
            "held": json.dumps(held),
            "candidates": candidates or None,
        }

    def _settled_columns(self, settled: _Settled) -> dict[str, Any]:
        return {
            "query": settled.query_id,
            "of": settled.index,
            "now": self._clock(),
            "what": settled.round.SerializeToString(),
            "came": settled.candidates or None,
        }

    def _change(
        self, query_id: str, router: str, index: int, worst: Cost, transaction: Transaction
    ) -> tuple[Held, Cost]:
        """Reserve another amount for a round that is there: which windows pay, and how much more."""
        query = transaction.row(sql.OWNER, {"query": query_id})
        if query is None or query["router"] != router or query["outcome"]:
            raise TakenOver
        of = {"query": query_id, "of": index}
        row = transaction.row(sql.ROUND, of)
        if row is None or row["state"] == SETTLED or row["router"] != router:
            raise FailedPrecondition(f"round {index} of query {query_id} was settled, or is another router's")
        held, before = json.loads(row["held"]), _worst(row)
        if row["state"] == LOST:
            # This router was late: it lives, and so does the round.
            _pay(held, Cost() - self._refund(query_id, index, transaction), Cost(), transaction)
            before = Cost()
        transaction.write(sql.CHANGE, {**of, "state": RESERVED, **_amounts("worst", worst)})
        return held, worst - before

    def _take(self, held: Held, more: Cost, present: Present, transaction: Transaction) -> None:
        """Reserve so much more in each of these windows; raises Short."""
        budgets = {one.name: one for one, _ in present}
        for name, starts in held:
            budget = budgets.get(name)  # None: there is no such budget any more.
            most = _most(budget.limit if budget else UNLIMITED, more)
            values = {"name": name, "from": starts, **_amounts("more", more), **most}
            if not transaction.write(sql.TAKE, values) and budget:
                raise Short(self._standings([(budget, starts)], transaction)[0])

    def _settle_new(self, settled: _Settled, held: Held, transaction: Transaction) -> bool:
        """Charge what was never reserved; whether it was not there yet."""
        query_id, index = settled.query_id, settled.index
        values = self._round_columns(
            query_id, index, settled.round, SETTLED, Cost(), held, settled.candidates
        )
        row = transaction.row(self._inserts.round, values)
        if row is None:
            return False
        self._charge(query_id, index, settled.round, row, settled.charges, transaction)
        _pay(held, settled.cost, Cost(), transaction)
        return True

    def _correct(self, settled: _Settled, transaction: Transaction) -> None:
        """Charge this in place of what was charged."""
        query_id, index = settled.query_id, settled.index
        row = transaction.row(sql.ROUND, {"query": query_id, "of": index})
        if row is None:
            raise NotFound(f"the ledger has no query {query_id}")
        before = self._refund(query_id, index, transaction)
        self._charge(query_id, index, settled.round, row, settled.charges, transaction)
        _pay(json.loads(row["held"]), settled.cost - before, Cost(), transaction)
        transaction.write(sql.CORRECT, self._settled_columns(settled))

    def _lose(self, query_id: str, index: int, transaction: Transaction) -> bool:
        """Charge a round its worst case, unless another router has, or it was settled; whether it did."""
        row = transaction.row(sql.LOSE, {"query": query_id, "of": index, "now": self._clock()})
        if row is None:
            return False
        round, worst = Round.FromString(row["round"]), _worst(row)
        line = Usage(
            stage=STAGE_GENERATION,
            model=round.action.model,
            strategy=round.action.strategy,
            aborted_tokens=int(worst.tokens),
            flops=worst.flops,
            aborted_flops=worst.flops,
            money=worst.money,
            aborted_money=worst.money,
        )
        self._charge(query_id, index, round, row, [line], transaction, unreconciled=True)
        _pay(json.loads(row["held"]), worst, worst, transaction)
        return True

    # Charges.

    def _charge(
        self,
        query_id: str,
        index: int,
        round: Round,
        row: Row,
        lines: Sequence[Usage],
        transaction: Transaction,
        *,
        unreconciled: bool = False,
    ) -> None:
        """`row`: with the query's tenant and tier."""
        now = self._clock()
        of = {
            "query_id": query_id,
            "index": index,
            "at": now,
            "day": math.floor(now / DAY),
            "tenant": PLATFORM if round.explored else row["tenant"],
            "tier": row["tier"],
            "unreconciled": unreconciled,
        }
        names = ("stage", "model", "strategy", *SUMMED)
        transaction.write_each(
            sql.CHARGE,
            [
                {**of, "line": number, **{name: getattr(line, name) for name in names}}
                for number, line in enumerate(lines)
            ],
        )

    def _refund(self, query_id: str, index: int, transaction: Transaction) -> Cost:
        """Delete the charges of a round; what they were."""
        of = {"query": query_id, "of": index}
        before = _cost(_line(row) for row in transaction.rows(sql.CHARGED, of))
        transaction.write(sql.REFUND, of)
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

    def _begin_windows(self, new: Present, transaction: Transaction) -> None:
        for one, starts in new:
            window = {"budget": one.name, "starts": starts, "ends": one.period.end(starts)}
            transaction.write(self._inserts.window, window)
            guess = {"budget": one.name, **_pace_columns(self._guess(one))}
            transaction.write(self._inserts.price, guess)

    def _guess(self, budget: Budget) -> price.Pace:
        """Before the first query; one more of what has no limit buys nothing."""
        window, now = _window(budget), self._clock()
        return price.begin(window, self._worth(), now) if window else price.Pace(0.0, now)

    def _standings(
        self, present: Present, transaction: Transaction, *, locked: bool = False
    ) -> list[Standing]:
        """In the order of names; with their prices `locked`, until the end of the transaction."""
        if not present:
            return []
        values: dict[str, Any] = {}
        for number, (budget, starts) in enumerate(present):
            values[f"name{number}"], values[f"from{number}"] = budget.name, starts
        rows = transaction.rows(sql.standings(len(present), locked=locked), values)
        found = {row["budget"]: row for row in rows}
        return [self._standing(budget, found[budget.name]) for budget, _ in present]

    def _standing(self, budget: Budget, row: Row) -> Standing:
        # What was subtracted from sums of doubles may leave a little less than nothing.
        spent = Cost(max(0.0, row["spent_flops"]), max(0.0, row["spent_money"]), max(0, row["spent_tokens"]))
        reserved = Cost(
            max(0.0, row["reserved_flops"]), max(0.0, row["reserved_money"]), max(0, row["reserved_tokens"])
        )
        window, now = _window(budget), self._clock()
        if window is None:
            pace = price.Pace(0.0, now, spent.flops)
        else:
            # Where it had no limit before, there is no price yet.
            known = price.Pace(row["price"], row["at"], 0.0, row["queries"], row["watched"])
            pace = price.charge(window, known if known.price else self._guess(budget), spent.flops, now)
        return Standing(budget, row["starts"], row["ends"], spent, reserved, pace)

    def _move_prices(self, query_id: str, present: Present, transaction: Transaction) -> list[Standing]:
        """Each budget's price takes the step of a query that has ended."""
        sums = transaction.row(sql.FLOPS, {"query": query_id})
        assert sums
        flops, moved, moves = sums["flops"], [], []
        for standing in self._standings(present, transaction, locked=True):
            pace, window = standing.pace, _window(standing.budget)
            if window:
                # What it took in the window before is not in this one's: a little too much seems left, once.
                others = replace(pace, spent=max(0.0, pace.spent - flops))
                pace = replace(price.settle(window, others, flops, pace.at), spent=pace.spent)
                moves.append({"name": standing.budget.name, **_pace_columns(pace)})
            moved.append(replace(standing, pace=pace))
        transaction.write_each(sql.PRICE, moves)
        return moved

    # What is too old.

    def _purge(self, now: float, transaction: Transaction) -> bool:
        """Delete some of it; whether there may be more."""
        before = {"before": now - self._kept_query_seconds}
        queries = transaction.rows(sql.OLD_QUERIES, {**before, "now": now})
        for statement in (sql.FORGET_ROUNDS, sql.FORGET_QUERY):
            transaction.write_each(statement, [{"query": row["query_id"]} for row in queries])
        before = {"before": now - self._kept_bill_seconds}
        billed = transaction.rows(sql.OLD_CHARGES, before)
        transaction.write_each(sql.FORGET_CHARGES, [{"query": row["query_id"], **before} for row in billed])
        transaction.write(sql.FORGET_WINDOWS, before)
        return PURGED in (len(queries), len(billed))


def _ordered(standings: Sequence[Standing], budgets: Sequence[Budget]) -> Sequence[Standing]:
    """In the caller's order."""
    by_name = {standing.budget.name: standing for standing in standings}
    return [by_name[one.name] for one in budgets]


def _held(present: Present) -> Held:
    return [(one.name, starts) for one, starts in present]


def _pay(held: Held, spent: Cost, freed: Cost, transaction: Transaction) -> None:
    """What was spent, and what is not reserved any more, in each of these windows."""
    amounts = {**_amounts("pay", spent), **_amounts("free", freed)}
    transaction.write_each(sql.PAY, [{"name": name, "from": starts, **amounts} for name, starts in held])


def _amounts(kind: str, cost: Cost) -> dict[str, float]:
    return {f"{kind}_flops": cost.flops, f"{kind}_money": cost.money, f"{kind}_tokens": int(cost.tokens)}


def _most(limit: Cost, more: Cost) -> dict[str, float]:
    """Most that may be spent and reserved; what nothing more is reserved of does not matter."""
    tokens = more.tokens > 0 and limit.tokens < MOST_TOKENS
    return {
        "most_flops": limit.flops * (1 + ROUNDING) if more.flops > 0 else math.inf,
        "most_money": limit.money * (1 + ROUNDING) if more.money > 0 else math.inf,
        "most_tokens": math.floor(limit.tokens) if tokens else MOST_TOKENS,
    }


def _worst(round: Row) -> Cost:
    return Cost(round["worst_flops"], round["worst_money"], round["worst_tokens"])


def _cost(lines: Iterable[Usage]) -> Cost:
    """What lines of a bill come to."""
    total = Cost()
    for line in lines:
        tokens = line.prompt_tokens + line.completion_tokens + line.aborted_tokens
        total += Cost(line.flops, line.money, tokens)
    return total


def _line(charge: Row) -> Usage:
    usage = _usage(charge)
    usage.stage, usage.model, usage.strategy = charge["stage"], charge["model"], charge["strategy"]
    return usage


def _usage(row: Row) -> Usage:
    usage = Usage(**{name: row[name] for name in MEASURED})
    for name in COUNTED:
        setattr(usage, name, int(row[name]))  # PostgreSQL's sums of whole numbers are decimals.
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
    return {name: getattr(pace, name) for name in PACE}
