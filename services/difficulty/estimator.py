"""A learned estimator: a query's text → a belief about its latent difficulty, and each model's prospects.

Fitted by `training/difficulty.py` and kept as plain numbers (`record.py`), so that no scikit-learn is needed
to run it. The belief is normal. A text that is unlike those it was fitted on (a feature is outside the range
that they had) gets, by how far outside it is, the belief about a query of which nothing is known.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from isoflop.v1.difficulty_pb2 import Difficulty, ModelOutlook
from numpy.typing import NDArray

from services.difficulty.features import BUCKETS, MOST_CHARACTERS, NAMES, features, hashed_words
from services.difficulty.record import (
    MEAN,
    EstimatorRecord,
    Hinges,
    Trees,
    read,
)
from services.difficulty.record import (
    EstimatorError as EstimatorError,
)

Array = NDArray[np.float64]

UNKNOWN_SD = 1.5
"""Of the belief about a text unlike all training queries: theirs is 1, around the same mean of 0."""
LEAST_SD = 0.05
"""No text tells more than this."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
"""Gauss-Hermite quadrature of a normal distribution."""


class _Curve:
    """`Hinges`, as arrays."""

    def __init__(self, hinges: Hinges) -> None:
        index = {name: at for at, name in enumerate((*NAMES, MEAN))}
        self._intercept = hinges.intercept
        self._of = np.array([index[name] for name, _, _ in hinges.terms], dtype=np.intp)
        self._knots = np.array([knot for _, knot, _ in hinges.terms], dtype=np.float64)
        self._weights = np.array([weight for _, _, weight in hinges.terms], dtype=np.float64)

    def __len__(self) -> int:
        return len(self._knots)

    def __call__(self, x: Array) -> float:
        return self._intercept + float(np.maximum(x[self._of] - self._knots, 0.0) @ self._weights)


class _Forest:
    """`Trees`, as arrays: all trees take one step at a time."""

    def __init__(self, trees: Trees) -> None:
        self._roots = np.array(trees.roots, dtype=np.intp)
        self._feature = np.array(trees.feature, dtype=np.intp)
        self._threshold = np.array(trees.threshold, dtype=np.float64)
        self._next = np.array([trees.right, trees.left], dtype=np.intp)
        self._value = np.array(trees.value, dtype=np.float64)
        self._depth = trees.depth

    def __len__(self) -> int:
        return len(self._roots) * self._depth

    def __call__(self, x: Array) -> float:
        node = self._roots
        for _ in range(self._depth):
            left = x[self._feature[node]] <= self._threshold[node]
            node = self._next[left.astype(np.intp), node]
        return float(self._value[node].sum())


class Estimator:
    """Estimates from text; pure, bounded in time."""

    def __init__(self, record: EstimatorRecord, characters: int = MOST_CHARACTERS) -> None:
        self.name = record.name
        self.embedding = record.sentences.name if record.sentences else None
        """Name of the sentence embedding that `estimate` needs; none: it needs none."""
        self.curves = tuple(record.curves)
        self._characters = characters
        ranges = [record.ranges[name] for name in NAMES]
        self._low, self._high, self._unit = (
            np.array([getattr(one, part) for one in ranges]) for part in ("low", "high", "unit")
        )
        self._center, self._log_variance = _Curve(record.center), _Curve(record.log_variance)
        self._words = np.zeros(BUCKETS)
        self._words[list(record.words)] = list(record.words.values())
        self._forest = _Forest(record.trees) if record.trees else None
        self._sentences = np.array(record.sentences.weights if record.sentences else [])
        self._ability, self._slope, self._log_tokens, self._tokens_slope = (
            np.array([[getattr(curve, part)] for curve in self.curves]).reshape(-1, 1)
            for part in ("ability", "slope", "log_tokens", "tokens_slope")
        )
        self._tokens_range = record.tokens_range
        self._has_words = bool(record.words)

    def estimate(self, text: str, embedding: Array | None = None) -> Difficulty:
        """The belief about a query's difficulty; each model's prospects are means over the belief.

        `embedding` is the text's, by the model that `self.embedding` names; given where it names one.
        """
        mean, sd = self.belief(text, embedding)
        spread = mean + sd * NODES
        logits = np.clip(self._slope * (self._ability - spread), -50.0, 50.0)
        log_tokens = self._log_tokens + self._tokens_slope * np.clip(spread, *self._tokens_range)
        right = (1.0 / (1.0 + np.exp(-logits))) @ WEIGHTS
        tokens = np.exp(np.clip(log_tokens, -50.0, 50.0)) @ WEIGHTS
        outlooks = [
            ModelOutlook(model=curve.model, p_right=p, tokens=n)
            for curve, p, n in zip(self.curves, right.tolist(), tokens.tolist(), strict=True)
        ]
        return Difficulty(mean=mean, sd=sd, outlooks=outlooks)

    def belief(self, text: str, embedding: Array | None = None) -> tuple[float, float]:
        """Mean and standard deviation of the belief about a query's difficulty; `embedding` as above."""
        if (embedding is None) != (self.embedding is None):
            raise ValueError(f"the estimator's embedding is {self.embedding}")
        found = features(text, self._characters)
        x = np.clip(found, self._low, self._high)
        strange = 1.0 - math.exp(-float((np.abs(found - x) / self._unit).sum()))
        mean = self._center(x)
        if self._forest:
            mean += self._forest(x)
        if self._has_words:
            mean += float(self._words @ hashed_words(text, self._characters))
        if embedding is not None:
            mean += float(self._sentences @ embedding)
        mean = min(max(mean, -5.0), 5.0)
        known = math.exp(min(max(self._log_variance(np.append(x, mean)), -50.0), 50.0))
        known = min(max(known, LEAST_SD**2), UNKNOWN_SD**2)
        # The mixture's mean and variance: what was learned of such texts, and nothing known.
        blend = (1.0 - strange) * mean
        square = (1.0 - strange) * (known + mean * mean) + strange * UNKNOWN_SD**2
        return blend, math.sqrt(square - blend * blend)

    @property
    def flops(self) -> float:
        """Floating-point operations of one estimate, without its embedding.

        Three for each hinge, one for each step in a tree, two for each bucket and dimension, four to tell
        whether a feature is in its range, and about ten for each model at each node of the quadrature.
        """
        return float(
            3 * (len(self._center) + len(self._log_variance))
            + (len(self._forest) if self._forest else 0)
            + (2 * BUCKETS if self._has_words else 0)
            + 2 * len(self._sentences)
            + 4 * len(NAMES)
            + 10 * len(NODES) * len(self.curves)
        )


def load(path: Path, characters: int = MOST_CHARACTERS) -> Estimator:
    """Read an estimator that looks at so many characters of a query; raises EstimatorError."""
    return Estimator(read(path), characters)
