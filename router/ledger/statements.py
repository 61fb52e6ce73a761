"""What the ledger says to its database, but for what each of SQLite and PostgreSQL says in its own way.

Statements are made once: SQLAlchemy keeps them compiled.
"""

from __future__ import annotations

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
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

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

UNITS = ("flops", "money", "tokens")

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
FORGET = (
    update(rounds)
    .where(rounds.c.query_id == bindparam("query"), rounds.c.candidates.is_not(None))
    .values(candidates=None)
)
ROUNDS = (
    select(rounds, *(column for column in charges.c if column.name not in rounds.c))
    .outerjoin(charges, and_(charges.c.query_id == rounds.c.query_id, charges.c.index == rounds.c.index))
    .where(rounds.c.query_id == bindparam("query"))
    .order_by(rounds.c.index, charges.c.line)
)

# Charges.

CHARGE = insert(charges)
CHARGED = select(charges).where(_CHARGES_OF)
REFUND = delete(charges).where(_CHARGES_OF)
FLOPS = select(func.sum(charges.c.flops)).where(charges.c.query_id == bindparam("query"))


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
STANDINGS = (
    select(windows, *(column for column in prices.c if column.name != "budget"))
    .join(prices, prices.c.budget == windows.c.budget)
    .where(tuple_(windows.c.budget, windows.c.starts).in_(bindparam("held", expanding=True)))
    .order_by(windows.c.budget)
)
LOCKED_STANDINGS = STANDINGS.with_for_update(of=prices)
PRICE = (
    update(prices)
    .where(prices.c.budget == bindparam("name"))
    .values({column.name: bindparam(column.name) for column in prices.c if column.name != "budget"})
)

# What is too old.

OLD_QUERIES = (
    select(queries.c.query_id)
    .where(queries.c.began < bindparam("before"), or_(queries.c.outcome != "", ~_lives(queries.c.router)))
    .limit(PURGED)
)
FORGET_ROUNDS = delete(rounds).where(rounds.c.query_id.in_(bindparam("old", expanding=True)))
FORGET_QUERIES = delete(queries).where(queries.c.query_id.in_(bindparam("old", expanding=True)))
OLD_CHARGES = select(charges.c.query_id).where(charges.c.at < bindparam("before")).distinct().limit(PURGED)
FORGET_CHARGES = delete(charges).where(
    charges.c.query_id.in_(bindparam("old", expanding=True)), charges.c.at < bindparam("before")
)
FORGET_WINDOWS = delete(windows).where(windows.c.ends < bindparam("before"))


class Inserts:
    """Insertions of what may be there already, which either database says in its own way."""

    def __init__(self, dialect: str) -> None:
        def new(table: Table) -> sqlite.Insert | postgresql.Insert:
            return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)

        self.query = new(queries).on_conflict_do_nothing().returning(queries.c.query_id)
        self.window = new(windows).on_conflict_do_nothing()
        self.price = new(prices).on_conflict_do_nothing()
        router = new(routers)
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
