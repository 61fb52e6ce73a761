"""Solutions, thoughts, drafts and critiques: each says what it should, by the judge."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.expressions import operations, parse
from training.problems import draw_kind, draw_problem, first_wrong, judge_solution
from training.solutions import (
    CHECK_PREFIX,
    NO,
    critique,
    draft,
    operation_text,
    ready_operations,
    slip,
    solution,
    thinking,
)

seeds = st.integers(0, 100_000)


def judged(answer: str, lines: list[str]) -> list[bool]:
    return [verdict.is_right for verdict in judge_solution(answer, lines)]


@given(seeds, st.integers(1, 10))
def test_every_line_of_a_solution_is_right(seed: int, size: int) -> None:
    rng = random.Random(seed)
    problem = draw_problem(rng, draw_kind(rng), size)
    lines = [line.text for line in solution(rng, problem.expression, restate=problem.restates)]
    assert len(lines) == size + 2  # the expression, an operation a line, the answer
    assert all(judged(problem.answer, lines))
    assert lines[-1] == f"answer: {problem.answer}"


@given(seeds, st.integers(1, 8))
def test_thinking_is_wrong_just_where_it_is_not_taught(seed: int, size: int) -> None:
    rng = random.Random(seed)
    problem = draw_problem(rng, draw_kind(rng), size)
    lines = thinking(rng, problem.expression, restate=problem.restates, slips=0.5)
    assert judged(problem.answer, [line.text for line in lines]) == [line.is_target for line in lines]
    for line, after in pairwise(lines):
        if not line.is_target:
            assert after.text.startswith(CHECK_PREFIX)
            assert after.text.endswith(NO)


@given(seeds, st.integers(1, 8))
def test_a_draft_goes_wrong_where_its_critique_says(seed: int, size: int) -> None:
    rng = random.Random(seed)
    problem = draw_problem(rng, draw_kind(rng), size)
    lines, wrong = draft(rng, problem.expression, restate=problem.restates)
    found = first_wrong(judge_solution(problem.answer, lines))
    assert (None if found is None else found + 1) == wrong
    verdicts = critique(lines, wrong)
    assert len(verdicts) == (wrong or len(lines))
    assert [verdict.endswith("wrong") for verdict in verdicts].count(True) == (wrong is not None)


def test_drafts_are_wrong_in_every_way_and_right_as_often_as_said() -> None:
    rng = random.Random(5)
    errors: list[str] = []
    for _ in range(1500):
        problem = draw_problem(rng, draw_kind(rng), rng.randint(1, 8))
        lines, wrong = draft(rng, problem.expression, restate=problem.restates)
        errors.append("" if wrong is None else judge_solution(problem.answer, lines)[wrong - 1].error)
    assert set(errors) == {"", "statement", "arithmetic", "copy"}
    assert 0.38 < errors.count("") / len(errors) < 0.55


def test_products_are_split_by_either_factor() -> None:
    rng = random.Random(1)
    written = {operation_text(rng, "*", 17, 24) for _ in range(50)}
    assert written == {"17*24=340+68=408", "17*24=240+168=408"}
    assert operation_text(rng, "*", 7, 8) == "7*8=56"


@pytest.mark.parametrize(
    ("operator", "left", "right", "text"),
    [("/", 408, 8, "408/8=50+1=51"), ("/", 56, 8, "56/8=7"), ("%", 97, 7, "97%7=97-91=6"),
     ("%", 5, 7, "5%7=5"), ("+", 17, -4, "17+-4=13"), ("-", 4, 9, "4-9=-5"), ("/", -240, 8, "-240/8=-30")],
)  # fmt: skip
def test_operations_are_written_with_their_terms(operator: str, left: int, right: int, text: str) -> None:
    assert operation_text(random.Random(0), operator, left, right) == text


def test_ready_operations_keep_the_parentheses_that_remain() -> None:
    first, second = ready_operations(parse("3*(4-9)+(6/2-1)*5"))
    assert (first.rest(-5), second.rest(3)) == ("3*-5+(6/2-1)*5", "3*(4-9)+(3-1)*5")


@given(seeds, st.integers(-999, 999))
def test_a_slip_is_another_number(seed: int, value: int) -> None:
    assert slip(random.Random(seed), value) != value


def test_what_remains_has_one_operation_fewer() -> None:
    for ready in ready_operations(parse("(1+2)*(3+4)-8/2")):
        assert operations(parse(ready.rest(ready.result))) == 4
