"""First rounds that are drawn: by the chances that are logged, and among what the planner offers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.router_pb2 import Budget, Effort
from synthetic import EASY, HARD, MIDDLE, make_planner, make_query, make_state, relaxed

from router.decision import Decision
from router.explore import STOP, bought, draw

PLANNER = make_planner()


def decide(difficulty: float = MIDDLE, **fields: object) -> Decision:
    query = make_query(PLANNER, **fields)
    return PLANNER.decide(query, make_state(PLANNER, difficulty, left=query.limit))


@relaxed
@given(
    difficulty=st.sampled_from([EASY, MIDDLE, HARD]),
    effort=st.sampled_from(Effort.values()),
    share=st.floats(0, 1),
    among=st.integers(2, 6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_is_an_offer_of_the_planner_with_a_chance(
    difficulty: float, effort: Effort.ValueType, share: float, among: int, chance: float
) -> None:
    decision = decide(difficulty, effort=effort)
    drawn = draw(decision, share, among, chance)
    assert sum(offer.propensity for offer in drawn.offers) == pytest.approx(1)
    assert len({offer.bought for offer in drawn.offers}) == len(drawn.offers) <= among
    taken = drawn.offers[drawn.taken]
    assert taken.propensity > 0
    if decision.action is None:
        assert (drawn.offers, drawn.decision) == ((STOP,), decision)
        return
    assert drawn.decision.action in [decision.action, *decision.others]
    assert bought(drawn.decision.action) == taken.bought
    assert drawn.explored == (drawn.decision.action is not decision.action)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_chances_are_those_that_are_logged(share: float) -> None:
    decision = decide(HARD)
    chances = (np.arange(10_000) + 0.5) / 10_000
    found = Counter(draw(decision, share, 4, chance).taken for chance in chances)
    offers = draw(decision, share, 4, 0.0).offers
    assert len(offers) == 4
    for index, offer in enumerate(offers):
        assert found[index] / 10_000 == pytest.approx(offer.propensity, abs=2e-4)
        assert offer.propensity == pytest.approx(share / 4 + (1 - share) * (index == 0))


def test_offers_that_buy_the_same_are_one_choice() -> None:
    # A vote may be looked ahead by several sizes, and its first round is the same.
    action = next(offer for offer in decide(HARD).others if offer.strategy == "majority")
    longer = replace(action, horizon=32, accuracy=0.9)
    drawn = draw(Decision(action, "", [longer]), 1.0, 4, 0.999)
    assert not drawn.explored
    assert [offer.propensity for offer in drawn.offers] == [1.0]


def test_an_explored_round_fits_the_budget() -> None:
    limit = 3e8
    decision = decide(HARD, effort=Effort.EFFORT_HIGH, budget=Budget(flops=limit))
    offers = draw(decision, 1.0, 9, 0.0).offers
    assert len(offers) > 1
    for chance in np.linspace(0, 0.999, 30):
        action = draw(decision, 1.0, 9, float(chance)).decision.action
        assert action
        assert action.message().expected_flops <= limit
    unlimited = draw(decide(HARD, effort=Effort.EFFORT_HIGH), 1.0, 9, 0.0).offers
    assert max(offer.flops for offer in unlimited) > limit


def test_the_reason_says_that_it_was_drawn() -> None:
    drawn = draw(decide(HARD), 1.0, 4, 0.999)
    assert drawn.explored
    assert "drawn at random" in drawn.decision.reason
