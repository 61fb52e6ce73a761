"""What several samples are worth to a caller who can tell a right one."""

from __future__ import annotations

import math


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that at least one of k out of `samples` samples is right, where `right` of them are.

    The unbiased estimator of Chen et al., arXiv 2107.03374: 1 - C(n - c, k) / C(n, k). It wants n samples
    that were all looked at: where buying stops at the first right one, c/n is more than a sample's chance.
    In whole numbers until the one division, it is right to the last bit, which the usual product of
    floating-point factors is not.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} with {right} right of {samples}: both must be among the samples")
    every = math.comb(samples, k)
    return (every - math.comb(samples - right, k)) / every
