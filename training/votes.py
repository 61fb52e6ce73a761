"""What answers are worth together: the vote, and the chance that one of several is right. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable


def vote_accuracy(answers: Iterable[str | None], right: str) -> float:
    """Chance that the vote of these answers is right, ties broken by lot; None is no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    return (right in leaders) / len(leaders)


def pass_at(k: int, samples: int, right: int) -> float:
    """Chance that at least one of k out of `samples` samples is right (unbiased; Chen et al. 2107.03374)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
