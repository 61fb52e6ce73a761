"""Stories: their expression can be read out of them, and they vary."""

from __future__ import annotations

import random
import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from training.expressions import operations, parse, values, within_limits
from training.problems import draw_equation
from training.wordings import draw_story

WORDS = {"twice": 2, "half": 2, "third": 3, "quarter": 4, "fifth": 5, "doubles": 2}


@given(st.integers(0, 100_000), st.integers(1, 12))
def test_a_story_has_the_operations_that_were_asked_and_holds_its_numbers(seed: int, size: int) -> None:
    story = draw_story(random.Random(seed), size)
    assert operations(story.expression) == size
    assert within_limits(story.expression)
    assert all(value >= 0 for value in values(story.expression))
    said = Counter(int(digits) for digits in re.findall(r"\d+", story.text))
    said.update(number for word, number in WORDS.items() for _ in re.findall(word, story.text))
    needed = {int(digits) for digits in re.findall(r"\d+", story.expression.text)}
    assert needed <= set(said)
    assert story.text.endswith("?")


@given(st.integers(0, 100_000), st.integers(1, 8))
def test_an_equation_holds_for_its_answer(seed: int, size: int) -> None:
    equation = draw_equation(random.Random(seed), size)
    left, right = re.search(r"(\S*x\S*)=(-?\d+)", equation.text).groups()  # type: ignore[union-attr]
    assert parse(left.replace("x", str(equation.expression.value))).value == int(right)
    assert operations(equation.expression) == size


def test_length_does_not_tell_the_number_of_operations() -> None:
    rng = random.Random(3)
    lengths = {size: [len(draw_story(rng, size).text) for _ in range(300)] for size in (2, 4)}
    longer = sum(a > b for a, b in zip(lengths[2], lengths[4], strict=True)) / 300
    assert longer > 0.1
