"""What falls out of the planner, on simulated streams of queries whose lengths, traps and scores it knows.

Three models, of which `m` costs 7 times as much a token as `s`, and `l` 40 times; six types of queries: easy,
medium, hard for all but `l`, where all agree on the same wrong answer (a trap), and two that nobody can do.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.errors import FailedPrecondition
from isoflop.v1.router_pb2 import Budget, Effort, Filters, Objective, SolveRequest
from synthetic import relaxed

from benchmarks.simulated import Play, Talent, Truth, ask, planner_of
from router.cost import TEMPLATE_TOKENS, samples
from router.planner import Planner

EASY, MEDIUM, HARD, TRAP, IMPOSSIBLE = 0, 1, 2, 3, 4
PRIOR = np.array([0.4, 0.2, 0.15, 0.05, 0.1, 0.1])
SCATTER = np.array([4.0, 4.0, 4.0, 0.2, 4.0, 4.0])
LOG_TOKENS = np.log([100.0, 150.0, 300.0, 150.0, 800.0, 1200.0])
EFFORTS = (Effort.EFFORT_LOW, Effort.EFFORT_MEDIUM, Effort.EFFORT_HIGH)


def talent(name: str, parameters: int, *p_right: float, **changes: Any) -> Talent:
    return Talent(name, parameters, np.array(p_right), LOG_TOKENS, SCATTER, **changes)


TALENTS = [
    talent("s", 60_000, 0.97, 0.40, 0.05, 0.10, 0.01, 0.01),
    talent("m", 400_000, 0.98, 0.60, 0.15, 0.10, 0.01, 0.01),
    talent("l", 2_500_000, 0.99, 0.75, 0.80, 0.15, 0.01, 0.01),
]


@dataclass
class Stream:
    """Means over queries."""

    samples: float
    flops: float
    right: float
    models: list[list[str]]
    """Of each query, in the order in which they were bought."""


def stream(
    planner: Planner,
    talents: list[Talent],
    types: list[int],
    telling: float = 0.0,
    known: float = 0.0,
    **fields: Any,
) -> Stream:
    """Queries of these types, `known` so surely at first; else only the shares of the types are."""
    plays, right, models = [], [], []
    for seed, kind in enumerate(types):
        by_name = {one.name: one for one in talents}
        truth = Truth(planner, by_name, kind, random.Random(seed), telling)
        belief = (1 - known) * PRIOR + known * np.eye(len(PRIOR))[kind]
        play = Play(planner, ask(planner, SolveRequest(**fields)), truth, belief)
        names = []
        for state, decision in play.steps():
            last = state.posterior
            names += [decision.action.model.name] if decision.action else []
        plays.append(play)
        models.append(names)
        right.append(play.right(last))
    bought = [sum(play.bought.values()) for play in plays]
    return Stream(
        float(np.mean(bought)),
        float(np.mean([play.spent.flops for play in plays])),
        float(np.mean(right)),
        models,
    )


@pytest.fixture(scope="module", params=["votes", "lengths", "scores"])
def world(request: pytest.FixtureRequest) -> tuple[Planner, float]:
    telling = 0.8 if request.param == "scores" else 0.0
    return planner_of(TALENTS, PRIOR, lengths=request.param != "votes", telling=telling), telling


def mixed(queries: int, seed: int = 5) -> list[int]:
    return random.Random(seed).choices(range(len(PRIOR)), PRIOR.tolist(), k=queries)


def test_easy_queries_get_one_sample_and_others_more(world: tuple[Planner, float]) -> None:
    planner, telling = world
    price = 20 * samples(planner.catalog.models["s"], 1, 8, 100).flops
    objective = Objective(flops_per_right_answer=price)
    easy = stream(planner, TALENTS, [EASY] * 25, telling, known=0.95, objective=objective)
    assert easy.samples == 1
    assert easy.right > 0.9
    spent = [stream(planner, TALENTS, [kind] * 25, telling, known=0.95).flops for kind in (EASY, MEDIUM)]
    assert spent[1] > 2 * spent[0]


def test_medium_queries_get_tens_where_a_right_answer_is_worth_it() -> None:
    """One model, right less often than not, whose wrong answers differ: a vote makes it sure."""
    planner = planner_of(TALENTS[:1], PRIOR)
    high = {"known": 0.95, "objective": Objective(flops_per_right_answer=300 * 2e7)}
    medium, easy = (stream(planner, TALENTS[:1], [kind] * 12, **high) for kind in (MEDIUM, EASY))
    assert 10 <= medium.samples <= 100
    assert easy.samples < medium.samples / 3


def test_the_impossible_is_abandoned_with_less_than_the_best_fixed_plan(world: tuple[Planner, float]) -> None:
    planner, telling = world
    spent = stream(planner, TALENTS, [IMPOSSIBLE] * 20, telling, effort=Effort.EFFORT_HIGH).flops
    query = ask(planner, SolveRequest(effort=Effort.EFFORT_HIGH))
    truth = Truth(planner, {one.name: one for one in TALENTS}, IMPOSSIBLE, random.Random(1))
    state = Play(planner, query, truth, np.eye(len(PRIOR))[IMPOSSIBLE]).state()
    assert spent < planner.fixed_flops(query, state)


@pytest.mark.parametrize("telling", [0.0, 0.8])
def test_it_escalates_from_small_to_large(telling: float) -> None:
    """Of queries of which nothing is known: a probe of the small model comes first, if lengths are."""
    planner = planner_of(TALENTS, PRIOR, lengths=True, telling=telling)
    found = stream(planner, TALENTS, [HARD] * 20, telling)
    order = {"s": 0, "m": 1, "l": 2}
    climbs = [order[names[0]] < max(order[name] for name in names) for names in found.models if names]
    assert np.mean(climbs) > 0.5


@pytest.mark.parametrize("lengths", [False, True])
def test_a_cascade_that_a_better_model_beats_is_never_used(lengths: bool) -> None:
    """`m` is cheaper than `s` and right more often: nothing is gained by asking `s` first, or at all."""
    better = talent("m", 50_000, 0.99, 0.85, 0.5, 0.15, 0.02, 0.02)
    talents = [TALENTS[0], better]
    found = stream(planner_of(talents, PRIOR, lengths=lengths), talents, mixed(40))
    assert all(names[0] == "m" for names in found.models)
    assert sum(name == "s" for names in found.models for name in names) == 0


def test_n_ends_where_the_measured_curve_turns_down() -> None:
    """Where all agree on a wrong answer a vote is less often right the larger it is."""
    trap = talent("s", 60_000, *[0.35] * 6, concentration=500.0)
    trap = Talent(**{**vars(trap), "scatter": np.full(6, 0.05)})
    planner = planner_of([trap], PRIOR)
    curve = PRIOR @ planner.profile.arms[0].votes.T
    assert curve[-1] < curve[0] - 0.03
    query = ask(planner, SolveRequest(objective=Objective(flops_per_right_answer=1e12)))
    truth = Truth(planner, {"s": trap}, 0, random.Random(1))
    action = planner.decide(query, Play(planner, query, truth, PRIOR).state()).action
    assert action
    assert action.horizon <= 2


def test_efforts_are_places_on_the_frontier(world: tuple[Planner, float]) -> None:
    """What a right answer is worth is 3, 8 and 20 samples of the dearest model: each buys more."""
    planner, telling = world
    once = samples(planner.catalog.models["l"], 1, 8, float(PRIOR @ np.exp(LOG_TOKENS))).flops
    worth = [planner.profile.efforts[name] / once for name in ("low", "medium", "high")]
    assert worth == pytest.approx([3, 8, 20])
    found = [stream(planner, TALENTS, mixed(60), telling, effort=effort) for effort in EFFORTS]
    assert found[0].flops < found[1].flops <= found[2].flops
    assert found[0].right <= found[2].right + 0.02


WORLDS = [planner_of(TALENTS, PRIOR, lengths=True, telling=telling) for telling in (0.0, 0.8)]


@given(
    st.sampled_from(WORLDS),
    st.integers(0, 5),
    st.floats(0.3, 30.0),
    st.sampled_from(["flops", "money", "tokens"]),
    st.sampled_from([{}, {"objective": Objective(most_accurate=True)}]),
    st.integers(0, 1 << 30),
)
@relaxed
def test_a_probe_and_what_follows_fit_the_budget(
    planner: Planner, kind: int, size: float, tight: str, fields: dict[str, Any], seed: int
) -> None:
    """The budget is that of so many samples of `m` of 600 tokens, in one respect."""
    price = samples(planner.catalog.models["m"], size, 100, 600)
    budget = Budget(**{tight: math.ceil(price.tokens) if tight == "tokens" else getattr(price, tight)})
    query = ask(planner, SolveRequest(budget=budget, filters=Filters(strategies=["majority"]), **fields))
    truth = Truth(planner, {one.name: one for one in TALENTS}, kind, random.Random(seed), 0.8)
    play = Play(planner, query, truth, PRIOR)
    if not list(planner.offers(query, play.state())):
        with pytest.raises(FailedPrecondition, match="no plan fits the budget"):
            next(play.steps())
        return
    for state, decision in play.steps():
        if action := decision.action:
            prompt = query.prompt_bytes + TEMPLATE_TOKENS
            worst = samples(action.model, action.samples, prompt, action.max_tokens, action.verifier)
            assert worst.within(state.left)
            assert action.samples == 1 or not action.probe
    assert play.spent.within(query.limit)


def test_a_target_is_reached_more_cheaply_the_lower_it_is() -> None:
    for planner in WORLDS:
        found = [
            stream(planner, TALENTS, [EASY, MEDIUM] * 12, objective=Objective(target_accuracy=target))
            for target in (0.6, 0.9)
        ]
        assert found[0].flops < found[1].flops
        assert found[1].right > 0.7
