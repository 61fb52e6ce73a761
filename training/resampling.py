"""Accuracy of votes and of best of n from stored samples, and intervals by resampling problems. Pure numpy.

Everything is told problem by problem, so that a resample of problems gives an interval, and two ways of
using the same samples are compared on the same problems and the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_ANSWER: Final = -1
"""The number of a sample's answer where it has none: no vote."""
DRAWS: Final = 100
"""Subsets drawn for each size, where a vote has no closed form."""
RESAMPLES: Final = 2000
"""Bootstrap resamples of problems."""

_MOST_SUMS: Final = 2_000_000
"""Sums of votes that are held at once."""
_LEAST_WEIGHT: Final = 1e-9
"""Added to each vote's weight: where a verifier gives nothing to any, they are as good as each other."""


def permutations(samples: int, draws: int = DRAWS, seed: int = 0) -> Ints:
    """Orders of the samples, shape (draws, samples): the first n of a row are a subset without repeats."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(samples), (draws, 1)), axis=1)


def vote(answers: Ints, right: int, n: int, orders: Ints, weights: Floats | None = None) -> float:
    """Chance that a vote of n of the samples is right, ties broken by lot.

    `answers` has a number for each sample, equal for equal answers, NO_ANSWER for none; `right` is the number
    of the right one (NO_ANSWER: nobody gave it). Without weights each sample has one vote.
    """
    if right == NO_ANSWER:
        return 0.0
    kinds = int(answers.max()) + 1
    # With all samples there is but one subset; with one sample each is as likely.
    picked = np.arange(len(answers))[:, None] if n == 1 else orders[: 1 if n == len(answers) else None, :n]
    votes = answers[picked]
    worth = np.ones(picked.shape) if weights is None else weights[picked] + _LEAST_WEIGHT
    rows = np.arange(len(picked))[:, None] * kinds
    counted = votes != NO_ANSWER
    sums = np.bincount((rows + votes)[counted], worth[counted], len(picked) * kinds).reshape(-1, kinds)
    most = sums.max(1, keepdims=True)
    leaders = (sums >= most * (1 - 1e-6)) & (most > 0)
    return float((leaders[:, right] / np.maximum(leaders.sum(1), 1)).mean())


def votes(
    answers: Ints, right: Ints, at: Sequence[int], orders: Ints, weights: Floats | None = None
) -> Floats:
    """`vote` of each of Q queries for each n of `at`, shape (Q, len(at)), all queries at once.

    `answers` and `weights` have shape (Q, N), `right` (Q,), `orders` (R, N).
    """
    queries, kinds = len(answers), int(answers.max(initial=0)) + 2  # The last of them: no answer.
    if queries > 1 and queries * len(orders) * kinds > _MOST_SUMS:
        parts = np.array_split(np.arange(queries), 2)
        return np.vstack(
            [votes(answers[i], right[i], at, orders, None if weights is None else weights[i]) for i in parts]
        )
    found = np.zeros((queries, len(at)))
    # Kinds come first: what is taken over them is then taken of long rows.
    sums = np.zeros((kinds, queries, len(orders)))
    each = np.arange(queries * len(orders)).reshape(queries, -1)
    to, truth = (answers % kinds) * each.size, np.maximum(right, 0)
    places = {n: place for place, n in enumerate(at)}
    for n in range(1, max(at) + 1):
        drawn = orders[:, n - 1]
        sums.reshape(-1)[to[:, drawn] + each] += 1.0 if weights is None else weights[:, drawn] + _LEAST_WEIGHT
        if n in places:
            most = sums[:-1].max(0)
            leaders = (sums[:-1] >= most * (1 - 1e-6)) & (most > 0)
            leads = leaders[truth, np.arange(queries)]
            found[:, places[n]] = (leads / np.maximum(leaders.sum(0), 1)).mean(1)
    if 1 in places:  # Each sample is as likely: exactly.
        found[:, places[1]] = (answers == right[:, None]).mean(1)
    found[right == NO_ANSWER] = 0.0
    return found


def bests(scores: Floats, right: Bools, at: Sequence[int]) -> Floats:
    """`best_of` of each of Q queries for each n of `at`, shape (Q, len(at)), all queries at once.

    `scores` and `right` have shape (Q, N).
    """
    samples = scores.shape[1]
    order = scores.argsort(1)
    ranked = np.take_along_axis(scores, order, 1)
    first = np.ones(ranked.shape, bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    # Of equal scores each is as likely to be chosen: to all of them goes their mean. A row begins anew.
    group = (first.cumsum() - 1).reshape(ranked.shape)
    share = np.bincount(group.ravel(), np.take_along_axis(right, order, 1).ravel()) / np.bincount(
        group.ravel()
    )
    upto = np.array([[_share(rank, samples, n) for n in at] for rank in range(samples + 1)])
    return np.asarray(share[group] @ np.diff(upto, axis=0))


def best_of(scores: Floats, right: Bools, n: int) -> float:
    """Chance that the best scored of n of the samples is right, exactly; ties broken by lot.

    A sample is chosen where it and n - 1 of those with lower scores are drawn; a sample without an answer is
    to have the score -inf, and is never right.
    """
    values, group = np.unique(scores, return_inverse=True)
    upto = np.cumsum(np.bincount(group))
    among = np.array([_share(int(count), len(scores), n) for count in upto])
    chosen = np.diff(among, prepend=0.0)
    share_right = np.bincount(group, right.astype(float), len(values)) / np.bincount(group)
    return float(chosen @ share_right)


def _share(inside: int, samples: int, n: int) -> float:
    """Chance that all of n different samples are of `inside` certain ones: C(inside, n) / C(samples, n)."""
    if inside < n:
        return 0.0
    return float(np.prod(np.arange(inside - n + 1, inside + 1) / np.arange(samples - n + 1, samples + 1)))


def resamples(problems: int, seed: int = 0, count: int = RESAMPLES) -> Floats:
    """Weights of `count` resamples of problems, shape (count, problems): times values, their means.

    The same for the same number of problems, so that whatever is told of the same problems is paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(problems, np.full(problems, 1 / problems), count) / problems


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
