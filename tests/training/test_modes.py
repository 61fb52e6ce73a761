"""Modes beside plain steps: what a critique says, and what conversations come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training import modes
from training.modes import Conversation, Worth, accused, in_words, worth
from training.splits import Problem, first_of_each_group

PROBLEM = Problem("q", "2+3", "5", 1, "expression", "2+3")
RIGHT, WRONG = "2+3\n2+3=5\nanswer: 5", "2+3\n2+3=6\nanswer: 6"


@pytest.mark.parametrize(
    ("critique", "line"),
    [("1 ok\n2 wrong", 1), ("1 wrong\n", 0), ("1 ok\n2 ok", None), ("", None), ("x wrong", None)],
)
def test_a_critique_accuses_a_line(critique: str, line: int | None) -> None:
    assert accused(critique) == line


def test_what_conversations_come_to() -> None:
    found = worth(
        [
            (PROBLEM, Conversation("q", (RIGHT, 9), (RIGHT, 20), ("1 ok\n2 ok\n3 ok", 4), None)),
            (PROBLEM, Conversation("q", (RIGHT, 9), (WRONG, 20), ("1 ok\n2 wrong", 2), (WRONG, 9))),
            (PROBLEM, Conversation("q", (WRONG, 9), (RIGHT, 20), ("1 ok\n2 wrong", 2), (RIGHT, 9))),
            (PROBLEM, Conversation("q", (WRONG, 9), (RIGHT, 20), ("1 ok\n2 ok\n3 ok", 4), None)),
        ]
    )
    assert (found.problems, found.steps, found.think, found.revised) == (4, 0.5, 0.75, 0.5)
    assert (found.false_alarms, found.found, found.found_first) == (0.5, 0.5, 0.5)
    assert found.tokens == (9, 20, 9 + 3 + 4.5)


def test_modes_that_are_worth_nothing_are_told_so() -> None:
    small = Worth(50, 0.30, 0.30, 0.30, 0.08, 0.0, 0.0, (168, 282, 191))
    large = Worth(50, 0.48, 0.44, 0.48, 0.0, 0.0, 0.0, (159, 294, 181))
    assert in_words([small, large]) == (
        "Critique was not learned: no model accuses a wrong line of any of these solutions, so that nothing "
        "wrong is revised, and accuracy stays what it was for more tokens. Thinking is no better than plain "
        "steps at any size, on these problems, for about 1.8 times the tokens."
    )
    assert "Thinking" not in in_words([small, replace(large, think=0.6)])
    assert in_words([replace(small, found=0.5, think=0.4)]) == ""


def test_conversations_are_held_once(tmp_path: Path) -> None:
    problems = first_of_each_group("heldout.jsonl", 3)
    modes.collect("abacus-s", problems[:2], tmp_path)
    (first, second) = modes.held("abacus-s", tmp_path).values()
    modes.collect("abacus-s", problems, tmp_path)
    there = modes.held("abacus-s", tmp_path)
    assert sorted(there) == sorted(problem.query_id for problem in problems)
    assert [there[first.query_id], there[second.query_id]] == [first, second]
    for one in there.values():
        assert one.critique[0].startswith("1 ")
        assert (one.revise is None) == (accused(one.critique[0]) is None)
