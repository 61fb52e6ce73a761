"""The GGUF files by llama.cpp give torch's greedy text. Only where models are trained: see conftest.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.export import load_checkpoint
from training.model import complete_greedily
from training.problems import prompt_text
from training.sampling import open_file, sample_round
from training.splits import read_rows
from training.tokens import decode, encode, end_of_text

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
CHECKPOINTS = ROOT / "build" / "training"


@pytest.mark.parametrize("name", ["abacus-s", "abacus-m", "abacus-l"])
async def test_greedy_text_is_that_of_torch(name: str) -> None:
    if not (CHECKPOINTS / f"{name}.pt").exists():
        pytest.fail(f"train {name} first: python -m training.train")
    torch.set_num_threads(1)
    model, _ = load_checkpoint(CHECKPOINTS / f"{name}.pt")
    rows = [row for row in read_rows("heldout.jsonl") if row["group"] <= 4][::40]
    same = 0
    async with open_file(MODELS / f"{name}.gguf", parallel=1) as generation:
        for row in rows:
            prompt = encode(prompt_text(row["prompt"]))
            expected = decode(complete_greedily(model, prompt, end_of_text(), 400))
            round = await sample_round(generation, name, row["prompt"])
            same += round.samples[0].text == expected
    assert same >= len(rows) - 1  # one tie of two logits may fall either way
