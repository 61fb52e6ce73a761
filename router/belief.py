"""What the votes so far say: how hard the query is, and which answer is right.

The model of a query: its type d is one of D (each has a latent difficulty). A sample of arm a is right with a
probability that is Beta-distributed over the queries of that difficulty (mean p_a(d)). Right samples all
have the same answer; wrong ones agree now and then, as in Ewens's sampling formula with parameter alpha:
the next wrong sample repeats an earlier wrong answer of m votes with probability m / (alpha + wrong).

Some wrong samples have no answer at all. How many of them is the arm's own habit, which differs from query to
query, and that count has its likelihood, too: else blanks would speak against the answer that all others agree on.

So the joint probability of the votes, of difficulty d and of "cluster j is right" (or none is) has a
closed form, and the confidence in an answer is its sum over d. Votes of several arms count for what each
is worth; a model's samples are not independent of its greedy one, and where calibration has measured that
(`Arm.after_greedy`) they are not taken to be. How long samples were is evidence, too (`router.lengths`), and
so are a verifier's scores (`router.profile.Verified`).
Pure functions, numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from router.lengths import Array, Lengths
from router.profile import Arm

SCATTERED = ((0.125, 0.25), (1.0, 0.5), (8.0, 0.25))
"""How many times as scattered as their type has it wrong answers of a query are, and the share of these."""


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes by arm: J clusters, and blanks (samples without an answer, which are wrong for sure)."""

    arms: tuple[Arm, ...]
    counts: Array
    """Shape (len(arms), J): whole numbers."""
    blanks: Array
    """Shape (len(arms),)."""
    lengths: tuple[Lengths, ...] = ()
    """Of each arm's samples; none: not told."""
    evidence: Array | None = None
    """Shape (J,): logarithm of how much likelier the scores of each are where it is right; none: none."""

    @property
    def samples(self) -> int:
        """All votes and blanks."""
        return int(self.counts.sum() + self.blanks.sum())

    @property
    def cut(self) -> int:
        """Samples that were cut before they had an answer: no votes."""
        return sum(len(seen.caps) for seen in self.lengths)


NO_VOTES = Votes((), np.zeros((0, 0)), np.zeros(0))


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is known after the votes."""

    joint: Array
    """Shape (J + 1, D): probability that cluster j is right and difficulty is d; last row: none is right."""
    scatter: Array
    """Shape (D,): Ewens's parameter by type, as the arms that voted have it; NaN without votes."""
    sizes: Array
    """Shape (J,): votes of each cluster."""
    chosen: int = -1
    """The cluster whose answer would be returned, where that is not for votes to say; -1: it is."""

    @cached_property
    def answers(self) -> Array:
        """Shape (J,): probability of each cluster to be right."""
        return np.asarray(self.joint[:-1].sum(axis=1))

    @cached_property
    def difficulty(self) -> Array:
        """Shape (D,): the belief about difficulty."""
        return np.asarray(self.joint.sum(axis=0))

    @cached_property
    def leader(self) -> int:
        """The cluster whose answer would be returned: the one most likely right; -1 without clusters."""
        if self.chosen >= 0 or not len(self.sizes):
            return self.chosen
        return int(np.argmax(self.answers))

    @property
    def confidence(self) -> float:
        """Probability that the leader is right; 0 without clusters."""
        return float(self.answers[self.leader]) if len(self.sizes) else 0.0


def update(prior: Array, votes: Votes) -> Posterior:
    """The posterior after votes; `prior` is the belief about difficulty, shape (D,), before them."""
    clusters = votes.counts.shape[1]
    sizes = votes.counts.sum(axis=0)
    log = np.tile(np.log(np.maximum(prior, 1e-300)), (clusters + 1, 1))
    greedy = {
        arm.model: np.append(counts, 0) > 0
        for arm, counts in zip(votes.arms, votes.counts, strict=True)
        if arm.greedy
    }
    for arm, counts, blanks in zip(votes.arms, votes.counts, votes.blanks, strict=True):
        samples = int(counts.sum() + blanks)
        agreed = np.append(counts, 0).astype(int)  # The last row: none of the clusters is right.
        likelihood = _likelihood(arm, agreed, samples)
        if arm.after_greedy and arm.model in greedy:
            # The model's greedy sample was right under some hypotheses, and wrong under the others.
            was_wrong, was_right = (_likelihood(after, agreed, samples) for after in arm.after_greedy)
            likelihood = np.where(greedy[arm.model][:, None], was_right, was_wrong)
        log += likelihood + arm.log_blanks(int(counts.sum()) - agreed, int(blanks))[:, None]
    for arm, seen in zip(votes.arms, votes.lengths, strict=False):
        if arm.length:
            log += arm.length.log_likelihood(seen)
    scatter = _scatter(votes, len(prior))
    if clusters:
        log += _log_partitions(sizes, scatter)
    if votes.evidence is not None:
        log[:-1] += votes.evidence[:, None]
    log -= log.max()
    joint = np.exp(log)
    return Posterior(joint / joint.sum(), scatter, sizes)


def _likelihood(arm: Arm, agreed: NDArray[np.int64], samples: int) -> Array:
    """Logarithm of the beta-binomial likelihood of so many right samples, shape (len(agreed), D)."""
    right, wrong, total = arm.rising
    return np.asarray(right[agreed] + wrong[samples - agreed] - total[samples])


def _scatter(votes: Votes, types: int) -> Array:
    """Mean of the arms' parameters, by their votes; shape (types,)."""
    weights = votes.counts.sum(axis=1) if votes.counts.size else np.zeros(len(votes.arms))
    if not weights.sum():
        return np.full(types, math.nan)
    scatters = [np.broadcast_to(arm.scatter, (types,)) for arm in votes.arms]
    return np.asarray(np.average(scatters, axis=0, weights=weights))


def _log_partitions(sizes: Array, scatter: Array) -> Array:
    """Logarithm of Ewens's sampling formula: probability that wrong samples fall into these clusters.

    Shape (J + 1, D): where all but cluster j are wrong, and last where all are. The mean over SCATTERED, as
    queries of one type differ in how their wrong answers agree.
    """
    pieces = np.array([math.lgamma(size) for size in sizes])
    wrong = np.append(sizes.sum() - sizes, sizes.sum()).astype(int)
    clusters = np.append(np.full(len(sizes), len(sizes) - 1), len(sizes))
    within = np.append(pieces.sum() - pieces, pieces.sum())
    log = np.full((len(wrong), len(scatter)), -np.inf)
    for factor, share in SCATTERED:
        alpha = factor * scatter
        rising = np.zeros((wrong[-1] + 1, len(scatter)))
        np.cumsum(np.log(alpha + np.arange(wrong[-1])[:, None]), axis=0, out=rising[1:])
        log = np.logaddexp(log, math.log(share) + clusters[:, None] * np.log(alpha) - rising[wrong])
    return np.asarray(within[:, None] + log)
