"""Load slows a pool: it is noticed, it changes plans under a deadline, and it is forgotten again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.v1.router_pb2 import Effort
from synthetic import HARD, make_planner, make_query, make_state, relaxed

from router.pace import HALF_LIFE, Pace


def test_nothing_observed_is_nothing_told() -> None:
    assert Pace().at(0.0) == {}


@given(st.lists(st.floats(0.1, 50.0), min_size=1, max_size=30), st.floats(0, 5 * HALF_LIFE))
@relaxed
def test_it_lies_between_one_and_what_was_observed_and_comes_back(ratios: list[float], later: float) -> None:
    pace = Pace()
    for ratio in ratios:
        pace.observe("m", ratio, 0.0)
    told, after = pace.at(0.0)["m"], pace.at(later)["m"]
    assert min(1.0, *ratios) - 1e-9 <= told <= max(1.0, *ratios) + 1e-9
    assert abs(math.log(after)) <= abs(math.log(told)) + 1e-12
    assert pace.at(40 * HALF_LIFE)["m"] == pytest.approx(1.0, abs=1e-6)


def test_many_alike_are_believed_and_one_model_says_nothing_of_another() -> None:
    pace = Pace()
    for second in range(200):
        pace.observe("m", 5.0, float(second))
    pace.observe("s", 2.0, 200.0)
    assert pace.at(200.0)["m"] == pytest.approx(5.0, rel=0.05)
    assert pace.at(200.0)["s"] == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_ratio_is_not_observed(ratio: float) -> None:
    pace = Pace()
    pace.observe("m", ratio, 0.0)
    assert pace.at(0.0) == {}


def test_a_pool_that_is_slow_now_is_not_planned_with_under_a_deadline() -> None:
    planner = make_planner()
    query = make_query(planner, effort=Effort.EFFORT_HIGH)
    pace = Pace()
    state = make_state(planner, HARD, seconds=0.1)
    first = planner.decide(query, state).action
    assert first
    for _ in range(50):
        pace.observe(first.model.name, 100.0, 0.0)
    slowed = planner.decide(query, make_state(planner, HARD, seconds=0.1, pace=pace.at(0.0))).action
    assert slowed
    assert slowed.model.name != first.model.name
    later = pace.at(30 * HALF_LIFE)
    again = planner.decide(query, make_state(planner, HARD, seconds=0.1, pace=later)).action
    assert again
    assert again.model.name == first.model.name


def test_samples_that_ran_while_a_process_stood_still_poison_nothing_and_lasting_load_is_learnt() -> None:
    pace = Pace()
    for _ in range(100):
        pace.observe("m", 1.0, 0.0)
    for _ in range(32):
        pace.observe("m", 20.0, 0.0)
    assert pace.at(0.0)["m"] < 1.6
    for tenth in range(3000):
        pace.observe("m", 20.0, tenth / 10)
    assert pace.at(300.0)["m"] == pytest.approx(20.0, rel=0.05)
