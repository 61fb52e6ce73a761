"""How good estimates are, on queries that they were not trained on. Only numbers go in and out.

Q queries, M models; a cell without samples counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Array = NDArray[np.float64]

BINS = 10
"""Of the expected calibration error: of equal width."""
LEVELS = (0.5, 0.8, 0.95)
"""Of the intervals whose coverage is told."""


@dataclass(frozen=True, eq=False)
class Held:
    """Estimates of queries that were held out, and what came of them."""

    mean: Array
    """Shape (Q,): of the belief about difficulty."""
    sd: Array
    """Shape (Q,)."""
    p_right: Array
    """Shape (Q, M): chance that one sample is right."""
    tokens: Array
    """Shape (Q, M): expected tokens."""
    difficulty: Array
    """Shape (Q,): mean of the posterior given the answers, of models that were fitted without this query."""
    difficulty_sd: Array
    """Shape (Q,)."""

    def of(self, at: NDArray[np.int64]) -> Held:
        """Some of the queries, by their numbers."""
        return Held(*(values[at] for values in vars(self).values()))


def chances(p: Array, right: Array, samples: Array) -> dict[str, float]:
    """ECE, Brier skill over the base rate, and AUC of P(one sample is right), over all samples of the cells.

    The base rate is the share that was right in these very samples: the best constant in hindsight. NaN
    where all samples were right, or none.
    """
    p, right, samples = p.ravel(), right.ravel(), samples.ravel()
    total, hits = samples.sum(), right.sum()
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, p * samples - right, BINS)
    base = hits / total
    brier = (right * (1 - p) ** 2 + (samples - right) * p**2).sum() / total
    ranks = _weighted_ranks(p, samples)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Mann-Whitney: of a right and a wrong sample, how often the right one had the higher chance.
        auc = ((ranks * right).sum() / hits - hits / 2) / (total - hits)
        skill = 1 - brier / (base * (1 - base))
    return {
        "right": float(base),
        "predicted": float((p * samples).sum() / total),
        "ece": float(np.abs(gaps).sum() / total),
        "brier_skill": float(skill),
        "auc": float(auc),
    }


def _weighted_ranks(p: Array, weight: Array) -> Array:
    """How many samples have a lower value, and half of those with the same, for each cell."""
    values, at = np.unique(p, return_inverse=True)
    mass = np.bincount(at, weight, len(values))
    return (np.cumsum(mass) - mass / 2)[at]


def spearman(a: Array, b: Array) -> float:
    """Rank correlation, ties shared; NaN where one is constant."""
    x, y = rankdata(a), rankdata(b)
    if not np.ptp(x) or not np.ptp(y):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def coverage(held: Held) -> dict[str, float]:
    """How much of the posteriors lies within the intervals of the beliefs, by level."""
    found = {}
    for level in LEVELS:
        reach = norm.ppf(0.5 + level / 2) * held.sd
        high = norm.cdf((held.mean + reach - held.difficulty) / held.difficulty_sd)
        low = norm.cdf((held.mean - reach - held.difficulty) / held.difficulty_sd)
        found[f"{100 * level:g}"] = float((high - low).mean())
    return found


def figures(held: Held, models: list[str], right: Array, samples: Array) -> dict[str, object]:
    """All of them: over all models, and for each."""
    return {
        "queries": len(held.mean),
        "spearman": spearman(held.mean, held.difficulty),
        "coverage": coverage(held),
        **chances(held.p_right, right, samples),
        "models": {
            model: chances(held.p_right[:, [m]], right[:, [m]], samples[:, [m]])
            for m, model in enumerate(models)
            if samples[:, m].any()
        },
    }
