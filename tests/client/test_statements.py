"""Budgets and bills as text and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from isoflop import statements
from isoflop.statements import ASCII, BLOCKS, WIDTH
from isoflop.text import Style
from isoflop.usage import NUMBERS, summed
from isoflop.v1.common_pb2 import Usage
from isoflop.v1.router_pb2 import Amount, BillRow, BudgetStanding, GetBillResponse, GetBudgetResponse
from ran import words
from scripted_answers import BILL, STANDING

PLAIN = Style()
MID_NOVEMBER = datetime(2026, 11, 16, tzinfo=UTC)
KEYS = ("tenant", "model", "day")

amounts = st.floats(0, 1e18)


def budgets(response: GetBudgetResponse, now: datetime = MID_NOVEMBER, blocks: str = BLOCKS) -> list[str]:
    return statements.budgets(response, PLAIN, now, blocks).splitlines()


def a_day(spent: float, *, limit: float = 1e12, reserved: float = 0.0) -> GetBudgetResponse:
    """A budget of one day's FLOPs."""
    standing = BudgetStanding(
        name="acme/day",
        starts=Timestamp(seconds=1795824000),  # 2026-11-28
        ends=Timestamp(seconds=1795910400),
        limit=Amount(flops=limit),
        spent=Amount(flops=spent),
        reserved=Amount(flops=reserved),
    )
    return GetBudgetResponse(budgets=[standing])


def pace(response: GetBudgetResponse, hours: float) -> str:
    """What is said of the pace so long after the day's beginning."""
    line = budgets(response, datetime(2026, 11, 28, tzinfo=UTC) + timedelta(hours=hours))[2]
    return line.partition("%  ")[2]


# Budgets.


def test_a_budget_tells_its_window_each_unit_and_what_one_more_flop_would_buy() -> None:
    lines = [words(line) for line in budgets(STANDING)]
    assert lines == [
        "acme/month 2026-11-01 to 2026-12-01 UTC, 50% of it has passed",
        "spent reserved left limit at this pace",
        "FLOPs 1.25 P 20.0 T 3.73 P 5.00 P ███▒░░░░░░░░ 25% 50% by its end",
        "money 412.50 USD 0.5 USD 1,587.00 USD 2,000.00 USD ██▒░░░░░░░░░ 21% 41% by its end",
        "tokens 123 M 8.19 k no limit",
        "price one more TFLOP would buy 180 right answers",
        "",
        "all 2026-11-01 to 2026-12-01 UTC, 50% of it has passed",
        "spent reserved left limit at this pace",
        "FLOPs 0 0 no limit",
        "money 0 USD 0 USD no limit",
        "tokens 150 M 0 0 150 M ████████████ 100% used up until 2026-12-01",
    ]


def test_columns_are_aligned_and_fit_a_terminal_of_a_hundred() -> None:
    lines = budgets(STANDING)
    assert max(map(len, lines)) <= 100
    assert lines[1].index("limit") + len("limit") == lines[2].index("5.00 P") + len("5.00 P")
    assert not any(line != line.rstrip() for line in lines)


def test_bars_in_ascii() -> None:
    text = "\n".join(budgets(STANDING, blocks=ASCII))
    assert "###+........" in text
    assert text.isascii()


@given(amounts, amounts, st.floats(1, 1e18))
def test_a_bar_is_always_as_wide(spent: float, reserved: float, limit: float) -> None:
    bar = re.search(r"[#+.]{4,}", budgets(a_day(spent, limit=limit, reserved=reserved), blocks=ASCII)[2])
    assert bar
    assert len(bar[0]) == WIDTH
    assert bool(spent) == ("#" in bar[0])
    assert ("+" in bar[0]) <= bool(reserved)


@pytest.mark.parametrize(
    ("spent", "hours", "said"),
    [
        (0.0, 12, ""),
        (2e11, 0, ""),
        (2e11, 12, "40% by its end"),
        (5e11, 12, "100% by its end"),
        (8e11, 12, "used up at 2026-11-28 15:00"),
        (1e12, 12, "used up until 2026-11-29"),
        (1.5e12, 12, "used up until 2026-11-29"),
        # By another clock than the router's.
        (5e11, 30, "50% by its end"),
        (5e11, -1, ""),
    ],
)
def test_how_long_a_budget_lasts_at_its_pace(spent: float, hours: float, said: str) -> None:
    assert pace(a_day(spent), hours) == said


def test_what_is_reserved_is_not_left() -> None:
    assert words(budgets(a_day(4e11, reserved=5e11))[2]).startswith("FLOPs 400 G 500 G 100 G 1.00 T ")
    assert words(budgets(a_day(4e11, reserved=7e11))[2]).startswith("FLOPs 400 G 700 G 0 1.00 T ")


@pytest.mark.parametrize(
    ("price", "said"),
    [
        (1.8e-10, "one more TFLOP would buy 180 right answers"),
        (1e-9, "one more GFLOP would buy 1 right answers"),
        (2.5e-17, "one more PFLOP would buy 0.025 right answers"),
    ],
)
def test_a_price_has_numbers_that_can_be_read(price: float, said: str) -> None:
    assert statements.price(price) == said


def test_no_price_where_there_is_none() -> None:
    assert not any("would buy" in line for line in budgets(a_day(1e11)))


def test_no_budget() -> None:
    assert budgets(GetBudgetResponse()) == ["there is no budget"]


def test_colours_say_what_lasts() -> None:
    def coloured(spent: float) -> str:
        now = datetime(2026, 11, 28, 12, tzinfo=UTC)
        return statements.budgets(a_day(spent), Style(colour=True), now, BLOCKS)

    assert "\x1b[32m██" in coloured(2e11)
    assert "\x1b[33m██" in coloured(8e11)
    assert "\x1b[31m██" in coloured(1e12)


def test_a_name_cannot_steer_the_terminal() -> None:
    response = a_day(1e11)
    response.budgets[0].name = "acme\x1b[2J"
    assert budgets(response)[0].startswith("acme\\x1b[2J  2026-11-28 to 2026-11-29 UTC")
    bill = GetBillResponse(rows=[BillRow(keys=["a\x1b[2J"], queries=1)])
    assert "\x1b" not in statements.bill(bill, ["tenant"], 1, PLAIN, math.inf)


# Bills.


def billed(
    response: GetBillResponse = BILL, by: tuple[str, ...] = KEYS, queries: int = 1215, width: float = math.inf
) -> list[str]:
    return [words(line) for line in statements.bill(response, by, queries, PLAIN, width).splitlines()]


def test_a_bill_by_day_is_in_the_order_of_days_and_has_a_total() -> None:
    assert billed() == [
        "tenant model day queries prompt cached completion aborted FLOPs of it aborted unreconciled money",
        "globex, inc abacus-s 2026-11-01 30 300 0 4,000 0 0.3 0 0 1e-05 USD",
        "acme abacus-l 2026-11-02 1,200 120,000 80,000 1,234,567 3,210 4.20 T 15.0 G 2.50 G 12.25 USD",
        "total 1,215 120,300 80,000 1,238,567 3,210 4.20 T 15.0 G 2.50 G 12.25 USD",
        "",
        statements.UNRECONCILED,
    ]


def test_a_bill_by_anything_else_is_as_the_router_has_it() -> None:
    rows = billed(by=("tenant", "model", "stage"))[1:3]
    assert [row.split()[0] for row in rows] == ["acme", "globex,"]


def test_what_is_dearest_on_a_day_comes_first() -> None:
    rows = [
        BillRow(keys=keys)
        for keys in (["2026-11-02", "b"], ["2026-11-01", "c"], ["2026-11-02", "a"], ["2026-11-01", "a"])
    ]
    lines = billed(GetBillResponse(rows=rows), ("day", "tenant"))
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["2026-11-01", "c"],
        ["2026-11-01", "a"],
        ["2026-11-02", "b"],
        ["2026-11-02", "a"],
    ]


def test_a_narrow_bill_has_one_column_of_tokens() -> None:
    wide = statements.bill(BILL, KEYS, 1215, PLAIN, math.inf).splitlines()
    narrow = statements.bill(BILL, KEYS, 1215, PLAIN, len(wide[0]) - 1).splitlines()
    assert statements.bill(BILL, KEYS, 1215, PLAIN, len(wide[0])).splitlines() == wide
    assert len(narrow[0]) < len(wide[0])
    assert words(narrow[0]) == "tenant model day queries tokens FLOPs aborted unreconciled money"
    # Cached tokens are not computed.
    assert words(narrow[3]) == "total 1,215 1,362,077 4.20 T 15.0 G 2.50 G 12.25 USD"
    # Colours take no columns.
    coloured = statements.bill(BILL, KEYS, 1215, Style(colour=True), len(wide[0]))
    assert re.sub(r"\x1b\[\d*m", "", coloured).splitlines() == wide


def test_a_bill_of_all_together_is_its_own_total() -> None:
    response = GetBillResponse(rows=[BillRow(queries=7, usage=Usage(flops=2e9, money=0.5))], currency="EUR")
    assert billed(response, (), 7) == [
        "queries prompt cached completion aborted FLOPs of it aborted money",
        "7 0 0 0 0 2.00 G 0 0.5 EUR",
    ]


def test_nothing_was_charged() -> None:
    assert billed(GetBillResponse(currency="USD")) == ["nothing was charged"]


# CSV.


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_every_number_in_full() -> None:
    text = statements.csv(BILL, KEYS)
    assert text.count("\r\n") == text.count("\n") == 3
    assert '\r\n"globex, inc",abacus-s,' in text
    first, second = read(text)
    assert [first[key] for key in KEYS] == ["globex, inc", "abacus-s", "2026-11-01"]
    assert (first["queries"], first["flops"], first["money"]) == ("30", "0.30000000000000004", "1e-05")
    assert {second[name] for name in ("currency",)} == {"USD"}
    usage = BILL.rows[0].usage
    for name in NUMBERS:
        assert float(second[name]) == getattr(usage, name)
    assert float(second["unreconciled_flops"]) == 2.5e9


def test_csv_of_nothing_is_its_header() -> None:
    assert read(statements.csv(GetBillResponse(), ["tenant"])) == []
    assert statements.csv(GetBillResponse(), ["tenant"]).startswith("tenant,queries,calls,")


usages = st.builds(
    Usage,
    calls=st.integers(0, 2**40),
    prompt_tokens=st.integers(0, 2**40),
    aborted_tokens=st.integers(0, 2**40),
    flops=amounts,
    money=amounts,
)


@given(
    st.lists(
        st.builds(
            BillRow,
            keys=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))).map(
                lambda keys: [*keys, "", ""][:2]
            ),
            queries=st.integers(0, 2**62),
            usage=usages,
        ),
        max_size=5,
    )
)
def test_csv_is_read_as_it_was_written(rows: list[BillRow]) -> None:
    found = read(statements.csv(GetBillResponse(rows=rows, currency="USD"), ["tenant", "model"]))
    assert [(row["tenant"], row["model"]) for row in found] == [tuple(row.keys) for row in rows]
    assert [int(row["queries"]) for row in found] == [row.queries for row in rows]
    assert [float(row["flops"]) for row in found] == [row.usage.flops for row in rows]
    assert [int(row["aborted_tokens"]) for row in found] == [row.usage.aborted_tokens for row in rows]


@given(st.lists(usages, max_size=5))
def test_sums(each: list[Usage]) -> None:
    total = summed(each)
    assert total.calls == sum(usage.calls for usage in each)
    assert total.aborted_tokens == sum(usage.aborted_tokens for usage in each)
    assert total.flops == math.fsum(usage.flops for usage in each)
    assert total.money == math.fsum(usage.money for usage in each)
