"""How right the returned answer will be after more samples: many plans and many beliefs at once. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

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
"""Shape (V,), V is len(RUNS): of so many samples so many fall to one answer."""

FIRST = np.array([RUNS.index((size, 0)) for size in ROUND_SIZES])
"""Shape (H,): where the runs of each of ROUND_SIZES begin."""

BEGINS = FIRST[np.searchsorted(ROUND_SIZES, SIZES)]
"""Shape (V,): where the runs of its size begin."""

WAYS = np.array([math.comb(n, v) for n, v in RUNS], np.float64)
"""Shape (V,): orders in which they may come."""

LEADS = ((SIZES[:, None] == ROUND_SIZES) & (VOTES > 0)[:, None]).astype(np.float32)
"""Shape (V, H): what counts for each of ROUND_SIZES; without a vote no answer can lead."""

LEAST, GREATEST = 1e-37, 1e37
"""Of single-precision numbers that are worth telling from nothing, and from each other."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The tables of N arms side by side; H is len(ROUND_SIZES)."""

    p_right: Array
    """Shape (N, D)."""
    votes: Array
    """Shape (N, H, D): accuracy of votes."""
    runs: NDArray[np.float32]
    """Shape (N, V, D): chance that of n samples v are right. Single precision is enough, and twice as fast."""
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
        runs = np.array([arm.runs for arm, _ in arms]) * WAYS[:, None]
        return Stack(
            p_right,
            np.array(tables),
            np.where(runs > LEAST, runs, 0.0).astype(np.float32),
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

    def among(self, types: NDArray[np.int64], sizes: int) -> Stack:
        """Their tables for some types of queries, and the first of ROUND_SIZES."""
        runs = int(FIRST[sizes]) if sizes < len(FIRST) else len(RUNS)
        return replace(
            self,
            p_right=self.p_right[:, types],
            votes=self.votes[:, :sizes, types],
            runs=self.runs[:, :runs, types],
            weight=self.weight[:, types],
        )


@dataclass(frozen=True, eq=False)
class Races:
    """Beliefs with equally many answers, B of them: the leader, and R others that may overtake it."""

    difficulty: Array
    """Shape (B, D): belief about the type of the query."""
    confidence: Array
    """Shape (B,): P(the leader is right)."""
    led: Array
    """Shape (B, 1): votes of the leader."""
    total: Array
    """Shape (B, 1): all votes."""
    scatter: Array
    """Shape (B, 1): where the leader is right."""
    scatters: Array
    """Shape (B, R): where each other is."""
    sizes: Array
    """Shape (B, R): votes of the others; the last has none: it was not seen yet. R is 0 without answers."""
    joint: Array
    """Shape (B, R + 1, D): P(it is right, and the type), and last that of the leader."""

    @classmethod
    def of(cls, joint: Array, sizes: Array, scatter: Array, chosen: int = -1) -> Races:
        """Of beliefs as `router.belief.Posterior` has them: shapes (B, J + 1, D), (B, J) and (B, D)."""
        beliefs, answers = sizes.shape
        difficulty = joint.sum(axis=1)
        if not answers:
            none = np.zeros((beliefs, 1))
            return cls(difficulty, none[:, 0], none, none, none, sizes, sizes, joint[:, :0])
        chances = joint.sum(axis=2)
        chances[:, -1] = -1.0
        at = np.arange(beliefs)
        leader = np.full(beliefs, chosen) if chosen >= 0 else chances.argmax(axis=1)
        confidence = chances[at, leader]
        # The most likely others and, last, one that was not seen yet.
        chances[at, leader] = -1.0
        others = min(MOST_RIVALS, answers - 1)
        if beliefs == 1:
            others = min(others, int((chances > LEAST_RIVAL).sum()))
        rows = np.empty((beliefs, others + 2), np.int64)
        if others:
            rows[:, :others] = np.argsort(-chances, axis=1, kind="stable")[:, :others]
        rows[:, others], rows[:, -1] = answers, leader
        votes = np.zeros((beliefs, answers + 1))
        votes[:, :-1] = sizes
        votes = votes[at[:, None], rows]
        joint = joint[at[:, None], rows]
        means = np.matmul(joint, scatter[:, :, None])[..., 0] / np.maximum(joint.sum(axis=2), 1e-300)
        return cls(
            difficulty,
            confidence,
            votes[:, -1:],
            sizes.sum(axis=1, keepdims=True),
            means[:, -1:],
            means[:, :-1],
            votes[:, :-1],
            joint,
        )

    def accuracies(self, stack: Stack, had: Array) -> Array:
        """Expected P(the returned answer is right) after more samples, by arm and the stack's ROUND_SIZES.

        Shape (B, N, H). `had` are the samples so far of each arm's model, shape (N,) or (B, N). Without
        answers it is what calibration measured for a vote of that size. Otherwise the leader stays where it
        is right; where another answer is right (one that has been seen, or none yet), it must gather enough
        votes to overtake by the rules of `router.belief`, while wrong votes still fall to the leader. Of the
        samples so far at most that answer's votes were right: it is right so much less often than curves say.
        """
        beliefs, (arms, sizes, types) = len(self.difficulty), stack.votes.shape
        had = had if had.ndim == 2 else np.broadcast_to(had, (beliefs, arms))
        if not self.sizes.shape[1]:
            doubt = stack.concentration / (stack.concentration + had)
            once = (self.difficulty @ stack.votes.reshape(-1, types).T).reshape(beliefs, arms, sizes)
            return np.asarray(once * doubt[..., None])
        runs = stack.runs.shape[1]
        chances = self.joint.astype(np.float32).reshape(-1, types) @ stack.runs.reshape(-1, types).T
        chances = chances.reshape(beliefs, -1, arms, runs)  # (B, R + 1, N, V)
        rises, holds = chances[:, :-1], chances[:, -1]
        one, arm = had.nonzero()
        if len(one):
            weight = stack.weight[arm, None]  # (M, 1, D)
            most = weight + had[one, arm, None, None] * stack.p_right[arm, None]
            right = np.minimum((weight + self.sizes[one, :, None]) / most, 1.0) * self.joint[one, :-1]
            rises[one, :, arm] = np.matmul(right.astype(np.float32), stack.runs[arm].transpose(0, 2, 1))
        # Of many votes not all the ways to the lead are counted: they bring no less than fewer do.
        risen = np.maximum.accumulate(self._gains(stack, rises, holds) @ LEADS[:runs, :sizes], axis=2)
        return np.asarray(np.minimum(self.confidence[:, None, None] + risen, 1.0))

    def _gains(self, stack: Stack, rises: NDArray[np.float32], holds: NDArray[np.float32]) -> NDArray[Any]:
        """Rise in P(right) by answers that get v of n votes and so the lead, shape (B, N, V).

        Of the n - v others the leader gets its share of the wrong votes, u. Where the leader is right, the v
        fall to the other one by Ewens's formula, and where that is right the u fall so to the leader. Scores
        of right samples speak for their answer, those of wrong ones against theirs.
        """
        runs = rises.shape[3]
        sizes, votes = SIZES[:runs], VOTES[:runs]
        leaders = np.rint(self.led / (self.scatter + self.total) * (sizes - votes)).astype(np.int64)  # (B, V)
        # Chance that 0, 1, 2, ... wrong votes fall to each; a new one begins with `scatter`.
        joins = self.sizes[..., None] + np.arange(MOST)
        joins[..., 0] = np.where(self.sizes > 0, self.sizes, self.scatter)
        falls = np.ones((*self.sizes.shape, MOST + 1))
        wrong = self.scatter + self.total - self.led
        np.cumprod(joins / (wrong + np.arange(MOST))[:, None], axis=2, out=falls[..., 1:])
        own = self.led / (self.scatters + self.total - self.sizes)  # (B, R)
        at = BEGINS[:runs] + leaders  # (B, V): the run of u votes
        shifts = falls[..., votes] * (WAYS[:runs] / WAYS[at])[:, None] / own[..., None] ** leaders[:, None]
        holds = np.take_along_axis(holds, at[:, None], axis=2)  # (B, N, V)
        if stack.scored:
            told = stack.brings[:, votes] + stack.costs[:, None] * -leaders[:, None]  # (B, N, V)
            holds = (holds * np.exp(-told)).astype(np.float32)
        gains = holds[:, None] * np.minimum(shifts, GREATEST).astype(np.float32)[:, :, None]
        np.subtract(rises, gains, out=gains)
        return np.asarray(np.maximum(gains, 0.0, out=gains).sum(axis=1))


def race(posterior: Posterior) -> Races:
    """Of one belief."""
    return Races.of(
        posterior.joint[None], posterior.sizes[None], posterior.scatter[None], posterior.chosen
    )


def expected_accuracy(posterior: Posterior, arm: Arm, samples: int, had: int = 0) -> float:
    """Expected P(the returned answer is right) after so many more samples of one arm (one of ROUND_SIZES)."""
    stack = Stack.of(((arm, None),))
    return float(race(posterior).accuracies(stack, np.array([had]))[0, 0, ROUND_SIZES.index(samples)])
