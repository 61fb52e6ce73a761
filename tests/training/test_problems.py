"""Problems, splits, the training stream and the judge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.expressions import operations, parse
from training.problems import (
    GROUPS,
    TRAINED_OPERATIONS,
    draw_kind,
    draw_problem,
    extract_answer,
    first_wrong,
    judge_solution,
    prompt_text,
    split_of,
    training_batch,
)
from training.solutions import solution
from training.splits import PROBLEMS_PER_GROUP, read_rows

SEEDS_OF_MODELS = (201, 202, 203)


def test_the_stream_is_the_same_each_time_and_differs_by_seed_and_step() -> None:
    assert training_batch(1, 2, 8) == training_batch(1, 2, 8)
    assert len({str(training_batch(seed, step, 8)) for seed in (1, 2) for step in (0, 1)}) == 4


def test_no_heldout_or_calibration_expression_is_trained_in_any_wording() -> None:
    kept = {row["expression"] for name in ("heldout", "calibration") for row in read_rows(f"{name}.jsonl")}
    for seed in SEEDS_OF_MODELS:
        for step in range(40):
            for example in training_batch(seed, step, 32):
                if example.mode == "steps":
                    stated = parse(example.lines[0].text)
                    assert split_of(stated) == "train"
                    assert stated.text not in kept


def test_all_modes_and_sizes_are_trained() -> None:
    batch = training_batch(7, 0, 400)
    assert {example.mode for example in batch} == {"steps", "think", "critique", "revise"}
    sizes = {operations(parse(example.lines[0].text)) for example in batch if example.mode == "steps"}
    assert sizes == set(TRAINED_OPERATIONS)
    assert all(any(line.is_target for line in example.lines) for example in batch)


@pytest.mark.parametrize("name", ["heldout", "calibration"])
def test_files_of_problems(name: str) -> None:
    rows = read_rows(f"{name}.jsonl")
    assert len({row["query_id"] for row in rows}) == len(rows) == PROBLEMS_PER_GROUP[name] * len(GROUPS)
    for row in rows:
        expression = parse(row["expression"])
        assert str(expression.value) == row["answer"]
        assert operations(expression) == row["group"]
        assert split_of(expression) == name
    assert {row["kind"] for row in rows} == {"story", "expression", "equation"}


def test_some_groups_are_beyond_what_is_trained() -> None:
    assert max(GROUPS) > max(TRAINED_OPERATIONS)


def test_prompts_end_with_the_mode() -> None:
    assert prompt_text("1+1") == "1+1\nsteps:\n"
    assert prompt_text("1+1", "think") == "1+1\nthink:\n"


def test_answers_are_the_last_that_is_given() -> None:
    assert extract_answer("1+1=2\nanswer: 2") == "2"
    assert extract_answer("answer: 3\nanswer: -4") == "-4"
    assert extract_answer("1+1=2") is None
    assert extract_answer("answer:") is None


RIGHT = ["17*24+13", "17*24=340+68=408;408+13", "408+13=421", "answer: 421"]


@pytest.mark.parametrize(
    ("line", "wrong", "error"),
    [
        (0, "17*24-13", "statement"),
        (0, "17*24+13/2", "statement"),
        (0, "seventeen", "format"),
        (1, "17*24=340+68=418;418+13", "arithmetic"),
        (1, "17*24=340+68=408;408+31", "copy"),
        (1, "17*24=340+68=408;421", "copy"),
        (1, "17*24=340/7=408;408+13", "arithmetic"),
        (1, "nonsense", "format"),
        (2, "408+13=431", "arithmetic"),
        (3, "answer: 412", "answer"),
    ],
)
def test_mistakes_are_found_and_named(line: int, wrong: str, error: str) -> None:
    assert first_wrong(judge_solution("421", RIGHT)) is None
    verdicts = judge_solution("421", [*RIGHT[:line], wrong, *RIGHT[line + 1 :]])
    assert first_wrong(verdicts) == line
    assert verdicts[line].error == error


@pytest.mark.parametrize(
    ("lines", "verdicts"),
    [
        (["2+3", "check: 3+2 ok", "2+3=5", "check: 5-3=2 ok", "answer: 5"], [True] * 5),
        (["2+3", "2+3=6", "check: 6-3=3 no", "2+3=5", "answer: 5"], [True, False, True, True, True]),
        (["2+3", "2+3=6", "check: 6-3=3 ok", "answer: 6"], [True, False, False, True]),
        (["2*3", "check: 2+3 no", "2+3", "2+3=5", "answer: 5"], [False, True, True, True, True]),
        (["2+3", "2+3=5", "check: 5-3=2", "answer: 5"], [True, True, False, True]),
    ],
)
def test_checks_are_judged_and_undo(lines: list[str], verdicts: list[bool]) -> None:
    assert [verdict.is_right for verdict in judge_solution("5", lines)] == verdicts


@given(st.lists(st.text(max_size=30), max_size=8))
def test_the_judge_takes_any_lines(lines: list[str]) -> None:
    assert len(judge_solution("5", lines)) == len(lines)


@given(st.integers(0, 10_000))
def test_another_answer_makes_the_statement_wrong(seed: int) -> None:
    rng = random.Random(seed)
    problem = draw_problem(rng, draw_kind(rng), 3)
    lines = [line.text for line in solution(rng, problem.expression, restate=False)]
    assert first_wrong(judge_solution(str(problem.expression.value + 1), lines)) == 0
