"""The page of scaling laws, from recordings of a known truth."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from benchmarks.scaling import main, recorded
from router.scaling import ScalingRecord
from training.resampling import NO_ANSWER


def write(path: Path, models: dict[str, float], queries: int, samples: int) -> None:
    """Each model's chance to be right."""
    rng = random.Random(1)
    with gzip.open(path, "wt") as out:
        for model, p in models.items():
            for query in range(queries):
                told = [
                    {"answer": "7", "correct": True}
                    if rng.random() < p
                    else {"answer": rng.choice(["5", "6", "unextractable"]), "correct": False}
                    for _ in range(samples)
                ]
                out.write(json.dumps({"model": model, "query_id": f"q{query:02}", "samples": told}) + "\n")


def test_recordings_are_read_as_votes(tmp_path: Path) -> None:
    path = tmp_path / "math500.jsonl.gz"
    samples = [
        {"answer": r"\frac{1}{2}", "correct": True},
        {"answer": "0.5", "correct": True},
        {"answer": r"\dfrac{1}{3}", "correct": False},
        {"answer": r"\frac{1}{3}", "correct": False},
        {"answer": "unextractable", "correct": False},
        {"answer": None, "correct": False},
    ]
    lines = [{"model": "m", "query_id": name, "samples": samples[at:]} for at, name in ((0, "a"), (2, "b"))]
    with gzip.open(path, "wt") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    (one,) = recorded(path, "MATH-500").models
    assert one.answers.tolist() == [[0, 0, 1, 1], [1, 1, NO_ANSWER, NO_ANSWER]]
    assert one.right.tolist() == [0, NO_ANSWER]


def test_the_page_says_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    write(tmp_path / "math500.jsonl.gz", {"good": 0.8, "bad": 0.3}, queries=40, samples=32)
    page = tmp_path / "docs" / "scaling.md"
    places = ["--page", str(page), "--results", str(tmp_path / "results")]
    main(["--store", str(tmp_path / "none"), "--recordings", str(tmp_path), *places])
    text = page.read_text()
    assert "**Abacus** is left out: no sample of" in text
    assert "**AIME 2024** is left out: aime2024.jsonl.gz: No such file" in text
    assert str(tmp_path) not in text
    assert (page.parent / "scaling-math500.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "results" / "scaling.json").read_text())
    records = [ScalingRecord.model_validate(row["record"]) for row in rows]
    assert {(one.model, one.strategy) for one in records} == {
        (model, strategy) for model in ("good", "bad") for strategy in ("majority", "pass_at_n")
    }
    (good,) = [
        row for row in rows if (row["record"]["model"], row["record"]["strategy"]) == ("good", "majority")
    ]
    assert good["accuracy"][0] == pytest.approx(0.8, abs=0.05)
    assert good["accuracy"][-1] > 0.99
    assert set(good["quarter"]) == {"logarithm", "power", "saturating"}
    assert all(low <= told for low, told in zip(good["low"], good["accuracy"], strict=True))


def test_without_any_samples_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="bench-headlines"):
        main(["--store", str(tmp_path), "--recordings", str(tmp_path), "--page", str(tmp_path / "p.md")])
    assert not (tmp_path / "p.md").exists()
