"""The benchmark of difficulty runs end to end on files, and says what it left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import difficulty as bench


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs it on some files; its exit status, figures and page."""
    monkeypatch.setattr(bench, "BUILD", tmp_path / "build")
    monkeypatch.setattr(bench, "RESAMPLES", 20)
    monkeypatch.setattr(bench, "FOLDS", 2)

    def start(**files: Path) -> tuple[int, dict[str, Any], str]:
        nowhere, figures, page = tmp_path / "nowhere", tmp_path / "d.json", tmp_path / "d.md"
        options = dict.fromkeys(("calibration", "heldout", "shared", "embedding"), nowhere) | files
        given = [part for name, path in options.items() for part in (f"--{name}", str(path))]
        monkeypatch.setattr("sys.argv", ["", *given, "--json", str(figures), "--page", str(page)])
        status = bench.main()
        if status:
            return status, {}, ""
        assert page.with_suffix(".png").stat().st_size > 1000
        return status, json.loads(figures.read_text()), page.read_text()

    return start


def sums(queries: int, seed: int) -> list[dict[str, Any]]:
    """The longer, the harder, for two models."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        terms = int(rng.integers(2, 20))
        prompt = "+".join(map(str, rng.integers(1, 99, terms)))
        for model, able in (("small", 6), ("large", 14)):
            right = int(rng.binomial(8, 1 / (1 + np.exp(terms - able))))
            row = {"query_id": f"{seed}-{number}", "model": model, "prompt": prompt}
            rows.append(row | {"right": right, "samples": 8, "tokens": 5.0 * terms})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_abacus_alone(run: Any, tmp_path: Path) -> None:
    files = {
        "calibration": write(tmp_path / "calibration.jsonl", sums(80, 0)),
        "heldout": write(tmp_path / "heldout.jsonl", sums(40, 1)),
    }
    status, figures, page = run(**files)
    assert status == 0
    (part,) = figures["parts"]
    rows = part["rows"]
    assert set(rows) == {"estimator", "length of the prompt", "mean of all"}
    assert rows["estimator"]["queries"] == 40
    assert rows["estimator"]["spearman"]["value"] > 0.7
    low, high = (rows["estimator"]["spearman"][end] for end in ("low", "high"))
    assert low < rows["estimator"]["spearman"]["value"] < high
    assert rows["mean of all"]["spearman"]["value"] is None
    assert rows["estimator"]["brier_skill"]["value"] > rows["mean of all"]["brier_skill"]["value"]
    assert part["cost"]["flops"] > 0
    assert "MATH-500: the recordings were not there" in page
    assert "Recordings of real models" not in page
    assert "| estimator |" in page


def test_recordings_with_levels(run: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    for folder in ("recordings", "queries"):
        (shared / folder).mkdir(parents=True)
    problems = {}
    with gzip.open(shared / "recordings" / "math500.jsonl.gz", "wt") as out:
        for row in sums(80, 2):
            samples = [{"correct": at < row["right"], "tokens": 10} for at in range(row["samples"])]
            out.write(json.dumps({**row, "samples": samples}) + "\n")
            problems[row["prompt"]] = f"Level {1 + row['prompt'].count('+') // 4}"
    levels = [{"problem": f" {prompt}\n", "level": level} for prompt, level in problems.items()]
    write(shared / "queries" / "math500.jsonl", levels[:70])
    status, figures, page = run(shared=shared)
    assert status == 0
    (part,) = figures["parts"]
    assert part["joined"] == part["rows"]["estimator"]["queries"] == 70
    assert part["rows"]["level by the problem's authors"]["spearman"]["value"] > 0.6
    assert "abacus: its files of answers were not there" in page
    assert "- `math500`: 497 problems of MATH-500 under seven reasoning models" in page
    assert "BoInf-code-publish, commit fbcb0970b0" in page
    assert "embeddings: run `python -m training.embedding`" in page


def test_files_that_do_not_fit_are_one_sentence(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = write(tmp_path / "calibration.jsonl", sums(40, 0))
    others = [row | {"model": "other"} for row in sums(40, 1)]
    for heldout, said in (
        (write(tmp_path / "other.jsonl", others), "answers of ['other']"),
        (write(tmp_path / "empty.jsonl", []), "no query with a prompt"),
    ):
        assert run(calibration=calibration, heldout=heldout)[0] == 1
        assert said in capsys.readouterr().err
    assert run()[0] == 1
    assert "MATH-500: the recordings were not there" in capsys.readouterr().err
