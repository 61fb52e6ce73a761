"""From plays to figures: means without first-sample luck, hulls, what one curve costs against another.

Luck: which sample comes first decides most of how a policy does in one permutation, and it is the same luck
for every policy. How often the first samples of a permutation are right, and how long they are, is known
exactly over all permutations; so the part of a policy's result that goes with how the ones played differ from
that is taken out (control variates; Lavenberg & Welch 1981). Coefficients are by least squares on deviations
within each problem, since only those are luck. Nothing of this changes what a result is expected to be, but
for what fitting R coefficients to so many plays does: about R / (problems x permutations) of the luck. Pure
numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.replay_baselines import Point
from benchmarks.replay_data import RIGHT, Recording
from router import frontier
from training.resampling import Floats, Ints, interval, resamples

FIRST: Final = (1, 4)
"""The means of so many first samples of each model are control variates."""
BELOW_MAX: Final = 0.002
"""Accuracy below the hull's best at which FLOPs are compared."""
WITHIN: Final = 0.0005
"""Accuracy that may be missing to the best model's vote of 40."""
LEAST_GAP: Final = 0.05
"""Share of the hull's FLOPs that the oracle must spare for a share of the gap to mean anything."""
SUMMARY: Final = (
    "flops_vs_hull_at_best_model_once",
    "flops_vs_hull_at_hull_max_minus_0_2pt",
    "flops_vs_best_of_40_within_0_05pt",
    "share_of_oracle_gap_closed_horizontal",
    "worst_shortfall_to_hull_pt",
)

Curve = list[tuple[float, float]]
"""A hull: (FLOPs, accuracy), both rising."""


class Luck:
    """How the first samples of P permutations differ from the mean of all samples, for Q problems."""

    def __init__(self, recording: Recording, orders: Mapping[str, Ints]) -> None:
        """`orders` has shape (Q, P, n) for each model: see `Recording.orders`."""
        columns = []
        for name, track in recording.tracks.items():
            places = orders[name][:, :, : max(FIRST)]
            rows = np.arange(len(places))[:, None, None]
            for values in ((track.answers == RIGHT).astype(float), track.tokens / track.tokens.mean()):
                drawn = values[rows, places]
                columns += [drawn[:, :, :n].mean(axis=2) - values.mean(axis=1)[:, None] for n in FIRST]
        self._luck = np.stack(columns, axis=2)
        """Shape (Q, P, R): expected to be 0 in each."""
        deviations = self._luck - self._luck.mean(axis=1, keepdims=True)
        self._solve = np.linalg.pinv(deviations.reshape(-1, len(columns)))

    def mean(self, values: Floats) -> Floats:
        """Means over the permutations without luck, shape (Q, V); `values` has shape (Q, P, V)."""
        means = values.mean(axis=1)
        if values.shape[1] < 2:
            return np.asarray(means)
        # Deviations within each problem are at right angles to what is the same in all of its permutations.
        weights = self._solve @ values.reshape(-1, values.shape[2])
        return np.asarray(means - self._luck.mean(axis=1) @ weights)


@dataclass(frozen=True, eq=False)
class Plan:
    """A policy with its setting, by problem: means over permutations, shape (Q,) each."""

    name: str
    right: Floats
    flops: Floats
    attention: Floats
    tokens: Floats

    @classmethod
    def of(cls, point: Point, luck: Luck | None) -> Plan:
        """Without luck where it is told."""
        values = np.stack([point.right, point.flops, point.attention, point.tokens], axis=2)
        return cls(point.name, *(luck.mean(values) if luck else values.mean(axis=1)).T)

    def row(self) -> dict[str, Any]:
        """As the results have it."""
        return {
            "name": self.name,
            "accuracy": round(float(self.right.mean()), 6),
            "interval": [round(value, 6) for value in interval(resamples(len(self.right)) @ self.right)],
            "pflop": float(f"{self.flops.mean() / 1e15:.6g}"),
            "kilotokens": float(f"{self.tokens.mean() / 1e3:.6g}"),
            "pflop_with_attention": float(f"{(self.flops + self.attention).mean() / 1e15:.6g}"),
        }


def hull(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The upper hull of (FLOPs, accuracy) points and of buying nothing, by rising FLOPs and accuracy."""
    return frontier.hull([(0.0, 0.0), *points], lambda point: point)


def flops_for(hull: Sequence[tuple[float, float]], accuracy: float) -> float:
    """FLOPs at which a hull has an accuracy, by mixing two points; infinite where it never has."""
    if accuracy > hull[-1][1] + 1e-12:
        return float("inf")
    return float(np.interp(accuracy, [y for _, y in hull], [x for x, _ in hull]))


def accuracy_for(hull: Sequence[tuple[float, float]], flops: float) -> float:
    """Accuracy of a hull at some FLOPs, by mixing two points; its best beyond its end."""
    return float(np.interp(flops, [x for x, _ in hull], [y for _, y in hull]))


@dataclass(frozen=True)
class Rivals:
    """What a policy is measured against: the fixed plans, and the oracle, which can play these, too."""

    fixed: Sequence[Plan]
    oracle: Sequence[Plan]
    best_once: Plan
    """The fixed plan of one sample with the highest accuracy."""
    best_most: Plan
    """The largest vote of the same model."""


def rivals(fixed: Sequence[Plan], oracle: Sequence[Plan]) -> Rivals:
    """`fixed` are named as `replay_baselines.fixed` names them."""
    once = max((plan for plan in fixed if plan.name.endswith(" × 1")), key=lambda plan: plan.right.mean())
    model = once.name.removesuffix(" × 1")
    mine = [plan for plan in fixed if plan.name.startswith(f"{model} × ")]
    return Rivals(fixed, oracle, once, max(mine, key=lambda plan: plan.tokens.mean()))


def summary(
    policy: Sequence[Plan], against: Rivals
) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
    """The figures of SUMMARY and their 95 % intervals by a paired bootstrap over problems.

    None where a figure does not exist, as where the policy never has the accuracy in question; an interval is
    of the resamples in which the figure exists, and None where it does in less than 95 % of them.

    - flops_vs_...: FLOPs of the policy, over those of the hull of the fixed plans (or of the best model's
      vote of 40), at the accuracy of the best single sample; at the hull's best less .2 points; and at that
      vote's less .05 points. A policy's settings are mixed as the fixed plans are.
    - share_of_oracle_gap_closed_horizontal: (hull - policy) / (hull - oracle) in FLOPs at the accuracy of
      each of the policy's settings, averaged. Above the hull's best accuracy the hull has the FLOPs of its
      best; settings that are better than the oracle, or where it spares less than LEAST_GAP, are left out.
    - worst_shortfall_to_hull_pt: the most that a setting is below the hull at its own FLOPs, in points;
      negative where each is above.
    """
    weights = np.vstack(
        [np.full(len(policy[0].right), 1 / len(policy[0].right)), resamples(len(policy[0].right))]
    )

    def points(plans: Sequence[Plan]) -> Floats:
        flops = weights @ np.stack([plan.flops for plan in plans], axis=1)
        return np.stack([flops, weights @ np.stack([plan.right for plan in plans], axis=1)], axis=2)

    names = [plan.name for plan in against.fixed]
    once, most = names.index(against.best_once.name), names.index(against.best_most.name)
    mine, fixed, oracle = points(policy), points(against.fixed), points([*against.oracle, *against.fixed])
    made = np.array([_figures(*sets, once, most) for sets in zip(mine, fixed, oracle, strict=True)])
    told = {name: _finite(value) for name, value in zip(SUMMARY, made[0], strict=True)}
    return told, {name: _interval(made[1:, column]) for column, name in enumerate(SUMMARY)}


def _figures(policy: Floats, fixed: Floats, oracle: Floats, once: int, most: int) -> list[float]:
    """In the order of SUMMARY; infinite or NaN where there is none. Each has shape (plans, 2)."""
    mine, ceiling, best = (hull((x, y) for x, y in points.tolist()) for points in (policy, fixed, oracle))
    accuracy, least = float(fixed[once, 1]), ceiling[-1][1] - BELOW_MAX
    shares = []
    for spent, reached in policy.tolist():
        level = min(reached, ceiling[-1][1])
        have, known = flops_for(ceiling, level), flops_for(best, reached)
        if known < (1 - LEAST_GAP) * have:
            shares.append((have - spent) / (have - known))
    return [
        _ratio(flops_for(mine, accuracy), flops_for(ceiling, accuracy)),
        _ratio(flops_for(mine, least), flops_for(ceiling, least)),
        _ratio(flops_for(mine, float(fixed[most, 1]) - WITHIN), float(fixed[most, 0])),
        float(np.mean(shares)) if shares else float("nan"),
        max(100 * (accuracy_for(ceiling, x) - y) for x, y in policy.tolist()),
    ]


def _ratio(one: float, other: float) -> float:
    return one / other if other > 0 else float("nan")


def _finite(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _interval(values: Floats) -> list[float] | None:
    known = values[np.isfinite(values)]
    return [round(value, 4) for value in interval(known)] if len(known) >= 0.95 * len(values) else None


def by_query(
    recording: Recording, pool: str, plans: Mapping[str, Sequence[Plan]]
) -> Iterable[dict[str, Any]]:
    """A row for each problem: of each plan the chance to be right, TFLOP, kilotokens."""
    for at, query_id in enumerate(recording.query_ids):
        yield {
            "dataset": recording.dataset,
            "pool": pool,
            "query_id": query_id,
            **{
                kind: {
                    plan.name: [
                        round(float(plan.right[at]), 4),
                        round(float(plan.flops[at]) / 1e12, 3),
                        round(float(plan.tokens[at]) / 1e3, 3),
                    ]
                    for plan in group
                }
                for kind, group in plans.items()
            },
        }
