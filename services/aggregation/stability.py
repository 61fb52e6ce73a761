"""How sure it is that the leader of a vote stays the leader.

The Beta rule of Adaptive-Consistency (Aggarwal et al., arXiv 2305.11860): of the two leading answers,
with v1 and v2 votes, the share of the first among all votes for either has, from a uniform prior, the
distribution Beta(v1 + 1, v2 + 1); the leader stays the leader, however many more samples come, where
that share is above one half. Votes may be weights, and so fractional.
"""

from __future__ import annotations

import math
from functools import lru_cache

NORMAL_FROM = 1e6
"""Votes from which the normal distribution serves: its error there is below 1e-3."""


@lru_cache(maxsize=10_000)
def stability(leader: float, rival: float) -> float:
    """Probability, in [0, 1], that `leader` votes stay ahead of `rival` votes (both finite, not negative)."""
    a, b = leader + 1.0, rival + 1.0
    if max(a, b) > NORMAL_FROM:
        # mean - 1/2 over the standard deviation of Beta(a, b)
        z = (a - b) / (2.0 * math.sqrt(a / (a + b) * b / (a + b + 1.0))) / math.sqrt(a + b)
        return 0.5 * math.erfc(-z / math.sqrt(2.0))
    return 1.0 - incomplete_beta_at_half(a, b)


def incomplete_beta_at_half(a: float, b: float) -> float:
    """Regularised incomplete beta function I_{1/2}(a, b), for a and b of at least 1.

    By its continued fraction (DLMF 8.17.22, evaluated by Lentz's method as in Numerical Recipes 6.4),
    which converges fast below the mean a / (a + b), and above it by symmetry.
    """
    if a < b:
        return 1.0 - incomplete_beta_at_half(b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - (a + b) * math.log(2.0)
    return math.exp(log_front) * _continued_fraction(a, b) / a


def _continued_fraction(a: float, b: float, x: float = 0.5) -> float:
    tiny = 1e-300
    c, d = 1.0, 1.0 / ((1.0 - (a + b) * x / (a + 1.0)) or tiny)
    fraction = d
    # About sqrt(max(a, b)) terms are needed.
    for m in range(1, 100 + int(5.0 * math.sqrt(a + b))):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + numerator * d) or tiny)
            c = (1.0 + numerator / c) or tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return fraction
