"""Routers, queries, rounds, charges, windows and prices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """As the ledger began."""
    op.create_table(
        "routers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
    )
    op.create_table(
        "queries",
        sa.Column("query_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("asked", sa.LargeBinary, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("router", sa.Text, nullable=False),
        sa.Column("began", sa.Double, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("outcome", sa.Text, nullable=False, server_default=""),
        sa.Column("result", sa.LargeBinary),
    )
    op.create_index("queries_request", "queries", ["tenant", "request_id"], unique=True)
    op.create_index("queries_began", "queries", ["began"])
    op.create_table(
        "rounds",
        sa.Column("query_id", sa.Text, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("router", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("round", sa.LargeBinary, nullable=False),
        sa.Column("worst_flops", sa.Double, nullable=False),
        sa.Column("worst_money", sa.Double, nullable=False),
        sa.Column("worst_tokens", sa.BigInteger, nullable=False),
        sa.Column("held", sa.Text, nullable=False),
        sa.Column("candidates", sa.LargeBinary),
    )
    reserved = sa.text("state = 'reserved'")
    op.create_index("rounds_reserved", "rounds", ["router"], sqlite_where=reserved, postgresql_where=reserved)
    tokens = ("prompt", "cached", "completion", "aborted", "unseen", "rejected", "draft")
    measured = ("flops", "flops_without_attention", "aborted_flops", "money", "aborted_money")
    op.create_table(
        "charges",
        sa.Column("query_id", sa.Text, primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("stage", sa.Integer, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("unreconciled", sa.Boolean, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        *(sa.Column(f"{kind}_tokens", sa.BigInteger, nullable=False) for kind in tokens),
        *(sa.Column(name, sa.Double, nullable=False) for name in measured),
    )
    op.create_index("charges_at", "charges", ["at"])
    amounts = [
        sa.Column(f"{kind}_{unit}", of, nullable=False, server_default="0")
        for kind in ("spent", "reserved")
        for unit, of in (("flops", sa.Double), ("money", sa.Double), ("tokens", sa.BigInteger))
    ]
    op.create_table(
        "windows",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("starts", sa.Double, primary_key=True),
        sa.Column("ends", sa.Double, nullable=False),
        *amounts,
    )
    op.create_index("windows_ends", "windows", ["ends"])
    op.create_table(
        "prices",
        sa.Column("budget", sa.Text, primary_key=True),
        sa.Column("price", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("queries", sa.Double, nullable=False),
        sa.Column("watched", sa.Double, nullable=False),
    )
