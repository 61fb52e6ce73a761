"""The GGUF files by llama.cpp; beside torch where torch and checkpoints are present."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.problems import extract_answer, judge_solution
from training.splits import read_rows

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CHECKPOINTS = ROOT / "build" / "training"

pytest.importorskip("xllamacpp")

from training.engine import Engine  # noqa: E402 - needs xllamacpp


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


@pytest.mark.parametrize("name", ["abacus-s", "abacus-m", "abacus-l"])
def test_greedy_text_is_that_of_torch(name: str) -> None:
    """Runs only where the model was trained: it needs torch and the checkpoint."""
    if not (CHECKPOINTS / f"{name}.pt").exists():
        return
    import torch

    from training.export import load_checkpoint
    from training.model import complete_greedily
    from training.tokens import END_OF_TEXT, decode, encode

    torch.set_num_threads(1)
    model, _ = load_checkpoint(CHECKPOINTS / f"{name}.pt")
    engine = Engine(MODELS / f"{name}.gguf", context=512, parallel=1)
    rows = [row for row in read_rows("heldout.jsonl") if row["group"] <= 4][::50]
    same = 0
    for row in rows:
        prompt = row["prompt"] + "\n"
        limit = 512 - len(prompt) - 1
        expected = decode(complete_greedily(model, encode(prompt), END_OF_TEXT, limit))
        same += engine.complete(prompt, samples=1, temperature=0.0)[0].text == expected
    assert same >= len(rows) - 1  # one tie of two logits may fall either way
