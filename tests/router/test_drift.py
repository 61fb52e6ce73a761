"""Calibration and drift: by hand, and by simulation of what is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.drift import calibration, drift, thirds


def test_calibration_by_hand() -> None:
    right, confidence = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.9, 0.6, 0.6, 0.5])
    found = calibration(right, confidence)
    brier = (0.1**2 + 0.6**2 + 0.4**2 + 0.5**2) / 4
    assert found.brier == pytest.approx(brier)
    assert found.skill == pytest.approx(1 - brier / (0.75 * 0.25))
    # As many bins as answers: each is its own.
    assert found.ece == pytest.approx((0.1 + 0.6 + 0.4 + 0.5) / 4)


def test_calibrated_confidences_have_no_error_and_moved_ones_have_theirs() -> None:
    rng = np.random.default_rng(1)
    chance = rng.uniform(0.2, 0.8, 50_000)
    right = (rng.random(50_000) < chance).astype(float)
    assert calibration(right, chance).ece < 0.012
    assert calibration(right, chance + 0.15).ece == pytest.approx(0.15, abs=0.01)
    assert calibration(right, chance).skill > 0 > calibration(right, 1 - chance).skill


def test_drift_by_hand() -> None:
    found = drift(np.tile([1.0, 0.0, 0.0, 1.0], 9), np.tile([0.95, 0.9, 0.8, 0.95], 9))
    assert (found.truths, found.observed, found.predicted) == (36, 0.5, pytest.approx(0.9))
    assert found.value == pytest.approx(-0.4)
    error = 1.96 * np.std(np.tile([0.05, -0.9, -0.8, 0.05], 9), ddof=1) / 6
    assert (found.low, found.high) == (pytest.approx(-0.4 - error), pytest.approx(-0.4 + error))


def test_weights_count_an_answer_so_often() -> None:
    right, confidence = np.array([1.0, 0.0]), np.array([0.8, 0.6])
    often = drift(np.repeat(right, [3, 1]), np.repeat(confidence, [3, 1]))
    weighted = drift(right, confidence, np.array([3.0, 1.0]))
    assert (weighted.observed, weighted.value) == (often.observed, pytest.approx(often.value))


def test_a_few_that_agree_prove_little() -> None:
    found = drift(np.ones(3), np.full(3, 0.8))
    assert found.value == pytest.approx(0.2)
    assert found.low < 0 < found.high
    # Nor can more than all be right.
    assert found.high == pytest.approx(1 - found.predicted)


def test_intervals_hold_the_drift_that_there_is() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        confidence = rng.uniform(0.5, 1.0, 200)
        right = (rng.random(200) < confidence - 0.1).astype(float)
        found = drift(right, confidence)
        held += found.low <= -0.1 <= found.high
    assert held >= 0.9 * 300


def test_nothing_and_one() -> None:
    nothing = drift(np.zeros(0), np.zeros(0))
    assert (nothing.truths, math.isnan(nothing.value)) == (0, True)
    assert math.isnan(calibration(np.zeros(0), np.zeros(0)).ece)
    one = drift(np.ones(1), np.full(1, 0.6))
    assert one.value == pytest.approx(0.4)
    assert math.isnan(one.low)


def test_thirds_are_of_equal_size() -> None:
    assert thirds(np.array([5.0, 1, 4, 0, 3, 2])).tolist() == [2, 0, 2, 0, 1, 1]
    assert thirds(np.zeros(0)).tolist() == []
