"""What the ledger says to its database, but for what each of SQLite and PostgreSQL says in its own way.

Statements are made once: SQLAlchemy keeps them compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Integer,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from router.cost import UNITS
from router.ledger.schema import (
    IS_RESERVED,
    LOST,
    SETTLED,
    charges,
    prices,
    queries,
    rounds,
    routers,
    windows,
)

PURGED = 1000
"""Most queries of which something is deleted at a time: not long, for those that wait."""

WORST = tuple(f"worst_{unit}" for unit in UNITS)
"""Columns of what was reserved for a round."""

COUNTED = (
    "calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "aborted_tokens",
    "unseen_tokens",
    "rejected_tokens",
    "draft_tokens",
)
MEASURED = ("flops", "flops_without_attention", "aborted_flops", "money", "aborted_money")
SUMMED = COUNTED + MEASURED
"""What lines of a bill are added up by: columns of charges, fields of Usage."""


ENTRY = ("query_id", "request_id", "asked", "tenant", "tier", "router", "began", "seed")
"""Columns of a query that begins: fields of Entry."""

PACE = ("price", "at", "queries", "watched")
"""Columns of a price: fields of Pace."""


def _now() -> ColumnElement[float]:
    return bindparam("now", type_=Double)


def _lives(router: ColumnElement[str]) -> ColumnElement[bool]:
    return exists().where(routers.c.id == router, routers.c.lease_until >= _now())


_ID = queries.c.query_id == bindparam("query")
_OF = and_(rounds.c.query_id == bindparam("query"), rounds.c.index == bindparam("of"))
_CHARGES_OF = and_(charges.c.query_id == bindparam("query"), charges.c.index == bindparam("of"))
_OWN = and_(_ID, queries.c.router == bindparam("owner"), queries.c.outcome == "")

# Routers.

GONE = delete(routers).where(routers.c.id == bindparam("gone"))
BURY = delete(routers).where(routers.c.lease_until < _now())
OF_THE_DEAD = select(rounds.c.query_id, rounds.c.index).where(IS_RESERVED, ~_lives(rounds.c.router))

# Queries.

OWNER = select(queries.c.router, queries.c.outcome).where(_ID)
TAKE_OVER = (
    update(queries)
    .where(_ID, queries.c.router == bindparam("dead"), queries.c.outcome == "", ~_lives(queries.c.router))
    .values(router=bindparam("by"))
)
_ENDED = {"outcome": bindparam("how"), "ended": _now(), "result": bindparam("what")}
END = update(queries).where(_OWN).values(_ENDED)
END_IN_VAIN = update(queries).where(_OWN).values(_ENDED | {"request_id": None})
QUERY = select(queries, routers.c.address).outerjoin(
    routers, and_(routers.c.id == queries.c.router, routers.c.lease_until >= _now())
)
QUERY_OF_ID = QUERY.where(_ID)
QUERY_OF_REQUEST = QUERY.where(
    queries.c.tenant == bindparam("tenant"), queries.c.request_id == bindparam("request")
)

# Rounds.

SETTLE = (
    update(rounds)
    .where(_OF, IS_RESERVED)
    .values(state=SETTLED, at=_now(), round=bindparam("what"), candidates=bindparam("came"))
    .returning(rounds.c.tenant, rounds.c.tier, rounds.c.held, *(rounds.c[name] for name in WORST))
)
LOSE = (
    update(rounds)
    .where(_OF, IS_RESERVED)
    .values(state=LOST, at=_now())
    .returning(
        rounds.c.tenant, rounds.c.tier, rounds.c.held, *(rounds.c[name] for name in WORST), rounds.c.round
    )
)
ROUND = select(rounds).where(_OF).with_for_update()
CHANGE = update(rounds).where(_OF).values({name: bindparam(name) for name in ("state", *WORST)})
CORRECT = (
    update(rounds)
    .where(_OF)
    .values(state=SETTLED, at=_now(), round=bindparam("what"), candidates=bindparam("came"))
)
RUNNING = select(rounds.c.index).where(rounds.c.query_id == bindparam("query"), IS_RESERVED)
FORGET_CANDIDATES = (
    update(rounds)
    .where(rounds.c.query_id == bindparam("query"), or_(rounds.c.candidates.is_not(None), IS_RESERVED))
    .values(candidates=None)
    .returning(rounds.c.index, rounds.c.state)
)
ROUNDS = (
    select(rounds, *(column for column in charges.c if column.name not in rounds.c))
    .outerjoin(charges, and_(charges.c.query_id == rounds.c.query_id, charges.c.index == rounds.c.index))
    .where(rounds.c.query_id == bindparam("query"))
    .order_by(rounds.c.index, charges.c.line)
)

# Charges.

CHARGE = insert(charges).values({column.name: bindparam(column.name) for column in charges.c})
CHARGED = select(charges).where(_CHARGES_OF)
REFUND = delete(charges).where(_CHARGES_OF)
FLOPS = select(func.coalesce(func.sum(charges.c.flops), 0.0).label("flops")).where(
    charges.c.query_id == bindparam("query")
)


@cache
def bill(by: tuple[str, ...]) -> Select[tuple[object, ...]]:
    """Sums of charges from `since` until `until`, by those columns."""
    sums = [func.sum(charges.c[name]).label(name) for name in SUMMED]
    unreconciled = func.sum(case((charges.c.unreconciled, charges.c.flops), else_=0.0))
    keys = [charges.c[name] for name in by]
    return (
        select(
            *keys,
            func.count(charges.c.query_id.distinct()).label("queries"),
            *sums,
            unreconciled.label("unreconciled_flops"),
        )
        .where(charges.c.at >= bindparam("since"), charges.c.at < bindparam("until"))
        .group_by(*keys)
    )


# Windows and prices.

_WINDOW = and_(windows.c.budget == bindparam("name"), windows.c.starts == bindparam("from"))
TAKE = (
    update(windows)
    .where(
        _WINDOW,
        *(
            windows.c[f"spent_{unit}"] + windows.c[f"reserved_{unit}"] + bindparam(f"more_{unit}")
            <= bindparam(f"most_{unit}")
            for unit in UNITS
        ),
    )
    .values({f"reserved_{unit}": windows.c[f"reserved_{unit}"] + bindparam(f"more_{unit}") for unit in UNITS})
)
PAY = (
    update(windows)
    .where(_WINDOW)
    .values(
        {f"spent_{unit}": windows.c[f"spent_{unit}"] + bindparam(f"pay_{unit}") for unit in UNITS}
        | {f"reserved_{unit}": windows.c[f"reserved_{unit}"] - bindparam(f"free_{unit}") for unit in UNITS}
    )
)


@cache
def standings(count: int, *, locked: bool = False) -> Select[tuple[object, ...]]:
    """So many windows (`name0` from `from0` on, ...) and their budgets' prices; these
    `locked`, in the order of names."""
    which = [
        and_(windows.c.budget == bindparam(f"name{one}"), windows.c.starts == bindparam(f"from{one}"))
        for one in range(count)
    ]
    found = (
        select(windows, *(prices.c[name] for name in PACE))
        .join(prices, prices.c.budget == windows.c.budget)
        .where(or_(*which))
    )
    return found.order_by(windows.c.budget).with_for_update(of=prices) if locked else found


PRICE = (
    update(prices)
    .where(prices.c.budget == bindparam("name"))
    .values({name: bindparam(name) for name in PACE})
)

# What is too old.

OLD_QUERIES = (
    select(queries.c.query_id)
    .where(queries.c.began < bindparam("before"), or_(queries.c.outcome != "", ~_lives(queries.c.router)))
    .limit(PURGED)
)
FORGET_ROUNDS = delete(rounds).where(rounds.c.query_id == bindparam("query"))
FORGET_QUERY = delete(queries).where(_ID)
OLD_CHARGES = select(charges.c.query_id).where(charges.c.at < bindparam("before")).distinct().limit(PURGED)
FORGET_CHARGES = delete(charges).where(
    charges.c.query_id == bindparam("query"), charges.c.at < bindparam("before")
)
FORGET_WINDOWS = delete(windows).where(windows.c.ends < bindparam("before"))


class Inserts:
    """Insertions of what may be there already, which either database says in its own way."""

    def __init__(self, dialect: str) -> None:
        def new(table: Table, *names: str) -> sqlite.Insert | postgresql.Insert:
            insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
            return insert.values({name: bindparam(name) for name in names}) if names else insert

        self.query = new(queries, *ENTRY).on_conflict_do_nothing().returning(queries.c.query_id)
        self.window = new(windows, "budget", "starts", "ends").on_conflict_do_nothing()
        self.price = new(prices, "budget", *PACE).on_conflict_do_nothing()
        router = new(routers, "id", "address", "lease_until")
        leased = {name: router.excluded[name] for name in ("address", "lease_until")}
        self.router = router.on_conflict_do_update(index_elements=["id"], set_=leased)
        columns = ["query_id", "tenant", "tier", "router"]
        given: dict[str, type[TypeEngine[Any]]] = {
            "index": Integer,
            "state": Text,
            "at": Double,
            "round": LargeBinary,
            "worst_flops": Double,
            "worst_money": Double,
            "worst_tokens": BigInteger,
            "held": Text,
            "candidates": LargeBinary,
        }
        row = select(
            *(queries.c[name] for name in columns),
            *(bindparam(name, type_=kind) for name, kind in given.items()),
        )
        self.own_round, self.round = (
            new(rounds)
            # Nobody takes the query over meanwhile.
            .from_select([*columns, *given], row.where(which).with_for_update(read=True, of=queries))
            .on_conflict_do_nothing()
            .returning(rounds.c.tenant, rounds.c.tier)
            for which in (_OWN, _ID)
        )
