"""Budgets and bills of many queries, as text for people and as CSV for machines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from csv import writer
from datetime import datetime, timedelta
from math import fsum
from typing import Literal

from isoflop.budget import PREFIXES
from isoflop.text import Style, line, money, si, table
from isoflop.times import UTC, told
from isoflop.usage import NUMBERS, summed
from isoflop.v1.router_pb2 import BillRow, BudgetStanding, GetBillResponse, GetBudgetResponse

BLOCKS, ASCII = "█▒░", "#+."
"""What a bar is made of: spent, reserved, left."""

WIDTH = 12
"""Columns of a bar."""

GREEN, YELLOW, RED = 32, 33, 31
"""Of bars: lasts to its end at this pace, does not, is used up."""

Unit = Literal["flops", "money", "tokens"]

UNITS: dict[str, Unit] = {"FLOPs": "flops", "money": "money", "tokens": "tokens"}
"""Of budgets, by the names that people read."""

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "aborted_tokens")
"""Those that a bill tells, in the order of its columns."""

UNRECONCILED = (
    "unreconciled: charged at the most that it may have cost, as the router that would know has died"
)


def budgets(response: GetBudgetResponse, style: Style, now: datetime, blocks: str) -> str:
    """Each budget in its window: what is spent, reserved and left of each unit, and how long that lasts.

    `blocks`: what bars are made of, BLOCKS or ASCII.
    """
    if not response.budgets:
        return "there is no budget"
    each = [_standing(standing, response.currency, style, now, blocks) for standing in response.budgets]
    return "\n\n".join("\n".join(lines) for lines in each)


def _standing(standing: BudgetStanding, currency: str, style: Style, now: datetime, blocks: str) -> list[str]:
    starts, ends = standing.starts.ToDatetime(UTC), standing.ends.ToDatetime(UTC)
    now = min(max(now, starts), ends)
    passed = (now - starts) / (ends - starts)
    window = f"{told(starts)} to {told(ends)} UTC, {passed:.0%} of it has passed"
    rows, bars = [], []
    for name, unit in UNITS.items():
        spent, reserved, limit = (
            getattr(amount, unit) for amount in (standing.spent, standing.reserved, standing.limit)
        )

        def written(amount: float, unit: Unit = unit) -> str:
            return money(amount, currency) if unit == "money" else si(amount)

        cells = (name, written(spent), written(reserved))
        if standing.limit.HasField(unit):
            words, colour = _lasts(spent, limit, starts, ends, now)
            bar = style.tinted(_bar(spent, reserved, limit, blocks), colour)
            rows.append((*cells, written(max(0, limit - spent - reserved)), written(limit)))
            bars.append(f"  {bar} {spent / limit if limit else 1.0:4.0%}  {words}")
        else:
            rows.append((*cells, "", "no limit"))
            bars.append("")
    header, *body = table("lrrrr", ("", "spent", "reserved", "left", "limit"), rows, style)
    pace = style.faint(f"{'':{WIDTH + 9}}at this pace") if any(bars) else ""
    lines = [f"{style.strong(line(standing.name))}  {window}", f"{header}{pace}"]
    lines += [f"{row}{bar}".rstrip() for row, bar in zip(body, bars, strict=True)]
    if standing.HasField("shadow_price"):
        lines.append(f"{style.faint('price')}   {price(standing.shadow_price)}")
    return lines


def price(right_answers: float) -> str:
    """A shadow price, in right answers for a FLOP, in words with numbers that can be read."""
    prefix = next((prefix for prefix in "kMGTP" if right_answers * PREFIXES[prefix] >= 1), "P")
    return f"one more {prefix}FLOP would buy {right_answers * PREFIXES[prefix]:.3g} right answers"


def _bar(spent: float, reserved: float, limit: float, blocks: str) -> str:
    """What is not nothing has a column at least, as far as there is room."""
    done = _columns(spent, limit)
    runs = min(_columns(reserved, limit), WIDTH - done)
    return blocks[0] * done + blocks[1] * runs + blocks[2] * (WIDTH - done - runs)


def _columns(part: float, limit: float) -> int:
    if part <= 0:
        return 0
    return min(WIDTH, max(1, round(WIDTH * part / limit))) if limit else WIDTH


def _lasts(spent: float, limit: float, starts: datetime, ends: datetime, now: datetime) -> tuple[str, int]:
    """How long the limit lasts at the window's mean pace so far, and the colour of that."""
    if spent >= limit:
        return f"used up until {told(ends)}", RED
    elapsed, window = now - starts, ends - starts
    if not spent or not elapsed:
        return "", GREEN
    share = spent / limit
    if share * (window / elapsed) <= 1:
        return f"{share * (window / elapsed):.0%} by its end", GREEN
    until = starts + timedelta(seconds=elapsed.total_seconds() / share)
    return f"used up at {told(until.replace(second=0, microsecond=0))}", YELLOW


def bill(response: GetBillResponse, by: Sequence[str], queries: int, style: Style, width: float) -> str:
    """A row for each, and the total line, for which it is told how many `queries` there are in all.

    The dearest first; by day, if that is among the keys. Where a row does not fit in `width` columns, all
    kinds of tokens are one column.
    """
    rows = _ordered(response, by)
    if not rows:
        return "nothing was charged"
    lines = _bill(rows, by, queries, response.currency, style, split=True)
    if max(map(len, _bill(rows, by, queries, response.currency, Style(), split=True))) > width:
        lines = _bill(rows, by, queries, response.currency, style, split=False)
    if any(row.unreconciled_flops for row in rows):
        lines += ["", style.faint(UNRECONCILED)]
    return "\n".join(lines)


def _bill(
    rows: Sequence[BillRow], by: Sequence[str], queries: int, currency: str, style: Style, *, split: bool
) -> list[str]:
    lost = any(row.unreconciled_flops for row in rows)
    header = [*by, "queries", *(("prompt", "cached", "completion", "aborted") if split else ("tokens",))]
    header += ["FLOPs", "of it aborted" if split else "aborted", *(["unreconciled"] if lost else []), "money"]

    def cells(row: BillRow) -> list[str]:
        usage = row.usage
        kinds = [getattr(usage, kind) for kind in TOKENS]
        tokens = kinds if split else [sum(kinds) - usage.cached_tokens]
        flops = [usage.flops, usage.aborted_flops, *([row.unreconciled_flops] if lost else [])]
        numbers = [f"{count:,}" for count in (row.queries, *tokens)] + [si(each) for each in flops]
        return [*map(line, row.keys), *numbers, money(usage.money, currency)]

    made = [cells(row) for row in rows]
    if by:
        made.append(cells(_total(rows, by, queries)))
    lines = table("l" * len(by) + "r" * (len(header) - len(by)), header, made, style)
    return [*lines[:-1], style.strong(lines[-1])]


def _ordered(response: GetBillResponse, by: Sequence[str]) -> list[BillRow]:
    if "day" not in by:
        return list(response.rows)
    day = list(by).index("day")
    return sorted(response.rows, key=lambda row: row.keys[day])


def _total(rows: Sequence[BillRow], by: Sequence[str], queries: int) -> BillRow:
    return BillRow(
        keys=["total", *[""] * (len(by) - 1)],
        queries=queries,
        usage=summed([row.usage for row in rows]),
        unreconciled_flops=fsum(row.unreconciled_flops for row in rows),
    )


def csv(response: GetBillResponse, by: Sequence[str]) -> str:
    """The rows as RFC 4180 has it, under a header, each number in full: without a total."""
    text = io.StringIO()
    rows = writer(text)
    rows.writerow([*by, "queries", *NUMBERS, "unreconciled_flops", "currency"])
    for row in _ordered(response, by):
        values = [getattr(row.usage, number) for number in NUMBERS]
        rows.writerow([*row.keys, row.queries, *values, row.unreconciled_flops, response.currency])
    return text.getvalue()
