"""How right the returned answer will be after more samples, for many beliefs at once. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.belief import Posterior
from router.lengths import Array
from router.profile import ROUND_SIZES, Arm

MOST_RIVALS = 4
"""Answers beside the leader that are looked ahead for."""


def expected_accuracy(
    posterior: Posterior, arm: Arm, samples: int, had: int = 0, after_greedy: bool = False
) -> float:
    """Expected P(the returned answer is right) after so many more samples of an arm (one of ROUND_SIZES).

    Without clusters, what calibration measured for a vote of that size. Otherwise: the leader stays where
    it is right; where another answer is right (one that has been seen, or none yet), it must gather
    enough votes to overtake by the rules of `router.belief`, while wrong votes still fall to the leader. Of
    the `had` samples so far of the arm at most the votes of that answer were right: it is right so much less
    often than its curve says. So it is where the model's greedy sample has been bought, and then was wrong.
    """
    return float(Races.of([posterior]).accuracies(arm, samples, had, after_greedy)[0])


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
    """Shape (B,)."""
    sizes: Array
    """Shape (B, R): votes of the others; the last has none: it was not seen yet. R is 0 without answers."""
    joint: Array
    """Shape (B, R, D): P(it is right, and the type)."""
    types: NDArray[np.int64]
    """Shape (D,): which of the profile's types of queries these are."""

    @classmethod
    def of(cls, posteriors: Sequence[Posterior], types: NDArray[np.int64] | None = None) -> Races:
        """Of beliefs with equally many answers; of all types, or of those that count."""
        joint = np.array([one.joint for one in posteriors])
        if types is None:
            types = np.arange(joint.shape[2])
        else:
            joint = joint[:, :, types]
        sizes = np.array([one.sizes for one in posteriors])
        scatter = np.array([one.scatter for one in posteriors])
        difficulty, answers = joint.sum(axis=1), joint[:, :-1].sum(axis=2)
        if not sizes.shape[1]:
            none = np.zeros(len(joint))
            return cls(difficulty, none, none, none, scatter, sizes, joint[:, :0], types)
        leader = np.array([one.leader for one in posteriors])
        at = np.arange(len(joint))
        # The most likely others and, last, one that was not seen yet.
        chances = answers.copy()
        chances[at, leader] = -1.0
        others = np.argsort(-chances, axis=1, kind="stable")[:, : min(MOST_RIVALS, sizes.shape[1] - 1)]
        rows = np.column_stack([others, np.full(len(joint), sizes.shape[1])])
        return cls(
            difficulty,
            answers[at, leader],
            sizes[at, leader],
            sizes.sum(axis=1),
            scatter,
            np.column_stack([sizes, np.zeros(len(joint))])[at[:, None], rows],
            joint[at[:, None], rows],
            types,
        )

    def accuracies(self, arm: Arm, samples: int, had: Array | int = 0, after_greedy: bool = False) -> Array:
        """Shape (B,): see `expected_accuracy`; `had` may have a number for each belief."""
        if after_greedy and arm.after_greedy:
            arm, _ = arm.after_greedy
        row, p_right, had = ROUND_SIZES.index(samples), arm.p_right[self.types], np.asarray(had)
        if not self.sizes.shape[1]:
            doubt = arm.concentration / (arm.concentration + had)
            once = p_right if arm.greedy else arm.votes[row][self.types]
            return np.asarray(self.difficulty @ once) * doubt
        chance = arm.at_least[row][self.types, self._votes_to_lead(p_right, samples)]
        weight, had = arm.concentration * p_right, had.reshape(-1, 1, 1)
        doubt = np.minimum(1.0, (weight + self.sizes[..., None]) / (weight + had * p_right))
        return np.asarray(np.minimum(self.confidence + (self.joint * chance * doubt).sum(axis=(1, 2)), 1.0))

    def _votes_to_lead(self, p_right: Array, samples: int) -> NDArray[np.int64]:
        """Votes that an answer needs of so many to overtake, shape (B, R, D); one more: it never does.

        Each vote for it multiplies its odds against the leader by p / (1 - p), and by what Ewens's formula
        says of a wrong vote for it where the leader is right. The votes that are not for it fall to the
        leader in the leader's share of the wrong ones.
        """
        odds = np.log(p_right / (1 - p_right))
        votes = np.arange(samples)
        scatter, led, total = (value[:, None, None] for value in (self.scatter, self.led, self.total))
        sizes = self.sizes[..., None]
        # Logarithm of the chance that 1, 2, ... wrong votes fall to each; a new one begins with `scatter`.
        joins = np.where(sizes + votes > 0, sizes + votes, scatter)
        falls = np.cumsum(np.log(joins) - np.log(scatter + total - led + votes), axis=2)
        gained = (votes + 1)[:, None] * odds - falls[..., None]
        mass = self.joint.sum(axis=2)
        behind = np.log(np.maximum(self.confidence, 1e-12)[:, None] / np.maximum(mass, 1e-12))
        share = led / (scatter + total)
        # What one more vote for the leader is worth to it, where this answer is right.
        held = np.maximum(odds + np.log((scatter + total - sizes) / led), 0.0)
        lost = (samples - 1 - votes)[:, None] * (share * held)[:, :, None, :]
        ahead = gained > behind[..., None, None] + lost
        return np.where(ahead.any(axis=2), ahead.argmax(axis=2) + 1, samples + 1)
