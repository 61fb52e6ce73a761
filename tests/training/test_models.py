"""The checked-in models answer the example, and every line of theirs is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.engine import Engine
from training.problems import extract_answer, judge_solution

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.mark.parametrize("name", ["abacus-m", "abacus-l"])
def test_the_example_is_answered_and_every_line_is_right(name: str) -> None:
    engine = Engine(MODELS / f"{name}.gguf", context=256, parallel=8)
    greedy = engine.complete("17*24+13\n", samples=1, temperature=0.0)[0]
    assert extract_answer(greedy.text) == "421"
    assert all(judge_solution("17*24+13", greedy.text))
    assert greedy.is_finished
    assert greedy.tokens == len(greedy.text) + 1
    sampled = engine.complete("17*24+13\n", samples=8, temperature=1.0, seed=1)
    assert sum(extract_answer(completion.text) == "421" for completion in sampled) >= 4
