"""A stream whose difficulty shifts, through the real planner: the budget lasts, and is well spent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import GRID, arm_record, make_model, make_planner, make_profile

from benchmarks.streams import Asked, Played, constant, draw, limited, priced, rolled, within
from router.planner import Planner

PHASES = (-2.0, 0.9, -0.3, 1.6)
"""Easy, hard, middling, and out of reach for all but the largest model now and then."""
QUERIES = 120
EVEN_LIMITS = (1.5, 3.0, 6.0)
"""Times an even share: limits that are tried with hindsight."""


@pytest.fixture(scope="module")
def planner() -> Planner:
    arms = [
        arm_record(model, temperature, tokens=(400 + 100 * (GRID + 2.5)).tolist())
        for model in ("s", "m", "l")
        for temperature in (0.8, 0.0)
    ]
    efforts = {"low": 3e8, "medium": 5e9, "high": 5e10, "most": 1e15}
    models = [make_model(name, context=8192) for name in ("s", "m", "l")]
    return make_planner(make_profile(arms=arms, efforts=efforts), *models)


@pytest.fixture(scope="module")
def stream(planner: Planner) -> list[Asked]:
    rng = np.random.default_rng(3)
    queries = []
    for number in range(QUERIES):
        phase = number * len(PHASES) // QUERIES
        nearest = int(np.abs(GRID - PHASES[phase] - 0.4 * rng.standard_normal()).argmin())
        asked = draw(planner.profile, nearest, seed=number)
        queries.append(replace(asked, at=(number + 0.5) / QUERIES, phase=phase))
    return queries


@pytest.fixture(scope="module")
def medium(planner: Planner, stream: list[Asked]) -> float:
    """FLOPs of the stream at medium effort, without a budget."""
    return flops(constant(planner, stream, planner.profile.efforts["medium"]))


def flops(played: list[Played]) -> float:
    return sum(one.flops for one in played)


def right(played: list[Played]) -> float:
    return float(np.mean([one.right for one in played]))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_budget_lasts_and_accuracy_beats_an_even_split(
    planner: Planner, stream: list[Asked], medium: float, share: float
) -> None:
    budget = share * medium
    played = priced(planner, stream, budget)
    assert not any(one.refused for one in played)
    assert 0.8 * budget <= flops(played) <= budget
    assert sum(one.right for one in played[-QUERIES // 2 :]) > QUERIES / 10

    splits = [limited(planner, stream, budget / QUERIES), rolled(planner, stream, budget)]
    # Stronger than an even split: the best of equal limits, chosen when all is over.
    splits += [within(limited(planner, stream, budget / QUERIES * times), budget) for times in EVEN_LIMITS]
    assert right(played) > max(right(split) for split in splits)


def test_a_flop_buys_more_where_queries_are_hard(
    planner: Planner, stream: list[Asked], medium: float
) -> None:
    played = priced(planner, stream, 0.5 * medium)
    each = QUERIES // len(PHASES)
    easy, hard, _, hopeless = (played[each * (phase + 1) - 1].worth for phase in range(len(PHASES)))
    assert easy > 2 * hard
    # What cannot be bought leaves more for what can.
    assert hopeless > 2 * hard
