"""The files checked in are the ones that the hashes name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("folder", "pattern"), [("models", "*.gguf"), ("training/problems", "*.jsonl")])
def test_files_match_their_hashes(folder: str, pattern: str) -> None:
    lines = (ROOT / folder / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    present = {path.name for path in (ROOT / folder).glob(pattern)}
    assert present == set(sums)
    for name, expected in sums.items():
        assert hashlib.sha256((ROOT / folder / name).read_bytes()).hexdigest() == expected


def test_problem_files_are_what_the_code_draws() -> None:
    from training.splits import demo_rows, draw_rows, read_rows

    heldout = draw_rows("heldout", seed=1)
    assert heldout == read_rows("heldout.jsonl")
    assert draw_rows("calibration", seed=1) == read_rows("calibration.jsonl")
    assert demo_rows(heldout, seed=1) == read_rows("demo.jsonl")
