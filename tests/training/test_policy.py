"""The planner on recorded queries: it buys what is recorded, and what that costs is reckoned once."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from isoflop.v1.verification_pb2 import Verifier
from planted import MODELS, planted, single_scores

from router import cost
from router.catalog import Catalog
from router.cost import Cost
from router.decision import Action
from router.planner import Planner
from router.profile import parse
from training.measured import Measured, Samples
from training.policy import EFFORTS, RIGHT, Recorded, play
from training.profiles import fit

JUDGE = Verifier(name="judge")
SAMPLES = Samples(
    ["x", "421", None, "x", "421", "y"],
    np.array([False, True, False, False, True, False]),
    np.array([10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
    prompt_tokens=7,
    scores={"judge": np.array([0.1, 0.9, 0.2, 0.3, 0.8, math.nan])},
)
ASKED = Measured("q", "17*24+13", "", {"a": SAMPLES}, {"a": replace(SAMPLES, answers=["421"])})


def action(samples: int, **fields: object) -> Action:
    whole = {"max_tokens": 1000, "temperature": 0.7} | fields
    return Action(
        MODELS[0], None, "majority", samples, samples, accuracy=0.5, cost=Cost(), seconds=0.0, **whole  # type: ignore[arg-type]
    )  # fmt: skip


def test_each_sample_is_bought_once_and_votes_for_its_answer() -> None:
    recorded = Recorded(ASKED, seed=3)
    found = [one for first in (0, 2, 4) for one in recorded.buy(action(2), first)[0]]
    assert [one.sample.id for one in found] == [f"a/{number}" for number in range(6)]
    assert sorted(one.sample.text for one in found) == ["", RIGHT, RIGHT, "x", "x", "y"]
    votes = {cluster.answer: len(cluster.members) for cluster in recorded.tally.clusters}
    assert votes == {RIGHT: 2, "x": 2, "y": 1}
    assert list(votes)[-1] == "y"


def test_a_seed_decides_the_order() -> None:
    orders = [[one.sample.tokens for one in Recorded(ASKED, seed).buy(action(6), 0)[0]] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_a_prompt_is_paid_for_once() -> None:
    recorded = Recorded(ASKED, seed=3)
    _, first = recorded.buy(action(2), 0)
    _, second = recorded.buy(action(4), 2)
    model = MODELS[0]
    each = sum(cost.sample(model, 7, tokens)[0] for tokens in SAMPLES.tokens)
    assert first.flops + second.flops == pytest.approx(each - 5 * cost.sample(model, 7, 0.0)[0])
    assert first.tokens + second.tokens == SAMPLES.tokens.sum() + 7


def test_scores_weigh_a_sample_and_are_paid_for() -> None:
    plain, scored = (Recorded(ASKED, seed=3).buy(action(6, verifier=one), 0) for one in (None, JUDGE))
    by_tokens = {one.sample.tokens: one for one in scored[0]}
    assert (by_tokens[20].weight, list(by_tokens[20].scores.steps)) == (0.9, [0.9])
    # The verifier could give none.
    assert (by_tokens[60].weight, list(by_tokens[60].scores.steps)) == (0.0, [])
    assert scored[1].flops > plain[1].flops


def test_what_is_longer_than_it_may_be_is_cut_and_has_no_answer() -> None:
    found, price = Recorded(ASKED, seed=3).buy(action(6, max_tokens=25), 0)
    assert sorted(one.sample.tokens for one in found) == [10, 20, 25, 25, 25, 25]
    assert sorted(one.sample.text for one in found if one.sample.text) == [RIGHT, "x"]
    assert price.tokens == 10 + 20 + 4 * 25 + 7


def test_a_greedy_sample_is_the_recorded_one() -> None:
    greedy = replace(ASKED, greedy={"a": Samples(["5"], np.array([False]), np.array([33.0]), 7)})
    ((candidate,), _) = Recorded(greedy, seed=1).buy(action(1, temperature=0.0), 0)
    assert (candidate.sample.text, candidate.sample.tokens) == ("5", 33)


@pytest.fixture(scope="module")
def world() -> tuple[list[Measured], Planner]:
    """Queries whose answers are known, and a planner on curves of others like them."""
    known, _ = planted(120, scores=single_scores(2.0), seed=5)
    profile = parse(fit(known, MODELS, "v"))
    return planted(90, scores=single_scores(2.0), seed=6)[0], Planner(profile, Catalog.of(MODELS, [JUDGE]), 4)


def test_more_effort_is_more_often_right_and_costs_more(world: tuple[list[Measured], Planner]) -> None:
    queries, planner = world
    right, flops = [], []
    for effort in EFFORTS:
        played = [play(planner, query, effort, (0.0, 1.0), at) for at, query in enumerate(queries)]
        right.append(np.mean([one.right for one in played]))
        flops.append(np.mean([one.cost.flops for one in played]))
    assert right[0] < right[-1]
    assert flops == sorted(flops)
    assert flops[0] < flops[-1]


def test_what_is_known_of_difficulty_is_used(world: tuple[list[Measured], Planner]) -> None:
    queries, planner = world
    easy, hard = (
        np.mean([play(planner, query, "high", (mean, 0.1), 1).cost.flops for query in queries[::3]])
        for mean in (-1.5, 1.5)
    )
    assert easy < hard
