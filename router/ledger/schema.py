"""The ledger's tables, for SQLite and PostgreSQL: FLOPs and money are doubles, tokens whole numbers, times
seconds since the epoch.

`router.ledger.migrations` leads there from any earlier one; a test sees that both are the same.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    literal_column,
)

HEAD = "0001"
"""The migration that leads here."""

RESERVED, SETTLED, LOST = "reserved", "settled", "lost"
"""States of a round: it runs; it was charged what it took; its router died, and it was charged in full."""

metadata = MetaData()

routers = Table(
    "routers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("address", Text, nullable=False),
    Column("lease_until", Double, nullable=False),
)

queries = Table(
    "queries",
    metadata,
    Column("query_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text),
    Column("asked", LargeBinary, nullable=False),
    Column("tier", Text, nullable=False),
    Column("router", Text, nullable=False),
    Column("began", Double, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("ended", Double),
    Column("outcome", Text, nullable=False, server_default=""),
    Column("result", LargeBinary),
    # Those without a request id are as many as there are.
    Index("queries_request", "tenant", "request_id", unique=True),
    Index("queries_began", "began"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("query_id", Text, primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("tenant", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("router", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("round", LargeBinary, nullable=False),
    Column("worst_flops", Double, nullable=False),
    Column("worst_money", Double, nullable=False),
    Column("worst_tokens", BigInteger, nullable=False),
    # The windows that pay, in the order in which they are locked: [[budget, starts], ...].
    Column("held", Text, nullable=False),
    Column("candidates", LargeBinary),
)

IS_RESERVED = rounds.c.state == literal_column(f"'{RESERVED}'")
"""Not a parameter: else the index of few rows would not be used."""

Index("rounds_reserved", rounds.c.router, sqlite_where=IS_RESERVED, postgresql_where=IS_RESERVED)

charges = Table(
    "charges",
    metadata,
    Column("query_id", Text, primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    # Of `at`, in UTC, since the epoch.
    Column("day", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("tier", Text, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("unreconciled", Boolean, nullable=False),
    # The rest is as in isoflop.v1.Usage.
    Column("calls", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("aborted_tokens", BigInteger, nullable=False),
    Column("unseen_tokens", BigInteger, nullable=False),
    Column("rejected_tokens", BigInteger, nullable=False),
    Column("draft_tokens", BigInteger, nullable=False),
    Column("flops", Double, nullable=False),
    Column("flops_without_attention", Double, nullable=False),
    Column("aborted_flops", Double, nullable=False),
    Column("money", Double, nullable=False),
    Column("aborted_money", Double, nullable=False),
    Index("charges_at", "at"),
)

windows = Table(
    "windows",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("starts", Double, primary_key=True),
    Column("ends", Double, nullable=False),
    Column("spent_flops", Double, nullable=False, server_default="0"),
    Column("spent_money", Double, nullable=False, server_default="0"),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reserved_flops", Double, nullable=False, server_default="0"),
    Column("reserved_money", Double, nullable=False, server_default="0"),
    Column("reserved_tokens", BigInteger, nullable=False, server_default="0"),
    Index("windows_ends", "ends"),
)

prices = Table(
    "prices",
    metadata,
    Column("budget", Text, primary_key=True),
    Column("price", Double, nullable=False),
    Column("at", Double, nullable=False),
    Column("queries", Double, nullable=False),
    Column("watched", Double, nullable=False),
)
