"""How right the returned answer will be after more samples: many plans and many beliefs at once. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from router.belief import Posterior
from router.lengths import Array
from router.profile import ROUND_SIZES, RUNS, Arm, Verified

MOST_RIVALS = 4
"""Answers beside the leader that are looked ahead for."""

LEAST_RIVAL = 1e-5
"""Answers less likely than this are none."""

MOST = max(ROUND_SIZES)

SIZES, VOTES = (np.array(column) for column in zip(*RUNS, strict=True))
"""Shape (len(RUNS),): of so many samples so many fall to one answer."""

FIRST = np.array([RUNS.index((size, 0)) for size in ROUND_SIZES])
"""Shape (H,): where the runs of each of ROUND_SIZES begin."""

WAYS = np.array([math.comb(n, v) for n, v in RUNS], np.float64)
"""Shape (len(RUNS),): orders in which they may come."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The tables of N arms side by side; H is len(ROUND_SIZES)."""

    p_right: Array
    """Shape (N, D)."""
    votes: Array
    """Shape (N, H, D): accuracy of votes."""
    runs: Array
    """Shape (N, len(RUNS), D): chance of one sequence of n samples of which these v are right."""
    weight: Array
    """Shape (N, D): pseudo-counts of right samples."""
    concentration: Array
    """Shape (N,)."""
    brings: Array
    """Shape (N, MOST + 1): what scores of 0, 1, ... right samples say together, in log-odds; 0: none."""
    costs: Array
    """Shape (N,): what the score of a wrong one says, in log-odds; below 0 where scores tell."""
    scored: bool
    """Some are scored."""

    @staticmethod
    @lru_cache(maxsize=256)
    def of(arms: tuple[tuple[Arm, Verified | None], ...]) -> Stack:
        """Of arms, each with what scores its samples."""
        p_right = np.array([arm.p_right for arm, _ in arms])
        concentration = np.array([arm.concentration for arm, _ in arms])
        tables = [
            told.votes if told else np.tile(arm.p_right, (len(ROUND_SIZES), 1)) if arm.greedy else arm.votes
            for arm, told in arms
        ]
        return Stack(
            p_right,
            np.array(tables),
            np.array([arm.runs for arm, _ in arms]),
            concentration[:, None] * p_right,
            concentration,
            np.array(
                [
                    [told.together(told.right * n, n) if told else 0.0 for n in range(MOST + 1)]
                    for _, told in arms
                ]
            ),
            np.array([told.wrong if told else 0.0 for _, told in arms]),
            any(told for _, told in arms),
        )


@dataclass(frozen=True, eq=False)
class Races:
    """Beliefs with equally many answers, B of them: the leader, and R others that may overtake it."""

    difficulty: Array
    """Shape (B, D): belief about the type of the query."""
    confidence: Array
    """Shape (B,): P(the leader is right)."""
    led: Array
    """Shape (B,): votes of the leader."""
    total: Array
    """Shape (B,): all votes."""
    scatter: Array
    """Shape (B,): where the leader is right."""
    scatters: Array
    """Shape (B, R): where each other is."""
    sizes: Array
    """Shape (B, R): votes of the others; the last has none: it was not seen yet. R is 0 without answers."""
    joint: Array
    """Shape (B, R, D): P(it is right, and the type)."""
    lead: Array
    """Shape (B, D): the same of the leader."""
    types: NDArray[np.int64] | slice
    """Shape (D,): which of the profile's types of queries these are."""

    @classmethod
    def of(cls, posteriors: Sequence[Posterior], types: NDArray[np.int64] | None = None) -> Races:
        """Of beliefs with equally many answers; of all types, or of those that count."""
        joint = np.array([one.joint for one in posteriors])
        if types is not None:
            joint = joint[:, :, types]
        chosen = slice(None) if types is None else types
        sizes = np.array([one.sizes for one in posteriors])
        scatter = np.array([one.scatter for one in posteriors])[:, chosen]
        difficulty, answers = joint.sum(axis=1), joint[:, :-1].sum(axis=2)
        if not sizes.shape[1]:
            none = np.zeros(len(joint))
            return cls(difficulty, none, none, none, none, sizes, sizes, joint[:, :0], joint[:, 0], chosen)
        leader = np.array([one.leader for one in posteriors])
        at = np.arange(len(joint))
        # The most likely others and, last, one that was not seen yet.
        chances = answers.copy()
        chances[at, leader] = -1.0
        others = np.argsort(-chances, axis=1, kind="stable")[:, : min(MOST_RIVALS, sizes.shape[1] - 1)]
        if len(joint) == 1:
            others = others[:, chances[0, others[0]] > LEAST_RIVAL]
        rows = np.column_stack([others, np.full(len(joint), sizes.shape[1])])
        lead, others_right = joint[at, leader], joint[at[:, None], rows]
        return cls(
            difficulty,
            answers[at, leader],
            sizes[at, leader],
            sizes.sum(axis=1),
            _mean(scatter, lead),
            _mean(scatter[:, None], others_right),
            np.column_stack([sizes, np.zeros(len(joint))])[at[:, None], rows],
            others_right,
            lead,
            chosen,
        )

    def accuracies(self, stack: Stack, had: Array, sizes: int = len(ROUND_SIZES)) -> Array:
        """Expected P(the returned answer is right) after more samples, by arm and the first of ROUND_SIZES.

        Shape (B, N, sizes). `had` are the samples so far of each arm's model, shape (N,) or (B, N). Without
        answers it is what calibration measured for a vote of that size. Otherwise the leader stays where it
        is right; where another answer is right (one that has been seen, or none yet), it must gather enough
        votes to overtake by the rules of `router.belief`, while wrong votes still fall to the leader. Of the
        samples so far at most that answer's votes were right: it is right so much less often than curves say.
        """
        had = np.broadcast_to(had, (len(self.difficulty), len(stack.p_right)))
        if not self.sizes.shape[1]:
            doubt = stack.concentration / (stack.concentration + had)
            votes = stack.votes[:, :sizes][..., self.types]
            return np.asarray(np.einsum("bd,nhd->bnh", self.difficulty, votes) * doubt[..., None])
        last = len(RUNS) if sizes == len(FIRST) else int(FIRST[sizes])
        runs = stack.runs[:, :last][..., self.types]  # (N, V, D)
        weight, p_right = stack.weight[:, self.types], stack.p_right[:, self.types]
        doubt = weight[:, None] + self.sizes[:, None, :, None]
        doubt = doubt / (weight + had[..., None] * p_right)[:, :, None]
        right = np.minimum(doubt, 1.0) * self.joint[:, None]  # (B, N, R, D)
        rises = np.matmul(runs, right.transpose(0, 1, 3, 2))  # (B, N, V, R): chance of one such sequence
        holds = np.matmul(runs, self.lead.T).transpose(2, 0, 1)  # (B, N, V): likewise, votes for the leader
        gains = self._gains(stack, rises, holds).sum(axis=3) * WAYS[:last]
        # Of many votes not all the ways to the lead are counted: they bring no less than fewer do.
        risen = np.maximum.accumulate(np.add.reduceat(gains, FIRST[:sizes], axis=2), axis=2)
        return np.asarray(np.minimum(self.confidence[:, None, None] + risen, 1.0))

    def _gains(self, stack: Stack, rises: Array, holds: Array) -> Array:
        """Rise in P(right) by an answer that gets v of n votes and so the lead, shape (B, N, V, R); else 0.

        Of the n - v others the leader gets its share of the wrong votes, u. Where the leader is right, the v
        fall to the other one by Ewens's formula, and where that is right the u fall so to the leader. Scores
        of right samples speak for their answer, those of wrong ones against theirs.
        """
        last = rises.shape[2]
        sizes, votes = SIZES[:last], VOTES[:last]
        scatter, led, total = (value[:, None] for value in (self.scatter, self.led, self.total))
        share = led / (scatter + total)  # (B, 1)
        leaders = np.rint(share * (sizes - votes)).astype(np.int64)  # (B, V)
        # Chance that 0, 1, 2, ... wrong votes fall to each; a new one begins with `scatter`.
        joins = self.sizes[..., None] + np.arange(MOST)
        joins = np.where(joins > 0, joins, scatter[..., None])
        falls = np.cumprod(joins / (scatter + total - led + np.arange(MOST))[:, None], axis=2)  # (B, R, MOST)
        falls = np.concatenate([np.ones((*falls.shape[:2], 1)), falls], axis=2)[..., votes]  # (B, R, V)
        own = led / (self.scatters + total - self.sizes)  # (B, R)
        shifts = own[:, None] ** leaders[..., None] / falls.transpose(0, 2, 1)  # (B, V, R)
        at = FIRST[np.searchsorted(ROUND_SIZES, sizes)] + leaders  # (B, V): the run of u votes
        holds = np.take_along_axis(holds, np.broadcast_to(at[:, None], holds.shape), axis=2)
        if stack.scored:
            told = stack.brings[:, votes] + stack.costs[:, None] * -leaders[:, None]  # (B, N, V)
            holds = holds * np.exp(-told)
        # Without a vote it cannot lead.
        return np.asarray(np.maximum(rises - holds[..., None] / shifts[:, None], 0.0) * (votes > 0)[:, None])


def _mean(values: Array, weights: Array) -> Array:
    """Weighted mean over the last axis."""
    return np.asarray((values * weights).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1e-300))


def expected_accuracy(posterior: Posterior, arm: Arm, samples: int, had: int = 0) -> float:
    """Expected P(the returned answer is right) after so many more samples of one arm (one of ROUND_SIZES)."""
    stack = Stack.of(((arm, None),))
    return float(Races.of([posterior]).accuracies(stack, np.array([had]))[0, 0, ROUND_SIZES.index(samples)])
