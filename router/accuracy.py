"""How right the returned answer will be after more samples: many plans and many beliefs at once. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.belief import Posterior, weight
from router.lengths import Array
from router.profile import ROUND_SIZES, RUNS, Arm, Verified, together

MOST_RIVALS = 4
"""Answers beside the leader that are looked ahead for."""

LEAST_RIVAL = 1e-5
"""Answers less likely than this are none."""

MOST = max(ROUND_SIZES)

SIZES, VOTES = (np.array(column) for column in zip(*RUNS, strict=True))
"""Shape (V,), V is len(RUNS): of so many samples so many fall to one answer."""

FIRST = np.array([RUNS.index((size, 0)) for size in ROUND_SIZES])
"""Shape (H,): where the runs of each of ROUND_SIZES begin."""

OTHERS = SIZES - VOTES
"""Shape (V,): so many of them do not."""

BEGINS = FIRST[np.searchsorted(ROUND_SIZES, SIZES)]
"""Shape (V,): where the runs of its size begin."""

WAYS = np.array([math.comb(n, v) for n, v in RUNS], np.float64)
"""Shape (V,): orders in which they may come."""

LEADS = ((np.array(ROUND_SIZES)[:, None] == SIZES) & (VOTES > 0)).astype(np.float32)
"""Shape (H, V): what counts for each of ROUND_SIZES; without a vote no answer can lead."""

STEPS = np.arange(MOST)
"""Samples one after the other."""

LEAST, GREATEST = 1e-37, 1e37
"""Of single-precision numbers that are worth telling from nothing, and from each other."""


@dataclass(frozen=True, eq=False)
class Stack:
    """The tables of N arms side by side, types first: a product with beliefs goes through them once.

    H is len(ROUND_SIZES), V is len(RUNS).
    """

    p_right: Array
    """Shape (N, D)."""
    votes: Array
    """Shape (D, H, N): accuracy of votes."""
    runs: NDArray[np.float32]
    """Shape (D, V, N): chance that of n samples v are right. Single precision is enough, and faster."""
    each: NDArray[np.float32]
    """Shape (N, D, V): the same, by arm."""
    weight: Array
    """Shape (N, D): pseudo-counts of right samples."""
    concentration: Array
    """Shape (N,)."""
    brings: Array
    """Shape (MOST + 1, N): what scores of 0, 1, ... right samples say together, in log-odds; 0: none."""
    costs: Array
    """Shape (N,): what the score of a wrong one says, in log-odds; below 0 where scores tell."""
    scored: bool
    """Some are scored."""
    alike: float
    """Mean of the arms': see `router.profile.Arm`."""
    first: NDArray[np.int64]
    """Shape (M,): the first arm of each model."""
    model: NDArray[np.int64]
    """Shape (N,): of each arm, its model's number."""

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
        runs = np.array([arm.runs.T for arm, _ in arms]) * WAYS
        each = np.where(runs > LEAST, runs, 0.0).astype(np.float32, order="C")
        return Stack(
            p_right,
            np.ascontiguousarray(np.array(tables).transpose(2, 1, 0)),
            np.ascontiguousarray(each.transpose(1, 2, 0)),
            each,
            concentration[:, None] * p_right,
            concentration,
            np.array(
                [
                    [together(told.right * n, n, told.alike) if told else 0.0 for _, told in arms]
                    for n in range(MOST + 1)
                ]
            ),
            np.array([told.wrong if told else 0.0 for _, told in arms]),
            any(told for _, told in arms),
            float(np.mean([arm.alike for arm, _ in arms])),
            *np.unique([arm.model for arm, _ in arms], return_index=True, return_inverse=True)[1:],
        )

    def kept(self, difficulty: Array, had: Array) -> Array:
        """What samples of each arm bring of what its own curve promises, shape (B, N).

        `difficulty`, shape (B, D), are beliefs; `had`, shape (B, N), the samples so far of each arm's model.
        What other models have told is shared, as in `router.belief.weight`. A model that is believed to be
        right less often than the best that has voted brings nothing: on recordings (seven models on
        MATH-500, six on GPQA) its votes moved the answer as often away from the truth as towards it, where
        types, which hold models to be independent, promise two points and more.
        """
        good = (difficulty @ self.p_right[self.first].T)[:, self.model]
        best = (good * (had > 0)).max(axis=1, keepdims=True)
        told = had / (had + self.concentration)
        others = told[:, self.first].sum(axis=1, keepdims=True) - told
        return np.where(good >= best, weight(others, self.alike), 0.0)

    def among(self, types: NDArray[np.int64], sizes: int) -> Stack:
        """Their tables for some types of queries, and the first of ROUND_SIZES."""
        runs = int(FIRST[sizes]) if sizes < len(FIRST) else len(RUNS)
        return replace(
            self,
            p_right=self.p_right[:, types],
            votes=np.ascontiguousarray(self.votes[types, :sizes]),
            runs=np.ascontiguousarray(self.runs[types, :runs]),
            each=np.ascontiguousarray(self.each[:, types, :runs]),
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
        order = np.argsort(-chances, axis=1, kind="stable")
        if chosen >= 0:
            order = np.array([[chosen, *(j for j in row if j != chosen)] for row in order.tolist()])
        # The most likely others and, last, one that was not seen yet; then the leader.
        others = min(MOST_RIVALS, answers - 1)
        if beliefs == 1:
            others = int((chances[0, order[0, 1 : others + 1]] > LEAST_RIVAL).sum())
        rows = np.empty((beliefs, others + 2), np.int64)
        rows[:, :others], rows[:, others], rows[:, -1] = order[:, 1 : others + 1], answers, order[:, 0]
        at = np.arange(beliefs)
        votes = np.zeros((beliefs, answers + 1))
        votes[:, :-1] = sizes
        votes = votes[at[:, None], rows]
        joint = joint[at[:, None], rows]
        means = np.matmul(joint, scatter[:, :, None])[..., 0] / np.maximum(joint.sum(axis=2), 1e-300)
        return cls(
            difficulty,
            chances[at, order[:, 0]],
            votes[:, -1:],
            sizes.sum(axis=1, keepdims=True),
            means[:, -1:],
            means[:, :-1],
            votes[:, :-1],
            joint,
        )

    def accuracies(self, stack: Stack, had: Array) -> Array:
        """Expected P(the returned answer is right) after more samples, by arm and the stack's ROUND_SIZES.

        Shape (B, N, H). `had` are the samples so far of each arm's model, shape (B, N). Without answers it is
        what calibration measured for a vote of that size. Otherwise the leader stays where it is right; where
        another answer is right (one that has been seen, or none yet), it must gather enough votes to overtake
        by the rules of `router.belief`, while wrong votes still fall to the leader. Of the samples so far at
        most that answer's votes were right: it is right so much less often than curves say.
        """
        beliefs, (types, sizes, arms) = len(self.difficulty), stack.votes.shape
        if not self.sizes.shape[1]:
            doubt = stack.concentration / (stack.concentration + had)
            once = (self.difficulty @ stack.votes.reshape(types, -1)).reshape(beliefs, sizes, arms)
            return np.asarray((once * doubt[:, None]).transpose(0, 2, 1))
        runs = stack.runs.shape[1]
        chances = self.joint.astype(np.float32).reshape(-1, types) @ stack.runs.reshape(types, -1)
        chances = chances.reshape(beliefs, -1, runs, arms)  # (B, R + 1, V, N)
        rises, holds = chances[:, :-1], chances[:, -1]
        kept = stack.kept(self.difficulty, had)
        for arm in np.flatnonzero((had * kept).any(axis=0)).tolist():
            one = had[:, arm].nonzero()[0] if beliefs > 1 else slice(None)
            weight, p_right = stack.weight[arm], stack.p_right[arm]
            doubt = (weight + self.sizes[one, :, None]) / (weight + had[one, arm, None, None] * p_right)
            right = np.minimum(doubt, 1.0) * self.joint[one, :-1]  # (B, R, D)
            rises[one, ..., arm] = right.astype(np.float32) @ stack.each[arm]
        risen = np.matmul(LEADS[:sizes, :runs], self._gains(stack, rises, holds))  # (B, H, N)
        risen = risen * kept[:, None]
        # Of many votes not all the ways to the lead are counted: they bring no less than fewer do.
        risen = np.maximum.accumulate(risen, axis=1).transpose(0, 2, 1)
        return np.asarray(np.minimum(self.confidence[:, None, None] + risen, 1.0))

    def _gains(self, stack: Stack, rises: NDArray[np.float32], holds: NDArray[np.float32]) -> NDArray[Any]:
        """Rise in P(right) by answers that get v of n votes and so the lead, shape (B, V, N).

        Of the n - v others the leader gets its share of the wrong votes, u. Where the leader is right, the v
        fall to the other one by Ewens's formula, and where that is right the u fall so to the leader. Scores
        of right samples speak for their answer, those of wrong ones against theirs.
        """
        runs = rises.shape[2]
        votes = VOTES[:runs]
        leaders = np.rint(self.led / (self.scatter + self.total) * OTHERS[:runs]).astype(np.int64)  # (B, V)
        # Chance that 0, 1, 2, ... wrong votes fall to each; a new one begins with `scatter`.
        joins = self.sizes[..., None] + STEPS
        joins[:, -1, 0] = self.scatter[:, 0]
        falls = np.ones((*self.sizes.shape, MOST + 1))
        wrong = self.scatter + self.total - self.led
        np.cumprod(joins / (wrong + STEPS)[:, None], axis=2, out=falls[..., 1:])
        own = self.led / (self.scatters + self.total - self.sizes)  # (B, R)
        at = BEGINS[:runs] + leaders  # (B, V): the run of u votes
        shifts = falls[..., votes] * (WAYS[:runs] / WAYS[at])[:, None] / own[..., None] ** leaders[:, None]
        holds = holds[np.arange(len(at))[:, None], at]  # (B, V, N)
        if stack.scored:
            told = stack.brings[votes] - stack.costs * leaders[..., None]  # (B, V, N)
            holds = (holds * np.exp(-told)).astype(np.float32)
        gains = holds[:, None] * np.minimum(shifts, GREATEST).astype(np.float32)[..., None]
        np.subtract(rises, gains, out=gains)
        return np.asarray(np.maximum(gains, 0.0, out=gains).sum(axis=1))


def race(posterior: Posterior) -> Races:
    """Of one belief."""
    return Races.of(posterior.joint[None], posterior.sizes[None], posterior.scatter[None], posterior.chosen)
