"""A learned estimator: text features → latent difficulty, and from there each model's prospects.

Fitted by `training/difficulty.py` (ridge regression on the difficulties of an item-response model) and
kept as plain JSON: a weight for each feature, so that no scikit-learn is needed to run it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isoflop.v1.difficulty_pb2 import Difficulty, ModelOutlook
from numpy.typing import NDArray

from services.difficulty.features import NAMES, features


class EstimatorError(Exception):
    """The estimator's file is not usable; `str(error)` says where and why."""


@dataclass(frozen=True)
class Curve:
    """A model's prospects over latent difficulty d.

    P(one sample is right) = 1 / (1 + exp(-slope * (ability - d))), the two-parameter logistic model of
    item response theory; expected tokens = exp(log_tokens + tokens_slope * d).
    """

    model: str
    ability: float
    slope: float
    log_tokens: float
    tokens_slope: float

    def p_right(self, difficulty: float) -> float:
        """Chance that one sample is right."""
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, self.slope * (self.ability - difficulty)))))

    def tokens(self, difficulty: float) -> float:
        """Expected tokens of a sample."""
        return math.exp(max(-50.0, min(50.0, self.log_tokens + self.tokens_slope * difficulty)))


@dataclass(frozen=True)
class Estimator:
    """Weights of the features, the error to expect, and the models' curves."""

    name: str
    weights: NDArray[np.float64]
    """Shape (len(NAMES),)."""
    intercept: float
    sd: float
    """Standard deviation of the error on problems that it was not fitted on."""
    curves: tuple[Curve, ...]

    def estimate(self, text: str) -> Difficulty:
        """The belief about a query's difficulty; each model's chance is the mean over the belief."""
        mean = self.intercept + float(self.weights @ features(text))
        spread = [mean + self.sd * z for z in NODES]
        outlooks = [
            ModelOutlook(
                model=curve.model,
                p_right=sum(w * curve.p_right(d) for w, d in zip(WEIGHTS, spread, strict=True)),
                tokens=curve.tokens(mean),
            )
            for curve in self.curves
        ]
        return Difficulty(mean=mean, sd=self.sd, outlooks=outlooks)

    @property
    def flops(self) -> float:
        """Floating-point operations of one estimate: two for each weight and about thirty for each curve."""
        return 2.0 * len(self.weights) + 30.0 * len(self.curves)


NODES, WEIGHTS = (-math.sqrt(3.0), 0.0, math.sqrt(3.0)), (1 / 6, 2 / 3, 1 / 6)
"""Gauss-Hermite quadrature of a normal distribution with three nodes."""


def load(path: Path) -> Estimator:
    """Read an estimator; raises EstimatorError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        weights = np.array([data["weights"][name] for name in NAMES], dtype=np.float64)
        curves = tuple(_curve(row) for row in data["curves"])
        name = _text(data["name"])
        estimator = Estimator(name, weights, float(data["intercept"]), float(data["sd"]), curves)
    except OSError as error:
        raise EstimatorError(f"estimator {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise EstimatorError(f"estimator {path}: not an estimator ({error!r})") from None
    if not (
        np.isfinite(weights).all() and math.isfinite(estimator.intercept) and 0 < estimator.sd < math.inf
    ):
        raise EstimatorError(f"estimator {path}: a weight is not a finite number")
    return estimator


def _curve(row: dict[str, Any]) -> Curve:
    curve = Curve(**row)
    _text(curve.model)
    if not all(map(math.isfinite, (curve.ability, curve.slope, curve.log_tokens, curve.tokens_slope))):
        raise ValueError(f"a number of {curve.model} is not finite")
    return curve


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a name")
    return value
