"""The shadow price: bounded whatever happens, dearer where too much is spent, and no dearer by waiting."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import relaxed

from router.period import NAMES, Period
from router.price import MOST_RISE, MOST_STEP, RANGE, SHARES, Pace, Window, begin, charge, left, settle, share

flops = st.floats(0.0, 1e30)
gaps = st.floats(0.0, 1e7)
spendings = st.lists(st.tuples(flops, gaps, st.booleans()), max_size=40)
periods = st.builds(Period.of, st.floats(1.0, 1e6)) | st.builds(Period, st.sampled_from(NAMES))
windows = st.builds(Window, st.floats(1.0, 1e25), periods)
worths = st.floats(1.0, 1e30)
DAY = Window(flops=1000.0, period=Period("day"))


def play(window: Window, worth: float, spendings: list[tuple[float, float, bool]]) -> Pace:
    """The pace after queries that took so many FLOPs, each so long after the last; not all have finished."""
    pace = begin(window, worth, 1e9)
    for took, gap, finished in spendings:
        pace = (settle if finished else charge)(window, pace, took, pace.at + gap)
    return pace


@relaxed
@given(windows, worths, spendings)
def test_whatever_happens_the_state_is_finite_and_the_price_positive(
    window: Window, worth: float, spendings: list[tuple[float, float, bool]]
) -> None:
    pace = play(window, worth, spendings)
    assert all(math.isfinite(value) and value >= 0 for value in asdict(pace).values())
    assert 1 / window.flops <= pace.price <= RANGE / window.flops
    assert 0 <= share(window, pace, pace.at) <= left(window, pace, pace.at) <= window.flops
    assert Pace(**asdict(pace)) == pace


@relaxed
@given(windows, worths, spendings, gaps)
def test_more_than_what_is_left_never_lowers_the_price(
    window: Window, worth: float, spendings: list[tuple[float, float, bool]], gap: float
) -> None:
    pace = play(window, worth, spendings)
    now = pace.at + gap
    took = left(window, pace, now)
    if took > 0:
        assert settle(window, pace, took, now).price >= pace.price
        assert settle(window, pace, 2 * took, now).price >= settle(window, pace, took, now).price
    assert settle(window, pace, window.flops, now).price >= pace.price


@relaxed
@given(windows, worths, spendings, gaps)
def test_nothing_spent_never_raises_the_price(
    window: Window, worth: float, spendings: list[tuple[float, float, bool]], gap: float
) -> None:
    pace = play(window, worth, spendings)
    later = settle(window, pace, 0.0, pace.at + gap)
    if left(window, pace, pace.at + gap) > 0:
        assert later.price <= pace.price
    assert charge(window, pace, 0.0, pace.at + gap).price == pace.price


@relaxed
@given(windows, worths, spendings, gaps, flops)
def test_one_query_moves_the_price_by_a_bounded_step(
    window: Window, worth: float, spendings: list[tuple[float, float, bool]], gap: float, took: float
) -> None:
    pace = play(window, worth, spendings)
    moved = math.log(settle(window, pace, took, pace.at + gap).price / pace.price)
    assert -MOST_STEP - 1e-9 <= moved <= MOST_RISE + 1e-9


@relaxed
@given(windows, worths, spendings, st.floats(0.0, 1e6), flops)
def test_a_clock_that_lies_behind_changes_nothing(
    window: Window, worth: float, spendings: list[tuple[float, float, bool]], behind: float, took: float
) -> None:
    pace = play(window, worth, spendings)
    assert settle(window, pace, took, pace.at - behind) == settle(window, pace, took, pace.at)
    assert left(window, pace, pace.at - behind) == left(window, pace, pace.at)


def test_a_window_begins_with_its_whole_budget_and_the_last_price() -> None:
    pace = begin(DAY, 10.0, 0.0)
    for hour in range(20):
        pace = settle(DAY, pace, 40.0, 3600.0 * hour)
    assert left(DAY, pace, 86399.0) == pytest.approx(200.0)
    assert left(DAY, pace, 86400.0) == 1000.0
    assert DAY.end(86399.0) == 86400.0 == DAY.start(86400.0)
    after = settle(DAY, pace, 40.0, 86400.0)
    assert after.spent == 40.0
    assert after.price != pace.price
    assert abs(math.log(after.price / pace.price)) < 0.5


@pytest.mark.parametrize("guess", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("elasticity", [0.3, 1.0])
def test_the_price_finds_the_worth_at_which_the_budget_lasts(guess: float, elasticity: float) -> None:
    # Each query takes c × worth ** elasticity; two hundred a day must come to 1000.
    fair = 20.0
    pace, spent = begin(DAY, fair * guess, 0.0), 0.0
    for number in range(2000):
        now = 86400.0 * (number + 0.5) / 200
        took = min(left(DAY, pace, now), 5.0 * (pace.worth / fair) ** elasticity)
        spent += took if number >= 1800 else 0.0
        pace = settle(DAY, pace, took, now)
    assert pace.worth == pytest.approx(fair, rel=0.1)
    assert spent == pytest.approx(1000.0, rel=0.02)


def test_a_query_may_have_several_times_the_target_and_the_last_one_all_that_is_left() -> None:
    pace = begin(DAY, 10.0, 0.0)
    for hour in range(24 * 20):
        pace = settle(DAY, pace, 40.0, 3600.0 * hour)
    morning, night = 86400.0 * 20, 86400.0 * 21 - 60.0
    assert share(DAY, pace, morning) == pytest.approx(1000.0 * SHARES / (SHARES + 23), rel=0.05)
    assert share(DAY, pace, night) == left(DAY, pace, night) == 1000.0


def test_an_idle_night_does_not_wind_the_price_down() -> None:
    pace = begin(DAY, 10.0, 0.0)
    for number in range(300):
        pace = settle(DAY, pace, 2.0, 100.0 * number)
    # Time alone does nothing to it; the next query, of which fewer are to come, lowers it by one step.
    soon, late = (settle(DAY, pace, 2.0, now) for now in (30100.0, 80000.0))
    assert math.exp(-MOST_STEP) * pace.price <= late.price < soon.price
