"""From the scores of a chain's steps to the score of the chain. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from isoflop.v1.verification_pb2 import (
    CHAIN_SCORING_LAST,
    CHAIN_SCORING_MEAN,
    CHAIN_SCORING_MIN,
    CHAIN_SCORING_PRODUCT,
    ChainScoring,
)

Rule = Callable[[Sequence[float]], float]

RULES: Mapping[ChainScoring.ValueType, Rule] = {
    CHAIN_SCORING_MIN: min,
    CHAIN_SCORING_PRODUCT: math.prod,
    CHAIN_SCORING_LAST: lambda steps: steps[-1],
    CHAIN_SCORING_MEAN: fmean,
}
"""By the contract's names."""


def chain_score(steps: Sequence[float], scoring: ChainScoring.ValueType) -> float:
    """The score in [0, 1] of a chain whose steps have these scores in [0, 1]; the mean where none is named.

    Raises ValueError where there are no steps.
    """
    if not steps:
        raise ValueError("a chain without steps has no score")
    return RULES.get(scoring, fmean)(steps)
