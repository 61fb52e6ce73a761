"""What one more sample would tell: its outcomes, what would be believed after each, and done then.

A sample that decides nothing by itself may be worth its price all the same: a short one by a cheap model that
agrees says that no dearer one is needed, a long one says which. An outcome is where the sample's answer falls
(an answer that was seen, another, or none, where a cap cuts it) and which part of the foreseen lengths its
length falls in. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from router.accuracy import Races
from router.belief import Posterior, Votes
from router.lengths import UNSEEN, Array, LengthCurve, Lengths, below
from router.outlook import Outlook
from router.profile import ROUND_SIZES, Arm

THIRDS = (-0.43, 0.43)
"""Where lengths are told apart, in standard deviations of what is foreseen: thirds of a normal one."""
LEAST_CHANCE = 1e-3
"""Outcomes less likely are not looked at."""
LEAST_TYPE = 1e-3
"""Types of queries that are less likely than this, by the likeliest, do not count in what a probe tells."""
AFTER = 3
"""How many of ROUND_SIZES are looked ahead by after a probe."""


@dataclass(frozen=True)
class Probe:
    """One sample, for what it tells."""

    row: int
    """Of the menu."""
    cap: int
    """Tokens at which it is cut."""
    share: float
    """Of the expected cost of a whole sample."""
    worth: float
    """FLOPs of worth that it is expected to leave, beyond stopping at once."""


def best_probe(outlook: Outlook, worth: float) -> Probe | None:
    """The sample that is worth most for what it tells, where a right answer is worth so many FLOPs.

    Only of arms whose lengths were measured: without them little is told that buying does not tell as well.
    """
    state = outlook.state
    probes: list[Probe] = []
    found: dict[int, list[tuple[int, Outcome]]] = {}
    for row, option in enumerate(outlook.menu.options):
        arm = option.arm
        if not outlook.open[row, 0] or option.verifier or arm.length is None:
            continue
        room = outlook.room(option, 1, state.left)
        *_, seen = so_far(state.posterior, state.votes, arm)
        types = state.posterior.difficulty
        whole = float(types @ arm.length.expected(seen, math.inf))
        for cap in (*(cap for cap in arm.caps if cap < room), room):
            for outcome in outcomes(state.posterior, state.votes, arm, cap):
                found.setdefault(len(outcome.posterior.sizes), []).append((len(probes), outcome))
            share = min(float(types @ arm.length.expected(seen, cap)) / whole, 1.0)
            probes.append(Probe(row, cap, share, -share * float(outlook.flops[row, 0])))
    if not probes:
        return None
    values = np.array([probe.worth for probe in probes])
    for group in found.values():
        numbers = [number for number, _ in group]
        after = _best_after(outlook, [outcome for _, outcome in group], [probes[n] for n in numbers], worth)
        after = (after - state.confidence * worth) * [outcome.chance for _, outcome in group]
        values += np.bincount(numbers, after, len(probes))
    best = int(values.argmax())
    return replace(probes[best], worth=float(values[best]))


def _best_after(outlook: Outlook, after: Sequence[Outcome], probes: Sequence[Probe], worth: float) -> Array:
    """What is had in FLOPs after each outcome of the probe that led to it, by stopping or by a plan: (B,)."""
    menu, state, now = outlook.menu, outlook.state, outlook.state.posterior.difficulty
    types = np.flatnonzero(now > LEAST_TYPE * now.max())
    races = Races.of([outcome.posterior for outcome in after], types)
    names = np.array([option.model.name for option in menu.options])
    rows = [probe.row for probe in probes]
    had = outlook.had + (names[rows][:, None] == names)
    sizes = np.array(ROUND_SIZES[:AFTER])
    price = (races.difficulty @ menu.flops[:, types].T)[..., None] * sizes
    value = races.accuracies(outlook.stack, had, AFTER) * worth - price
    value[:, ~outlook.open[:, :AFTER]] = -math.inf
    value[:, [option.blind for option in menu.options]] = -math.inf
    limits = (state.left.flops, state.left.money, state.left.tokens)
    for costs, left in zip((menu.flops, menu.money, menu.tokens), limits, strict=True):
        if math.isfinite(left):
            spent = [float(costs[probe.row] @ now) * probe.share for probe in probes]
            needs = (races.difficulty @ costs[:, types].T)[..., None] * sizes
            value[needs > left - np.array(spent)[:, None, None]] = -math.inf
    return np.asarray(np.maximum(races.confidence * worth, value.max(axis=(1, 2))))


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
    scatter, sizes = np.broadcast_to(arm.scatter, posterior.difficulty.shape), posterior.sizes
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


def _outcome(joint: Array, scatter: Array, sizes: Array) -> Iterator[Outcome]:
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
