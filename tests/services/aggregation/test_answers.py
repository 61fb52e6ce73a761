"""Answers are found where models write them, and only there; nothing raises, nothing is slow."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from isoflop.v1 import common_pb2 as common

from services.aggregation.answers import expression_key, extract

NUMBER, EXPRESSION = common.ANSWER_TYPE_NUMBER, common.ANSWER_TYPE_EXPRESSION
CHOICE, TEXT, CODE = common.ANSWER_TYPE_CHOICE, common.ANSWER_TYPE_TEXT, common.ANSWER_TYPE_CODE
KINDS = [common.ANSWER_TYPE_UNSPECIFIED, NUMBER, EXPRESSION, CHOICE, TEXT, CODE]

PIECES = st.lists(
    st.sampled_from(
        ["\\boxed{", "\\boxed", "}", "{", "$", "\\frac", "####", "answer: ", "Answer is ", "\n", " ", "42",
         "1/2", "-", ".", ",", "(B)", "B", "```", "\\text{", "^\\circ", "x", "=", "\\(", "\\)", "word ",
         "\\pi", "e9", "ß"]
    ),
    max_size=25,
).map("".join)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17*24=408\n408+13=421\nanswer: 421", "421"),
        ("17*24=408\n408+13=421\nanswer: 421\n\n", "421"),
        ("42", "42"),
        ("$42$", "42"),
        ('The answer is "42".', "42"),
        (r'\boxed{"42"}', "42"),
        ("“42”", "42"),
        (r"so it is \boxed{42}.", "42"),
        (r"\boxed{41} no, \boxed{42}", "42"),
        (r"\boxed{42}, or answer: 7", "42"),
        (r"\boxed{42} and then \boxed{", "42"),
        (r"\boxed{\text{42}}", "42"),
        (r"\boxed{x = 5}", "5"),
        (r"\boxed{15 cm}", "15"),
        (r"\fbox{3}", "3"),
        (r"\boxed 5", "5"),
        ("because\n#### 1,234", "1234"),
        ("**Answer:** 42", "42"),
        ("Answer:\n42", "42"),
        ("ANSWER: 3", "3"),
        (r"The answer is $\frac{1}{2}$ of it.", "0.5"),
        ("The final answer is: 42 apples.", "42"),
        ("The answer is 42, because 6*7=42", "42"),
        ("answer: 12+30=42", "42"),
        ("answer: 1\nno\nanswer: 2", "2"),
        ("the answer: 7. That answers the question.", "7"),
        ("First this.\nSo she has 42 apples left.", "42"),
        ("17*24=408", "408"),
        (r"\boxed{7\pi}", r"7\pi"),
        (r"\boxed{ 7 \pi }", r"7\pi"),
        (r"\boxed{2 pi}", "2 pi"),
        # No answer: cut short, not a number, or nothing.
        ("17*24=408\n408+13=4", None),
        (r"it is \boxed{42", None),
        ("answer:", None),
        (r"\boxed{x^2}", None),
        (r"\boxed{(3,4)}", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_numbers(text: str, number: str | None) -> None:
    assert extract(text, NUMBER) == number
    assert extract(text, common.ANSWER_TYPE_UNSPECIFIED) == number


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (r"thus \boxed{\frac{\sqrt{3}}{3}}.", r"\frac{\sqrt{3}}{3}"),
        (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
        ("#### x^2 + 1", "x^2 + 1"),
        ("The answer is $x^2+1$, as was shown.", "x^2+1"),
        ("answer: 3x - 2.", "3x - 2"),
        ("so\nwe get $y = 2x$ and $y=3x$", "y=3x"),
        (r"(3,\frac{\pi}{2})", r"(3,\frac{\pi}{2})"),
        (r"\boxed{42.0}", "42"),
        ("The answer is 42 apples.", "42"),
        ("we do not know what to say about it", None),
        ("", None),
    ],
)
def test_expressions(text: str, expression: str | None) -> None:
    assert extract(text, EXPRESSION) == expression


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\frac{\sqrt3}{2}", r"\dfrac{\sqrt{3}}{2}", True),
        (r"\left( 3, 4 \right)", "(3,4)", True),
        (r"\text{Evelyn}", "Evelyn", True),
        (r"\frac12", "0.5", True),
        (r"30^\circ", "30", True),
        ("x + 1", "x+1", True),
        ("3 5", "35", False),
        ("3  5", "35", False),
        ("3 5", "3  5", True),
        # A thin space is a space, but for thousands.
        (r"5\,2^{7/4}", "52^{7/4}", False),
        (r"\pi\,r", r"\pi r", True),
        (r"10\,000\pi", r"10000\pi", True),
        (r"1{,}000\pi", r"1000\pi", True),
        # Bases.
        ("52_8", r"52_{8}", True),
        ("52_8", r"(52)_8", True),
        ("52_8", r"52_{\text{eight}}", True),
        ("52_8", "52_9", False),
        ("52_8", "52", False),
        # A derivation is what it ends with; an equation is an equation.
        (r"\frac{1}{2} \cdot 1700 = 850", "850", True),
        (r"2(d_1+d_2) = 2 \cdot 20 = 40", "40", True),
        ("x+y=4", "4", False),
        ("x=1, y=2", "2", False),
        (r"1 \le x = 2 = y", "y", False),
        (r"\pi r", r"\pir", False),
        ("x+1", "1+x", False),
    ],
)
def test_keys_of_expressions(one: str, other: str, same: bool) -> None:
    assert (expression_key(one) == expression_key(other)) == same


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), (r"\boxed{B}", "B"), ("answer: (B)", "B"),
        (r"\boxed{\text{(B)}}", "B"), ("The answer is b.", "B"), ("the answer is B because", "B"),
        ("hm\n(C) 42", "C"), ("B or C", None),
        (r"\boxed{\text{D. 12}}", "D"), ("the correct answer is option (D).", "D"), ("Answer: C) 5", "C"),
        (r"\text{D}", "D"), ("A man walks", None), ("the answer is not known", None), ("", None),
    ],
)  # fmt: skip
def test_choices(text: str, letter: str | None) -> None:
    assert extract(text, CHOICE) == letter


def test_text_is_folded() -> None:
    assert extract("  The  QUICK\n\tbrown ", TEXT) == extract("the quick brown", TEXT) == "the quick brown"
    assert extract(" \n ", TEXT) is None


def test_code_is_the_last_block() -> None:
    text = "a\n```python\nx = 1\n```\nthen\n```py\n\nif x:  \n    y = 2 \n\n```\nend"
    assert extract(text, CODE) == "if x:\n    y = 2"
    assert extract("```\nx\n```\nand\n~~~\ny\n```\nz\n~~~", CODE) == "y\n```\nz"
    assert extract("a stop text took the end:\n```\nx = 1\n", CODE) == "x = 1"
    assert extract("x = 1", CODE) is None
    assert extract("```\n```", CODE) is None


@given(st.one_of(st.text(max_size=200), PIECES), st.sampled_from(KINDS))
@example("\\boxed", NUMBER)
@example("answer", NUMBER)
def test_any_text_is_read(text: str, kind: common.AnswerType.ValueType) -> None:
    answer = extract(text, kind)
    assert answer is None or answer.strip()


@given(st.one_of(st.text(max_size=200), PIECES), st.sampled_from([NUMBER, CHOICE, TEXT]))
def test_an_answer_answers_itself(text: str, kind: common.AnswerType.ValueType) -> None:
    answer = extract(text, kind)
    assert answer is None or extract(answer, kind) == answer


@given(PIECES)
def test_any_text_has_a_key(text: str) -> None:
    assert expression_key("  " + text) == expression_key(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_is_read(kind: common.AnswerType.ValueType) -> None:
    size = 1 << 20
    for piece in ["a", "9", "1,", "$", "\n", "`", "```\n", " ", "\\(", "answer: ", "answer", "####",
                  "\\boxed{", "\\boxed", "{", "\\text{", "^\\circ"]:  # fmt: skip
        text = piece * (size // len(piece))
        for whole in (text, "answer: " + text, "\\boxed{" + text):
            extract(whole, kind)  # what were more than linear would take longer than a test may


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3,5,7}", "3,5,7"),
        (r"\boxed{3, 5, 7}", "3, 5, 7"),
        (r"\boxed{-2,1}", "-2,1"),
        (r"so \boxed{10,20}", "10,20"),
        (r"\boxed{1,234}", "1234"),
        (r"\boxed{1,234,567 apples}", "1234567"),
        (r"\boxed{12 apples}", "12"),
    ],
)
def test_a_list_of_numbers_is_an_answer_and_thousands_are_a_number(text: str, answer: str) -> None:
    assert extract(text, EXPRESSION) == answer


def test_lists_that_are_spaced_otherwise_are_one_answer() -> None:
    assert expression_key("3,5,7") == expression_key("3, 5, 7")
