"""Observed against predicted accuracy: calibration of confidences, and drift. Pure functions.

`right` has a 1 for each answer that a caller has called right, and a 0 for each that was wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.lengths import Array

BINS = 10
"""Of the expected calibration error: equally many answers in each."""

NORMAL = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Calibration:
    """How well confidences foretell which answers are right; NaN where there are none."""

    ece: float
    """Expected calibration error: mean distance of confidence and share of right answers, over bins."""
    brier: float
    """Mean square of confidence less truth."""
    skill: float
    """1 - brier over that of one confidence for all, the share of right answers; NaN where that is 0 or 1."""


@dataclass(frozen=True)
class Drift:
    """Observed less predicted accuracy."""

    truths: int
    observed: float
    """Share of right answers."""
    predicted: float
    """Mean confidence."""
    value: float
    """Their difference."""
    low: float
    """End of its 95 % interval; NaN of less than two truths."""
    high: float


def calibration(right: Array, confidence: Array) -> Calibration:
    """Of n answers, both of shape (n,)."""
    if not len(right):
        return Calibration(math.nan, math.nan, math.nan)
    order = np.argsort(confidence, kind="stable")
    gaps = [abs(part.sum()) for part in np.array_split((right - confidence)[order], min(BINS, len(right)))]
    brier = float(np.mean((confidence - right) ** 2))
    constant = float(right.mean() * (1 - right.mean()))
    return Calibration(sum(gaps) / len(right), brier, 1 - brier / constant if constant else math.nan)


def drift(right: Array, confidence: Array, weights: Array | None = None) -> Drift:
    """Of n answers, shapes (n,), each counted by its weight (1 where none are given).

    The interval is normal. Its variance is that of the differences or, where that is larger, what it would
    be if the confidences c were calibrated: the mean of c (1 - c). A few that happen to agree prove little.
    What is observed is in [0, 1] at its ends, too.
    """
    if not len(right):
        return Drift(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    weights = np.ones(len(right)) if weights is None else weights
    share = weights / weights.sum()
    gap = right - confidence
    value, predicted = float(share @ gap), float(share @ confidence)
    error = math.nan
    if len(right) > 1:
        seen, expected = share**2 @ (gap - value) ** 2, share**2 @ (confidence * (1 - confidence))
        error = math.sqrt(max(seen * len(right) / (len(right) - 1), expected))
    return Drift(
        truths=len(right),
        observed=float(share @ right),
        predicted=predicted,
        value=value,
        low=max(value - NORMAL * error, -predicted),
        high=min(value + NORMAL * error, 1 - predicted),
    )


def thirds(difficulty: Array) -> NDArray[np.int64]:
    """0, 1 or 2 for each query, shape (n,): the easiest third, the middle, the hardest; equals together."""
    if not len(difficulty):
        return np.zeros(0, dtype=np.int64)
    return np.searchsorted(np.quantile(difficulty, [1 / 3, 2 / 3]), difficulty, side="right")
