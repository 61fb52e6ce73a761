"""Expressions: what is written can be read, and keeps its value in every order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.expressions import (
    VALUE_LIMIT,
    canonical,
    draw,
    number,
    operations,
    parse,
    reworded,
    unknown,
    values,
    within_limits,
)


@given(st.integers(0, 10_000), st.integers(0, 12))
def test_drawn_expressions_read_back_and_stay_within_the_limit(seed: int, size: int) -> None:
    expression = draw(random.Random(seed), size)
    assert operations(expression) == size
    assert max(map(abs, values(expression))) <= VALUE_LIMIT
    assert within_limits(expression)
    again = parse(expression.text)
    assert (again.value, operations(again)) == (expression.value, size)


@given(st.integers(0, 10_000), st.integers(1, 10))
def test_another_order_has_the_same_value_and_canonical_form(seed: int, size: int) -> None:
    rng = random.Random(seed)
    expression = draw(rng, size)
    other = reworded(rng, expression)
    assert parse(other.text).value == expression.value
    assert canonical(other) == canonical(expression)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2+3*4", 14), ("(2+3)*4", 20), ("20-3-4", 13), ("20-(3-4)", 21), ("-5*12", -60), ("3--5", 8),
     ("84/7*2", 24), ("84/(7*2)", 6), ("97%7", 6), ("12%5*3", 6), ("-12/4", -3)],
)  # fmt: skip
def test_values(text: str, value: int) -> None:
    assert parse(text).value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1+",
        "+1",
        "(1",
        "1)",
        "1 + 2",
        "x",
        "7/2",
        "7/0",
        "-7%2",
        "7%0",
        "--1",
        "1" * 3000,
        "(" * 500 + "1",
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@given(st.text("0123456789+-*/%() x", max_size=60))
def test_reading_any_text_gives_an_expression_or_a_value_error(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError:
        return
    assert parse(expression.text).value == expression.value


def test_an_unknown_is_written_by_its_name() -> None:
    assert unknown("x", 5).text == "x"
    assert number(-5).text == "-5"
