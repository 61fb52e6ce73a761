"""Budgets as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.budget import PREFIXES, parse_budget
from isoflop.text import in_flops, si
from isoflop.v1.router_pb2 import Budget


@pytest.mark.parametrize(
    ("words", "budget"),
    [
        (["2e9"], Budget(flops=2e9)),
        (["2E9"], Budget(flops=2e9)),
        (["5G"], Budget(flops=5e9)),
        (["3T"], Budget(flops=3e12)),
        (["1P"], Budget(flops=1e15)),
        (["2E"], Budget(flops=2e18)),
        (["3 TFLOPs"], Budget(flops=3e12)),
        ([".5k"], Budget(flops=500)),
        (["1000tok"], Budget(tokens=1000)),
        (["1.5k tokens"], Budget(tokens=1500)),
        (["0.02usd"], Budget(money=0.02, currency="USD")),
        (["0.02 USD"], Budget(money=0.02, currency="USD")),
        (["2e9,1000tok", "0.02usd"], Budget(flops=2e9, tokens=1000, money=0.02, currency="USD")),
    ],
)
def test_budgets(words: list[str], budget: Budget) -> None:
    assert parse_budget(words) == budget


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([""], "is no budget: write FLOPs as 2e9"),
        (["much"], "is no budget"),
        (["5X"], "is no budget"),
        (["5m"], "is no budget"),
        (["5 apples"], "is no budget"),
        (["nan"], "is no budget"),
        (["inf"], "is no budget"),
        (["1e9,"], "is no budget"),
        (["0"], "not more than 0"),
        (["-5G"], "not more than 0"),
        (["-1e999999999"], "too large"),
        (["1e-999999999"], "not more than 0"),
        (["1e-400"], "not more than 0"),
        (["1e999"], "too large"),
        (["1e300E"], "too large"),
        (["1.5tok"], "no whole number of tokens"),
        (["9223372036854775808tok"], "too large"),
        (["1G,2G"], "second limit on flops"),
        (["1tok", "2tok"], "second limit on tokens"),
    ],
)
def test_what_is_no_budget(words: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_budget(words)


@given(
    st.floats(1e-6, 1e9),
    st.sampled_from(sorted(PREFIXES)),
    st.sampled_from([("", "flops"), ("flops", "flops"), ("usd", "money")]),
)
def test_a_written_number_is_read(number: float, prefix: str, unit: tuple[str, str]) -> None:
    budget = parse_budget([f"{number!r}{prefix}{unit[0]}"])
    assert getattr(budget, unit[1]) == pytest.approx(number * PREFIXES[prefix], rel=1e-12)
    assert {field.name for field, _ in budget.ListFields()} - {"currency"} == {unit[1]}


@given(st.integers(1, 2**63 - 1))
def test_tokens_are_exact(tokens: int) -> None:
    assert parse_budget([f"{tokens}tok"]).tokens == tokens


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_complaint(words: str) -> None:
    try:
        budget = parse_budget([words])
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
    else:
        assert budget.ListFields()


@given(st.floats(1, 9e20))
def test_what_is_printed_can_be_given_as_a_budget(flops: float) -> None:
    assert parse_budget([f"{si(flops)}FLOPs"]).flops == pytest.approx(flops, rel=0.006)


@pytest.mark.parametrize(
    ("flops", "words"), [(0.0, "0 FLOPs"), (12.0, "12 FLOPs"), (999.6, "1.00 kFLOPs"), (2.1e8, "210 MFLOPs")]
)
def test_flops_as_people_read_them(flops: float, words: str) -> None:
    assert in_flops(flops) == words
