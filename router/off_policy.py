"""What another profile's first choices would have brought, from logged queries. Pure functions.

Each logged query had its first round by known chances (`router.explore`). Where another policy would have
begun as the query did, it stands for all queries alike by the inverse of its chance: inverse propensity
weights, here self-normalised (Hajek's estimate). The doubly robust estimate takes the policy's own prediction
for each query and corrects it by the weighted differences of those that tell: unbiased if the chances are
right, whatever the predictions are, and the better the predictions the less it varies (Dudik, Langford & Li
2011, arXiv 1103.4601). Both are of the first choice, with what the logged planner did afterwards. A choice
that had no chance is only predicted: `Follows.supported` says how many had one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from router.lengths import Array

REPLICATES = 1000
"""Of the bootstrap over queries."""

INTERVAL = (0.025, 0.975)
"""Quantiles of its ends."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; NaN where nothing tells it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """What a policy would have brought for a query, in P(right) or in FLOPs."""

    weighted: Interval
    """Self-normalised inverse propensity; of the queries whose choice had a chance."""
    doubly_robust: Interval


@dataclass(frozen=True, eq=False)
class Follows:
    """How n logged queries tell of another policy."""

    took: Array
    """Shape (n,): 1 where the query began with the policy's choice, else 0."""
    propensity: Array
    """Shape (n,): chance that it did, 0 where it had none."""

    @property
    def weights(self) -> Array:
        """Shape (n,): inverse propensities of those that tell, 0 of the others."""
        return np.divide(self.took, self.propensity, out=np.zeros(len(self.took)), where=self.took > 0)

    @property
    def supported(self) -> float:
        """Share of queries whose choice had a chance."""
        return float(np.mean(self.propensity > 0)) if len(self.propensity) else math.nan

    @property
    def effective(self) -> float:
        """Effective sample size: so many equally weighted queries would tell as much (Kish)."""
        weights = self.weights
        return float(weights.sum() ** 2 / (weights @ weights)) if weights.any() else 0.0


def estimate(follows: Follows, observed: Array, predicted: Array, seed: int = 0) -> Estimate:
    """The mean over queries of what a policy brings.

    `observed`, shape (n,), is what each query brought, as it began; `predicted`, shape (n,), what the policy
    expects of its own choice for it. `seed` is of the bootstrap.
    """
    if not len(observed):
        nothing = Interval(math.nan, math.nan, math.nan)
        return Estimate(nothing, nothing)
    weights = follows.weights
    robust = predicted + weights * (observed - predicted)
    rng = np.random.default_rng(seed)
    size = len(observed)
    ratios, means = np.empty(REPLICATES), np.empty(REPLICATES)
    for at in range(REPLICATES):
        drawn = rng.integers(size, size=size)
        ratios[at] = _ratio(weights[drawn], observed[drawn])
        means[at] = robust[drawn].mean()
    return Estimate(
        _interval(_ratio(weights, observed), ratios),
        _interval(float(robust.mean()), means),
    )


def _ratio(weights: Array, observed: Array) -> float:
    total = weights.sum()
    return float((weights * observed).sum() / total) if total else math.nan


def _interval(value: float, replicates: Array) -> Interval:
    if math.isnan(value) or np.isnan(replicates).all():
        return Interval(value, math.nan, math.nan)
    low, high = np.nanquantile(replicates, INTERVAL)
    return Interval(value, float(low), float(high))
