"""The GGUF files by llama.cpp give torch's greedy text. Only where models are trained: see conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.engine import Engine
from training.export import load_checkpoint
from training.model import complete_greedily
from training.splits import read_rows
from training.tokens import END_OF_TEXT, decode, encode

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CHECKPOINTS = ROOT / "build" / "training"


@pytest.mark.parametrize("name", ["abacus-s", "abacus-m", "abacus-l"])
def test_greedy_text_is_that_of_torch(name: str) -> None:
    if not (CHECKPOINTS / f"{name}.pt").exists():
        pytest.fail(f"train {name} first: python -m training.train")
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
