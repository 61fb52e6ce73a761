"""Estimates of what was not done recover what it would have brought, where naive ones do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from router.lengths import Array
from router.off_policy import Follows, estimate

EXPLORED = 0.3


def chance(difficulty: Array, large: Array) -> Array:
    """P(right) of a query that begins with the small model, or with the large one."""
    return np.asarray(np.where(large, 0.95 - 0.3 * difficulty, 0.9 - 0.8 * difficulty))


@dataclass(frozen=True)
class Log:
    """Queries of difficulties in [0, 1]: of the hard half the planner's own choice is the large model."""

    difficulty: Array
    large: Array
    propensity: Array
    """Of the large model."""
    right: Array
    flops: Array


def logged(size: int, seed: int) -> Log:
    rng = np.random.default_rng(seed)
    difficulty = rng.random(size)
    propensity = np.where(difficulty > 0.5, 1 - EXPLORED / 2, EXPLORED / 2)
    large = rng.random(size) < propensity
    right = rng.random(size) < chance(difficulty, large)
    flops = np.where(large, 10.0, 1.0) * rng.uniform(0.5, 1.5, size) * (1 + difficulty)
    return Log(difficulty, large.astype(float), propensity, right.astype(float), flops)


WORTH_LARGE = 0.95 - 0.3 / 2
"""Accuracy where every query begins with the large model."""
COST_LARGE = 10.0 * 1.5


def always_large(log: Log) -> Follows:
    return Follows(log.large, log.propensity)


def test_both_recover_the_truth_and_the_naive_mean_does_not() -> None:
    log = logged(20_000, 1)
    naive = float(log.right[log.large > 0].mean())
    assert naive < WORTH_LARGE - 0.03, "the large model was given the hard queries"
    for predicted in (np.zeros(20_000), 0.95 - 0.3 * log.difficulty):
        found = estimate(always_large(log), log.right, predicted)
        assert found.weighted.value == pytest.approx(WORTH_LARGE, abs=0.015)
        assert found.doubly_robust.value == pytest.approx(WORTH_LARGE, abs=0.03)
    cost = estimate(always_large(log), log.flops, np.full(20_000, 12.0))
    assert cost.weighted.value == pytest.approx(COST_LARGE, rel=0.03)
    assert cost.doubly_robust.value == pytest.approx(COST_LARGE, rel=0.03)
    assert log.flops[log.large > 0].mean() > 1.05 * COST_LARGE


def test_a_wrong_prediction_is_corrected_and_a_right_one_narrows_the_interval() -> None:
    log = logged(4_000, 2)
    follows = always_large(log)
    wrong = estimate(follows, log.right, np.full(4_000, 0.3)).doubly_robust
    right = estimate(follows, log.right, 0.95 - 0.3 * log.difficulty).doubly_robust
    assert wrong.low < WORTH_LARGE < wrong.high
    assert right.low < WORTH_LARGE < right.high
    assert right.high - right.low < 0.8 * (wrong.high - wrong.low)


def test_intervals_hold_the_truth() -> None:
    held = np.zeros(2)
    for seed in range(40):
        log = logged(800, 100 + seed)
        found = estimate(always_large(log), log.right, np.full(800, 0.7), seed)
        for way, each in enumerate((found.weighted, found.doubly_robust)):
            held[way] += each.low <= WORTH_LARGE <= each.high
    # 95 % of 40 are 38; less than 33 has a chance of about .003.
    assert held.min() >= 33


def test_the_logged_policy_itself_is_its_own_mean() -> None:
    log = logged(500, 3)
    follows = Follows(np.ones(500), np.ones(500))
    found = estimate(follows, log.right, np.full(500, 0.1))
    assert found.weighted.value == pytest.approx(log.right.mean())
    assert found.doubly_robust.value == pytest.approx(log.right.mean())
    assert (follows.supported, follows.effective) == (1.0, pytest.approx(500))


def test_a_choice_without_a_chance_is_only_predicted() -> None:
    right, predicted = np.array([1.0, 0.0, 1.0]), np.array([0.5, 0.6, 0.7])
    follows = Follows(np.zeros(3), np.zeros(3))
    found = estimate(follows, right, predicted)
    assert math.isnan(found.weighted.value)
    assert math.isnan(found.weighted.low)
    assert found.doubly_robust.value == pytest.approx(0.6)
    assert (follows.supported, follows.effective) == (0.0, 0.0)


def test_weights_by_hand() -> None:
    follows = Follows(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.5, 0.2, 1.0, 0.0]))
    assert follows.weights.tolist() == [2, 0, 1, 0]
    assert follows.supported == 0.75
    assert follows.effective == pytest.approx(9 / 5)
    found = estimate(follows, np.array([1.0, 1, 0, 1]), np.array([0.6, 0.5, 0.4, 0.3]))
    assert found.weighted.value == pytest.approx(2 / 3)
    assert found.doubly_robust.value == pytest.approx((0.6 + 2 * 0.4 + 0.5 + 0.4 - 0.4 + 0.3) / 4)


def test_no_queries_tell_nothing() -> None:
    found = estimate(Follows(np.zeros(0), np.zeros(0)), np.zeros(0), np.zeros(0))
    assert math.isnan(found.weighted.value)
    assert math.isnan(found.doubly_robust.value)
