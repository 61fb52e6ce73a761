"""The commands that tell what was spent: `isoflop budget`, `isoflop bill` and `isoflop explain`."""

from __future__ import annotations

import argparse
from datetime import datetime

from isoflop import explained, statements
from isoflop.command import ANSWERED, READABLE, Run, can_encode, connect, show, width
from isoflop.request import BILL_KEYS
from isoflop.times import UTC, WAYS, parse_time


def budget(parser: argparse.ArgumentParser) -> Run:
    """show what budgets have left (all, or --tenant's), how long that lasts, what one more FLOP would buy"""

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            standing = client.budget(arguments.tenant or "", timeout=arguments.timeout)
        blocks = statements.BLOCKS if can_encode(statements.BLOCKS) else statements.ASCII
        now = datetime.now(UTC)
        return show(
            standing, lambda told, style: statements.budgets(told, style, now, blocks), arguments.json
        )

    return run


def bill(parser: argparse.ArgumentParser) -> Run:
    """show what queries have cost, by tenant, model, stage or day"""
    parser.add_argument(
        "--by",
        type=_keys,
        default=(),
        metavar="KEYS",
        help=f"a row for each: some of {', '.join(BILL_KEYS)}, with commas; one for all where none is given",
    )
    parser.add_argument(
        "--since",
        type=_time,
        metavar="TIME",
        help=f"what was charged from then on: {WAYS}; from the first that is kept where none is given",
    )
    parser.add_argument(
        "--until",
        type=_time,
        metavar="TIME",
        help="what was charged before then; until now where none is given",
    )
    parser.add_argument("--csv", action="store_true", help="print CSV for machines, in full precision")

    def run(arguments: argparse.Namespace) -> int:
        if arguments.csv and arguments.json:
            parser.error("--csv and --json exclude each other: give one")
        by, since, until = arguments.by, arguments.since, arguments.until
        with connect(arguments) as client:
            billed = together = client.bill(by, since, until, timeout=arguments.timeout)
            if by and not (arguments.csv or arguments.json):
                # A query may be in several rows, and counts once in the total.
                together = client.bill((), since, until, timeout=arguments.timeout)
        if arguments.csv:
            print(statements.csv(billed, by), end="")
            return ANSWERED
        queries = sum(row.queries for row in together.rows)
        return show(
            billed, lambda told, style: statements.bill(told, by, queries, style, width()), arguments.json
        )

    return run


def explain(parser: argparse.ArgumentParser) -> Run:
    """tell what was planned, bought and charged for a query, and why"""
    parser.add_argument("query_id", metavar="QUERY_ID", help="as solve prints it")

    def run(arguments: argparse.Namespace) -> int:
        with connect(arguments) as client:
            found = client.query(arguments.query_id, timeout=arguments.timeout)
        now = datetime.now(UTC)
        columns = min(width(), READABLE)
        return show(
            found,
            lambda told, style: explained.query(told, arguments.query_id, style, now, columns),
            arguments.json,
        )

    return run


def _keys(word: str) -> list[str]:
    keys = [key.strip() for key in word.split(",")]
    for key in keys:
        if key not in BILL_KEYS:
            raise argparse.ArgumentTypeError(f"{key!r} is none of {', '.join(BILL_KEYS)}")
        if keys.count(key) > 1:
            raise argparse.ArgumentTypeError(f"{key} is there twice: give it once")
    return keys


def _time(word: str) -> datetime:
    try:
        return parse_time(word, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
