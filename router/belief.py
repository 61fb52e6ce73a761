"""What the votes so far say: how hard the query is, and which answer is right.

The model of a query: its type d is one of D (each has a latent difficulty). A sample of arm a is right with a
probability that is Beta-distributed over the queries of that difficulty (mean p_a(d)). Right samples all
have the same answer; wrong ones agree now and then, as in Ewens's sampling formula with parameter alpha:
the next wrong sample repeats an earlier wrong answer of m votes with probability m / (alpha + wrong).

Some wrong samples have no answer at all. How many is the arm's own habit, which differs from query to query,
and that has its likelihood, too: else blanks would speak against the answer that all others agree on.

So the joint probability of the votes, of difficulty d and of "cluster j is right" (or none is) has a
closed form, and the confidence in an answer is its sum over d. Votes of several arms count for what each
is worth. Models are wrong together more often than types say, so that what several say is weighed by what
calibration has found (`weight`). A model's samples are not independent of its greedy one, and where
calibration has measured that (`Arm.after_greedy`) they are not taken to be. How long samples were is
evidence, too (`router.lengths`), and so are a verifier's scores (`router.profile.Verified`).
Pure functions, numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

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

    @cached_property
    def by_model(self) -> list[tuple[Arm, Array, float]]:
        """Of each model its first arm, and of all of its arms the votes, shape (J,), and the blanks."""
        rows: dict[str, list[int]] = {}
        for row, arm in enumerate(self.arms):
            rows.setdefault(arm.model, []).append(row)
        return [
            (self.arms[own[0]], self.counts[own].sum(axis=0), float(self.blanks[own].sum()))
            for own in rows.values()
        ]

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
    log = np.zeros((clusters + 1, len(prior)))
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
        log += _log_agreement(votes, len(prior))
    log *= _weight(votes)
    log += np.log(np.maximum(prior, 1e-300))
    if votes.evidence is not None:
        log[:-1] += votes.evidence[:, None]
    log -= log.max()
    joint = np.exp(log)
    return Posterior(joint / joint.sum(), scatter, sizes)


def weight(others: Array, alike: float) -> Array:
    """What the evidence of several models together counts for: 1 for that of one of them. Same shape.

    `others` is how much others than one have told, each of its own chance to be right, from 0 to 1. What
    queries of a type differ in, models share: A of them count as A / (1 + (A - 1) alike), a clustered
    sample's design effect (Kish 1965), where A - 1 is what the others have told.
    """
    return np.asarray(1 / (1 + others * alike))


def _weight(votes: Votes) -> float:
    if len(votes.by_model) < 2:
        return 1.0
    samples = np.array([counts.sum() + blanks for _, counts, blanks in votes.by_model])
    told = samples / (samples + [arm.concentration for arm, _, _ in votes.by_model])
    return float(weight(told.sum() - told.max(), sum(arm.alike for arm in votes.arms) / len(votes.arms)))


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


def _log_agreement(votes: Votes, types: int) -> Array:
    """Logarithm of the probability that wrong answers agree as they do.

    Shape (J + 1, D): where all but cluster j are wrong, and last where all are. Within each model by Ewens's
    sampling formula, a mean over SCATTERED, as queries of one type differ in how their wrong answers agree.
    Between models as in a hierarchical Chinese restaurant process (Teh et al. 2006) with parameter 1: where
    t_c of them gave answer c and model m gave k_m, that is prod (t_c - 1)! prod k_m! / (sum t_c)!. The same
    wrong answer of two models is as likely as two.
    """
    clusters = votes.counts.shape[1]
    within = np.zeros((len(SCATTERED), clusters + 1, types))
    between, gave_it = np.zeros(clusters + 1), np.zeros(clusters + 1, np.int64)
    for arm, counts, _ in votes.by_model:
        own = np.append(counts, 0.0).astype(np.int64)
        total = int(own.sum())
        if not total:
            continue
        answers = (own > 0).sum() - (own > 0)
        log_scatter, rising = _rising(arm, 1 << (total - 1).bit_length(), SCATTERED)
        same = _log_factorials(np.maximum(own - 1, 0))
        within += answers[:, None] * log_scatter[:, None]
        within += (same.sum() - same)[:, None] - rising[:, total - own]
        between += _log_factorials(answers)
        gave_it += own > 0
    same = _log_factorials(np.maximum(gave_it - 1, 0))
    between += same.sum() - same - _log_factorials(gave_it.sum() - gave_it)
    most = within.max(axis=0)
    shares = np.array([share for _, share in SCATTERED])
    return np.asarray(most + np.log(np.einsum("s,sjd->jd", shares, np.exp(within - most))) + between[:, None])


def _log_factorials(numbers: NDArray[np.int64]) -> Array:
    return np.array([math.lgamma(number + 1) for number in numbers.tolist()])


@lru_cache(maxsize=256)
def _rising(arm: Arm, most: int, scattered: tuple[tuple[float, float], ...]) -> tuple[Array, Array]:
    """Of each of `scattered`, of which there are S, the logarithm of Ewens's parameter, shape (S, D).

    And of its rising factorials of 0 to `most`, shape (S, most + 1, D).
    """
    alpha = np.array([factor for factor, _ in scattered])[:, None] * np.broadcast_to(
        arm.scatter, arm.p_right.shape
    )
    rising = np.zeros((len(alpha), most + 1, alpha.shape[1]))
    np.cumsum(np.log(alpha[:, None] + np.arange(most)[:, None]), axis=1, out=rising[:, 1:])
    return np.log(alpha), rising
