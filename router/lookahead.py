"""What one more sample would tell: its outcomes, and what would be believed after each.

A sample that decides nothing by itself may be worth its price all the same: a short one by a cheap model that
agrees says that no dearer one is needed, a long one says which. An outcome is where the sample's answer falls
(an answer that was seen, another, or none, where a cap cuts it) and which part of the foreseen lengths its
length falls in. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from router.belief import Posterior, Votes
from router.lengths import UNSEEN, Array, LengthCurve, Lengths, below
from router.profile import Arm

THIRDS = (-0.43, 0.43)
"""Where lengths are told apart, in standard deviations of what is foreseen: thirds of a normal one."""
LEAST_CHANCE = 1e-3
"""Outcomes less likely are not looked at."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One way in which a sample may come out."""

    chance: float
    posterior: Posterior


def outcomes(posterior: Posterior, votes: Votes, arm: Arm, cap: float) -> Iterator[Outcome]:
    """The outcomes of one more sample of an arm, cut at `cap` tokens (infinite: not cut)."""
    agreed, samples, seen = so_far(posterior, votes, arm)
    weight = arm.concentration * arm.p_right
    right = (weight + agreed[:, None]) / (arm.concentration + samples)
    scatter, sizes = arm.scatter, posterior.sizes
    # Wrong votes so far, where each answer is right, and where none of them is.
    wrong = np.append(sizes.sum() - sizes, sizes.sum())[:, None]
    another = (1 - right) * scatter / (scatter + wrong)
    parts, cut = _parts(arm.length, seen, cap, posterior.difficulty)
    for part in parts:
        joint = posterior.joint * part
        for answer in range(len(sizes)):
            repeats = (1 - right) * sizes[answer] / (scatter + wrong)
            repeats[answer] = right[answer]
            grown = sizes.copy()
            grown[answer] += 1
            yield from _outcome(joint * repeats, scatter, grown)
        new = joint * another
        found = joint[-1] * right[-1]
        yield from _outcome(np.vstack([new[:-1], found, new[-1]]), scatter, np.append(sizes, 1.0))
    if cut is not None:
        yield from _outcome(posterior.joint * cut, posterior.scatter, sizes)


def _outcome(joint: Array, scatter: float, sizes: Array) -> Iterator[Outcome]:
    chance = float(joint.sum())
    if chance > LEAST_CHANCE:
        yield Outcome(chance, Posterior(joint / chance, scatter, sizes))


def so_far(posterior: Posterior, votes: Votes, arm: Arm) -> tuple[Array, float, Lengths]:
    """The arm's votes for each answer and, last, for none of them; all of its votes; their lengths."""
    nothing = np.zeros(len(posterior.sizes) + 1)
    for at, other in enumerate(votes.arms):
        if other is arm:
            seen = votes.lengths[at] if votes.lengths else UNSEEN
            return np.append(votes.counts[at], 0.0), float(votes.counts[at].sum() + votes.blanks[at]), seen
    return nothing, 0.0, UNSEEN


def _parts(
    length: LengthCurve | None, seen: Lengths, cap: float, types: Array
) -> tuple[list[Array], Array | None]:
    """Chances (D,) that the length falls in each part, and that it is cut; None where it is not."""
    if length is None:
        return [np.ones(len(types))], None
    mean, sd = length.foreseen(seen)
    middle = float(types @ mean)
    spread = math.sqrt(float(types @ (mean - middle) ** 2) + sd**2)
    edges = [middle + spread * third for third in THIRDS]
    if math.isfinite(cap):
        edges = [*(edge for edge in edges if edge < math.log(cap)), math.log(cap)]
    shorter = [np.zeros(len(mean)), *(below((edge - mean) / sd) for edge in edges), np.ones(len(mean))]
    parts = [high - low for low, high in pairwise(shorter)]
    return (parts[:-1], parts[-1]) if math.isfinite(cap) else (parts, None)
