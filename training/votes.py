"""What answers are worth together: the vote. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.measured import Array

PERMUTATIONS = 50
"""Resamplings of stored samples for the accuracy of votes."""


def vote_accuracy(answers: Iterable[str | None], right: str) -> float:
    """Chance that the vote of these answers is right, ties broken by lot; None is no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    leaders = [answer for answer, count in votes.items() if count == most]
    return (right in leaders) / len(leaders)


def vote_accuracies(
    answers: NDArray[np.int64], sizes: Sequence[int], weights: Array | None = None, seed: int = 7
) -> dict[int, Array]:
    """Accuracy of votes of so many of the samples, shape (Q,) for each size, over PERMUTATIONS of them.

    `answers` as `numbered` has them; `weights` of the same shape, one vote each where there are none. Equal
    leaders share.
    """
    queries, samples = answers.shape
    rng, rows = np.random.default_rng(seed), np.arange(queries)
    sums = {size: np.zeros(queries) for size in sizes}
    for _ in range(PERMUTATIONS):
        order = rng.permuted(np.tile(np.arange(samples), (queries, 1)), axis=1)[:, : max(sizes)]
        drawn = np.take_along_axis(answers, order, axis=1)
        given = np.ones(drawn.shape) if weights is None else np.take_along_axis(weights, order, axis=1)
        votes = np.zeros((queries, int(answers.max(initial=0)) + 2))  # The last column: no answer.
        for place in range(drawn.shape[1]):
            votes[rows, drawn[:, place]] += given[:, place]
            if place + 1 in sums:
                most = votes[:, :-1].max(axis=1, keepdims=True)
                leads = (votes[:, :-1] >= most - 1e-9) & (most > 0)
                sums[place + 1] += leads[:, 0] / np.maximum(leads.sum(axis=1), 1)
    return {size: np.minimum(total / PERMUTATIONS, 1.0) for size, total in sums.items()}
