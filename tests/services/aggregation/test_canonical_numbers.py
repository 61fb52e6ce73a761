"""Numbers written in many ways have one canonical form."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.aggregation.numbers import canonical_number


@pytest.mark.parametrize(
    ("texts", "canonical"),
    [
        (["42", "42.0", "$42$", "+42", "042", "42.", "{42}", "(42)", r"\text{42}", "42\\%", "4.2e1"], "42"),
        ([r"\frac12", r"\frac 12", "1/2", "0.5", ".5", "0.50", r"\dfrac{1}{2}", "2/4", "5e-1"], "0.5"),
        ([r"\frac13", r"\tfrac{1}{3}", r"\frac{1}3", "1 / 3", r"\frac{2}{6}"], "1/3"),
        (["-5", "−5", "- 5", r"\frac{-10}{2}", r"-\frac{10}{2}", "10/-2"], "-5"),
        (["1,000,000", "1e6", "10^6", r"10^{6}", r"1\times10^{6}", "1 000 000", "1{,}000{,}000"], "1000000"),
        ([r"11,\! 111,\! 111,\! 100"], "11111111100"),
        ([r"\$18.90", "$18.9", "£18.9"], "18.9"),
        ([r"15\mbox{ cm}^2", r"15 \text{ inches}", r"15^\circ", r"15^{\circ}", "15°", "15%"], "15"),
        ([r"2\frac12", "2 1/2", "5/2"], "2.5"),
        ([r"-2\frac12", "-2 1/2", "-5/2"], "-2.5"),
        (["0", "-0", "0.00", "0e999", "0/7"], "0"),
        (["1e999999999", "10e999999998", "0.1e1000000000"], "1e999999999"),
        (["-1e-999999999"], "-1e-999999999"),
        (["9" * 1500], "9" * 1500),
    ],
)
def test_one_number_is_one_text(texts: list[str], canonical: str) -> None:
    assert {text: canonical_number(text) for text in texts} == dict.fromkeys(texts, canonical)


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "-", "e5", "1e", "x", "2x", "3,5", "12,34", "(1,234", "1/0", "1/2/3", "1..2", "--1", "NaN",
     "inf", "1e" + "9" * 5000, "1e" + "9" * 20, "1/" + "7" * 600, "1e600/3", r"\frac{1}{0}",
     r"5\text{ and }6", "٤٢", "1_000", "9" * 5000],
)  # fmt: skip
def test_what_is_no_rational_number_is_none(text: str) -> None:
    assert canonical_number(text) is None


@given(st.fractions(max_denominator=10**6), st.integers(1, 9))
def test_ways_to_write_a_fraction_agree(value: Fraction, factor: int) -> None:
    p, q = value.numerator * factor, value.denominator * factor
    sign = "-" if p < 0 else ""
    forms = [
        f"{p}/{q}",
        rf"\frac{{{p}}}{{{q}}}",
        rf"$\dfrac{{{p}}}{{{q}}}$",
        rf"{sign}\frac{{{abs(p)}}}{{{q}}}",
        f"{sign}{abs(p):,}/{q:,}",
        f"{p}e3/{q}e3",
    ]
    whole, rest = divmod(abs(p), q)
    if whole:
        forms.append(rf"{sign}{whole}\frac{{{rest}}}{{{q}}}")
    assert len({canonical_number(form) for form in forms}) == 1


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_a_decimal_agrees_with_its_fraction(value: object) -> None:
    exact = Fraction(str(value))
    assert canonical_number(str(value)) == canonical_number(f"{exact.numerator}/{exact.denominator}")


@given(st.fractions(), st.fractions())
def test_different_numbers_differ(one: Fraction, other: Fraction) -> None:
    assert (canonical_number(str(one)) == canonical_number(str(other))) == (one == other)


@given(st.text(max_size=100))
def test_any_text_is_a_number_or_none(text: str) -> None:
    number = canonical_number(text)
    assert number is None or (number.strip() and canonical_number(number) == number)


@given(st.text(alphabet=r"0123456789.,-+eE/ \{}()$%^fractxbodme" + "π−", max_size=40))
def test_canonical_is_canonical(text: str) -> None:
    number = canonical_number(text)
    assert number is None or canonical_number(number) == number
