"""What answers are worth together: the vote. Pure."""

from __future__ import annotations

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
