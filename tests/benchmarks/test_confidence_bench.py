"""The figures of confidence, on outcomes of which they are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import confidence
from benchmarks.confidence import CALIBRATED, draw, figures, page, unseen
from benchmarks.embedded import Outcome
from training.difficulty_figures import chances
from training.labelled import in_turn, read_queries
from training.measured import Array
from training.splits import FOLDER


def outcomes(said: float, share: float) -> list[Outcome]:
    return [
        Outcome("isoflop low", 0, f"q{number}", number < 100 * share, 1e6, 1, said if number % 2 else 0.05)
        for number in range(100)
    ]


def test_an_error_is_what_is_said_less_what_is_right_by_bin() -> None:
    said, right = np.array([0.9, 0.9, 0.9, 0.9, 0.1, 0.1]), np.array([True, True, True, False, False, False])

    def told(said: Array) -> dict[str, float]:
        return chances(said, right.astype(np.float64), np.ones(6))

    assert told(said)["ece"] == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert told(right.astype(np.float64))["brier_skill"] == pytest.approx(1)
    assert told(np.full(6, 0.5))["brier_skill"] == pytest.approx(0)


def test_figures_tell_each_bin_and_a_page_and_a_picture_are_made(tmp_path: Path) -> None:
    told = figures(outcomes(0.85, 0.5), "low")
    assert [one["queries"] for one in told["bins"]] == [50, 50]
    assert told["right"] == 0.5
    assert told["ece_interval"][0] <= told["ece"] <= told["ece_interval"][1]
    written = page([told, {**told, "effort": "high"}], "v1")
    assert "| low | 100 | 50.0 |" in written
    assert "`v1`" in written
    draw([told, told], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_no_problem_is_one_that_the_profile_was_made_from() -> None:
    known = {one.query_id for one in in_turn(read_queries(FOLDER / "calibration.jsonl"), CALIBRATED)}
    problems = unseen(1 << 20)
    assert len(problems) == len({problem.query_id for problem in problems}) == 2520
    assert not known & {problem.query_id for problem in problems}
    assert len(unseen(7)) == 7
    assert confidence.GOAL == 0.05
