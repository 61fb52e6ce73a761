"""Problems, solutions and splits: what the models are taught is right."""

from __future__ import annotations

import random

import pytest

from training.problems import (
    GROUPS,
    TRAINED_OPERATIONS,
    VALUE_LIMIT,
    Expression,
    draw_expression,
    extract_answer,
    judge_solution,
    judge_step,
    operation_text,
    operations,
    parse,
    solution_steps,
    solution_text,
    split_of,
    training_batch,
)
from training.splits import read_rows

SEEDS_OF_MODELS = (101, 102, 103)


def values(expression: Expression) -> list[int]:
    return [expression.value, *(v for child in expression.operands for v in values(child))]


def test_solution_is_written_as_documented() -> None:
    assert solution_text(parse("17*24+13")) == "17*24=340+68=408;408+13\n408+13=421\nanswer: 421"
    assert solution_steps(parse("3-(4-9)*12")) == [
        "4-9=-5;3--5*12",
        "-5*12=-60;3--60",
        "3--60=63",
    ]


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        (7, 8, "7*8=56"),
        (17, 20, "17*20=340"),
        (17, 24, "17*24=340+68=408"),
        (7, 24, "7*24=168"),
        (-17, 24, "-17*24=-340-68=-408"),
        (345, 7, "345*7=2100+315=2415"),
        (2467, 4, "2467*4=9600+268=9868"),
        (45, 123, "45*123=4500+920+115=5420+115=5535"),
        (0, 123, "0*123=0"),
    ],
)
def test_products_are_written_by_partial_products(left: int, right: int, text: str) -> None:
    assert operation_text("*", left, right) == text


def test_every_training_step_is_arithmetically_right() -> None:
    for problem in training_batch(seed=7, step=0, count=3000):
        verdicts = judge_solution(problem.text, solution_text(problem))
        assert len(verdicts) == operations(problem) + 1
        assert all(verdicts), solution_text(problem)
        # An independent judge of the values: Python itself.
        assert eval(problem.text) == problem.value
        assert max(map(abs, values(problem))) <= VALUE_LIMIT


@pytest.mark.parametrize(
    ("before", "line", "verdict"),
    [
        ("17*24+13", "17*24=340+68=408;408+13", True),
        ("408+13", "408+13=421", True),
        ("17*24+13", "17*24=340+68=407;407+13", False),  # wrong sum
        ("17*24+13", "17*24=340+67=407;407+13", False),  # wrong product
        ("17*24+13", "17*24=340+68=408;408+31", False),  # wrong copy
        ("17*24+13", "24+13=37;17*37", False),  # wrong order
        ("17*24+13", "17*24+13=421", False),  # two operations at once
        ("17*24+13", "17*24", False),
        ("17*24+13", "", False),
    ],
)
def test_a_step_is_judged_alone(before: str, line: str, verdict: bool) -> None:
    assert judge_step(before, line) is verdict


def test_answer_is_the_last_answer_line() -> None:
    assert extract_answer("1+1=2\nanswer: 2") == "2"
    assert extract_answer("answer: 3\nanswer: -4") == "-4"
    assert extract_answer("1+1=2") is None
    assert extract_answer("answer:") is None


def test_parsing_inverts_writing() -> None:
    rng = random.Random(3)
    for size in range(1, 12):
        expression = draw_expression(rng, size)
        assert parse(expression.text) == expression
    for text in ("", "1+", "(1", "1)", "1 + 1", "2/1", "x"):
        with pytest.raises(ValueError, match=r"not an expression|unbalanced"):
            parse(text)


def test_no_evaluated_problem_is_in_the_training_stream() -> None:
    evaluated = {row["prompt"] for name in ("heldout.jsonl", "calibration.jsonl") for row in read_rows(name)}
    for seed in SEEDS_OF_MODELS:
        # Longer than what any of the models sees of its stream in this range of steps.
        for step in range(1000):
            for problem in training_batch(seed, step, 32):
                assert problem.text not in evaluated
                assert split_of(problem.text) == "train"


def test_problem_files_are_balanced_right_and_apart() -> None:
    heldout, calibration = read_rows("heldout.jsonl"), read_rows("calibration.jsonl")
    for rows, split in ((heldout, "heldout"), (calibration, "calibration")):
        assert len(rows) >= 1000
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert len({row["query_id"] for row in rows}) == len(rows)
        sizes = [sum(row["group"] == group for row in rows) for group in GROUPS]
        assert len(set(sizes)) == 1
        for row in rows:
            problem = parse(row["prompt"])
            assert split_of(row["prompt"]) == split
            assert row["answer"] == str(problem.value)
            assert row["type"] == "number"
            assert row["group"] == operations(problem)


def test_demo_is_a_part_of_heldout_with_every_group() -> None:
    demo, heldout = read_rows("demo.jsonl"), read_rows("heldout.jsonl")
    assert len(demo) == 30
    assert all(row in heldout for row in demo)
    assert {row["group"] for row in demo} == set(GROUPS)
    assert max(GROUPS) > max(TRAINED_OPERATIONS)
