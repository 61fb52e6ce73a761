"""What one more sample would tell: its outcomes, what would be believed after each, and done then.

A sample that decides nothing by itself may be worth its price all the same: a short one by a cheap model that
agrees says that no dearer one is needed, a long one says which. An outcome is where the sample's answer falls
(an answer that was seen, another, or none, where a cap cuts it) and which part of the foreseen lengths its
length falls in. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.accuracy import Races
from router.decision import State
from router.lengths import UNSEEN, Array, below, cut_at
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
    probes = Probes.of(outlook)
    if probes is None:
        return None
    values = -probes.share * outlook.flops[probes.row, 0]
    for group in outcomes(outlook.state, probes):
        after = _best_after(outlook, group, probes, worth) - outlook.state.confidence * worth
        values += np.bincount(group.probe, after * group.chance, len(values))
    best = int(values.argmax())
    return Probe(int(probes.row[best]), int(probes.cap[best]), float(probes.share[best]), float(values[best]))


@dataclass(frozen=True, eq=False)
class Probes:
    """P probes, by A arms, each with several caps."""

    arms: tuple[Arm, ...]
    arm: NDArray[np.int64]
    """Shape (P,): index among the arms."""
    row: NDArray[np.int64]
    """Shape (P,): of the menu."""
    cap: Array
    """Shape (P,): tokens at which the sample is cut."""
    mean: Array
    """Shape (A, D): of the logarithm of its tokens; foreseen, as what follows."""
    sd: Array
    """Shape (A,): of the same."""
    share: Array
    """Shape (P,): of the expected cost of a whole sample."""

    @classmethod
    def of(cls, outlook: Outlook) -> Probes | None:
        """Those that can be bought."""
        menu, state = outlook.menu, outlook.state
        rows = menu.probes[outlook.open[menu.probes, 0]]
        found: list[tuple[int, int, int]] = []
        for index, row in enumerate(rows.tolist()):
            room = outlook.room(row, 1)
            caps = [*(cap for cap in menu.options[row].arm.caps if cap < room), room]
            found += [(index, row, cap) for cap in caps if cap > 0]
        if not found:
            return None
        arms = tuple(menu.options[row].arm for row in rows.tolist())
        seen = dict(zip(state.votes.arms, state.votes.lengths, strict=False))
        foreseen = [arm.length.foreseen(seen.get(arm, UNSEEN)) for arm in arms if arm.length]
        mean, sd = (np.array(column) for column in zip(*foreseen, strict=True))
        arm, row, cap = np.array(found).T
        types = state.posterior.difficulty
        whole = np.exp(mean + 0.5 * sd[:, None] ** 2) @ types
        cut = cut_at(mean[arm], sd[arm, None], cap[:, None].astype(np.float64)) @ types
        return cls(arms, arm, row, cap.astype(np.float64), mean, sd, np.minimum(cut / whole[arm], 1.0))

    def parts(self, types: Array) -> tuple[NDArray[np.int64], Array, Array]:
        """Probe (G,) and chance by type (G, D) of each part that lengths fall in; that it is cut (P, D).

        Parts are THIRDS of what is foreseen by the belief about types (D,), as far as the cap lets them be.
        """
        middle = self.mean @ types
        spread = np.sqrt((self.mean - middle[:, None]) ** 2 @ types + self.sd**2)
        edges = np.full((len(self.cap), len(THIRDS) + 1), np.inf)
        edges[:, :-1] = (middle[:, None] + spread[:, None] * THIRDS)[self.arm]
        edges = np.minimum(edges, np.log(self.cap)[:, None])
        place = (edges[..., None] - self.mean[self.arm, None]) / self.sd[self.arm, None, None]
        shorter = below(place)  # (P, parts, D)
        parts = np.diff(shorter, axis=1, prepend=0.0)
        probe, part = np.nonzero(np.diff(edges, axis=1, prepend=-np.inf) > 0)
        return probe, parts[probe, part], 1.0 - shorter[:, -1]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """G ways in which probes may come out, all with as many answers as each other."""

    probe: NDArray[np.int64]
    """Shape (G,): which probe."""
    chance: Array
    """Shape (G,)."""
    joint: Array
    """Shape (G, J + 1, D): see `router.belief.Posterior`, as what follows."""
    sizes: Array
    """Shape (G, J)."""
    scatter: Array
    """Shape (G, D)."""


def outcomes(state: State, probes: Probes) -> Iterator[Outcomes]:
    """The outcomes of all probes: those without another answer, and those with one."""
    posterior, votes = state.posterior, state.votes
    joint, sizes, answers = posterior.joint, posterior.sizes, len(posterior.sizes)
    agreed = np.zeros((len(probes.arms), answers + 1, 1))
    samples = np.zeros((len(probes.arms), 1, 1))
    rows = {arm: row for row, arm in enumerate(votes.arms)}
    for at, arm in enumerate(probes.arms):
        if arm in rows:
            agreed[at, :-1, 0] = votes.counts[rows[arm]]
            samples[at] = votes.counts[rows[arm]].sum() + votes.blanks[rows[arm]]
    p_right = np.array([arm.p_right for arm in probes.arms])[:, None]
    scatter = np.array([np.broadcast_to(arm.scatter, p_right.shape[2:]) for arm in probes.arms])
    concentration = np.array([arm.concentration for arm in probes.arms])[:, None, None]
    right = (concentration * p_right + agreed) / (concentration + samples)  # (A, J + 1, D)
    # Wrong votes so far, where each answer is right, and where none of them is.
    wrong = np.append(sizes.sum() - sizes, sizes.sum())[:, None]
    missed = joint * (1 - right) / (scatter[:, None] + wrong)  # (A, J + 1, D)
    another = np.insert(missed * scatter[:, None], answers, joint[-1] * right[:, -1], axis=1)
    probe, part, cut = probes.parts(posterior.difficulty)
    by = probes.arm[probe]
    one = np.arange(answers)
    repeats = missed[:, None] * sizes[:, None, None]  # (A, J, J + 1, D): the sample says answer j
    repeats[:, one, one] = joint[:-1] * right[:, :-1]
    grown = sizes + np.eye(answers)
    more = np.append(sizes, 1.0)
    same = (repeats[by] * part[:, None, None]).reshape(-1, answers + 1, part.shape[1])
    yield from _likely(
        np.concatenate([np.repeat(probe, answers), np.arange(len(cut))]),
        np.concatenate([same, joint * cut[:, None]]),
        np.concatenate([np.tile(grown, (len(probe), 1)), np.tile(sizes, (len(cut), 1))]),
        np.concatenate([np.repeat(scatter[by], answers, axis=0), np.tile(posterior.scatter, (len(cut), 1))]),
    )
    yield from _likely(probe, another[by] * part[:, None], np.tile(more, (len(probe), 1)), scatter[by])


def _likely(probe: NDArray[np.int64], joint: Array, sizes: Array, scatter: Array) -> Iterator[Outcomes]:
    """Those that are likely enough to be looked at."""
    chance = joint.sum(axis=(1, 2))
    kept = np.flatnonzero(chance > LEAST_CHANCE)
    if len(kept):
        chance = chance[kept]
        yield Outcomes(probe[kept], chance, joint[kept] / chance[:, None, None], sizes[kept], scatter[kept])


def _best_after(outlook: Outlook, after: Outcomes, probes: Probes, worth: float) -> Array:
    """What is had in FLOPs after each outcome, by stopping or by a plan, shape (G,)."""
    menu, state, now = outlook.menu, outlook.state, outlook.state.posterior.difficulty
    types = np.flatnonzero(now > LEAST_TYPE * now.max())
    races = Races.of(after.joint[:, :, types], after.sizes, after.scatter[:, types])
    row = probes.row[after.probe]
    had = outlook.had + menu.same_model[row]
    sizes = np.array(ROUND_SIZES[:AFTER])
    price = (races.difficulty @ menu.flops[:, types].T)[..., None] * sizes
    value = races.accuracies(outlook.stack.among(types, AFTER), had) * worth - price
    value[:, ~outlook.open[:, :AFTER]] = -math.inf
    value[:, menu.blind] = -math.inf
    limits = (state.left.flops, state.left.money, state.left.tokens)
    for costs, left in zip((menu.flops, menu.money, menu.tokens), limits, strict=True):
        if math.isfinite(left):
            spent = (costs @ now)[row] * probes.share[after.probe]
            needs = (races.difficulty @ costs[:, types].T)[..., None] * sizes
            value[needs > left - spent[:, None, None]] = -math.inf
    return np.asarray(np.maximum(races.confidence * worth, value.max(axis=(1, 2))))
