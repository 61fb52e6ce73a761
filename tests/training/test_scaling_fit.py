"""Fits of scaling laws: planted forms are found, ceilings told where they are, and bins select nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from router.scaling import FORMS, Form, accuracy
from training.resampling import NO_ANSWER, Floats
from training.scaling import (
    Outcomes,
    difficulties,
    fit,
    forecast,
    law,
    per_query,
    precision,
    scaling,
    sizes,
)

AT = [1, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
FEW = [1, 3, 4, 6, 8]
n = np.array(AT, float)
quick = settings(max_examples=25)


def resampled(curve: Floats, level: float = 0.02, point: float = 0.001, seed: int = 0) -> Floats:
    """The curve, and 300 resamples: all points move together, and each a little by itself."""
    rng = np.random.default_rng(seed)
    moved = curve + rng.normal(0, level, (300, 1)) + rng.normal(0, point, (300, len(curve)))
    return np.clip(np.vstack([curve, moved]), 0, 1)


def folds(curve: Floats, seed: int = 1) -> tuple[Floats, Floats]:
    """Of other queries."""
    rows = resampled(curve, seed=seed)
    return rows[1:6], rows[6:11]


@st.composite
def planted(draw: st.DrawFn, forms: tuple[Form, ...] = FORMS) -> tuple[Form, dict[str, float]]:
    """A form with parameters that leave it in [0, 1], and whose rate the points can tell."""
    form = draw(st.sampled_from(forms))
    start, end = draw(st.floats(0.05, 0.4)), draw(st.floats(0.6, 0.95))
    if form == "logarithm":
        return form, {"a": start, "c": (end - start) / float(np.log(AT[-1]))}
    if form == "power":
        return form, {"e": 1 - end, "b": end - start, "k": draw(st.floats(0.4, 1.5))}
    n0 = draw(st.floats(1.5, 8.0))
    return form, {"ceiling": end, "b": (end - start) * float(np.exp(1 / n0)), "n0": n0}


@quick
@given(planted())
def test_planted_forms_are_found_and_predict(plan: tuple[Form, dict[str, float]]) -> None:
    form, parameters = plan
    curve = accuracy(form, parameters, n)
    found = law(AT, resampled(curve), *folds(curve))
    assert found.held_out == "more samples"
    assert found.fitted.form == form
    assert found.errors[form] == min(found.errors.values()) < 1e-3
    assert found.fitted.parameters() == pytest.approx(parameters, abs=0.01, rel=0.02)
    assert accuracy(form, found.fitted.parameters(), n) == pytest.approx(curve, abs=1e-3)
    assert (found.best_n, found.falls) == (AT[-1], False)


@quick
@given(planted(("power", "saturating")), st.integers(0, 99))
def test_a_ceiling_is_in_its_interval_and_not_below_what_was_seen(
    plan: tuple[Form, dict[str, float]], seed: int
) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.0005, len(n))
    curve = np.clip(accuracy(*plan, n) + noise, 0, 1)
    found = law(AT, resampled(curve, point=0.002, seed=seed), *folds(curve))
    if found.ceiling is not None:
        ceiling, low, high = found.ceiling
        assert low <= ceiling <= high <= 1
        assert ceiling > curve.max() - 4 * 0.0005
    if plan[0] == "saturating":
        assert found.ceiling is not None
        assert found.ceiling[0] == pytest.approx(plan[1]["ceiling"], abs=0.01)


def test_a_curve_that_still_rises_has_no_ceiling() -> None:
    logarithm = 0.2 + 0.1 * np.log(n)
    slow = 1 - 0.1 - 0.7 * n**-0.1
    # pass@n where p is Beta(1, 15), of seven queries in ten: the nearest exponential levels off at .56.
    late = 0.7 * n / (15 + n)
    for curve in (logarithm, slow, late):
        assert law(AT, resampled(curve, point=0.003), *folds(curve)).ceiling is None


@quick
@given(st.floats(0, 1))
def test_a_constant_curve_is_its_own_ceiling(level: float) -> None:
    curve = np.full(len(n), level)
    rows = resampled(curve, point=0.0)
    found = law(AT, rows, rows[1:6], rows[6:11])
    assert not found.falls
    assert found.fitted.at(AT)[0] == pytest.approx(curve, abs=1e-6)
    assert found.ceiling is not None
    assert found.ceiling[0] == pytest.approx(level, abs=1e-6)


def test_a_curve_that_turns_down_is_told_and_has_no_ceiling() -> None:
    curve = 0.5 + 0.1 * np.log(n) - 0.02 * np.log(n) ** 2
    found = law(AT, resampled(curve), *folds(curve))
    assert (found.best_n, found.falls, found.ceiling) == (12, True, None)
    # Where the fall may be chance it is not told.
    noise = law(AT, resampled(curve, point=0.1), *folds(curve))
    assert (noise.best_n, noise.falls) == (12, False)


def test_few_points_are_chosen_by_other_queries_and_two_have_but_the_logarithm() -> None:
    curve = accuracy("saturating", {"ceiling": 0.7, "b": 0.5, "n0": 2.0}, FEW)
    found = law(FEW, resampled(curve), *folds(curve))
    assert found.held_out == "other queries"
    assert found.fitted.form == "saturating"
    two = law([1, 4], resampled(curve[:2]), *folds(curve[:2]))
    assert (set(two.errors), two.ceiling) == ({"logarithm"}, None)
    assert two.fitted.at([1, 4])[0] == pytest.approx(curve[:2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1])
def test_what_is_no_accuracy_is_refused(bad: float) -> None:
    curves = np.full((3, len(AT)), 0.5)
    curves[1, 4] = bad
    with pytest.raises(ValueError, match=r"number in \[0, 1\]"):
        law(AT, curves, curves, curves)
    with pytest.raises(ValueError, match=r"number in \[0, 1\]"):
        fit("power", AT, curves, np.ones(len(AT)))


@pytest.mark.parametrize("at", [[1], [], [4, 1], [1, 1], [0, 1]])
def test_a_law_needs_two_rising_numbers(at: list[int]) -> None:
    curves = np.full((3, len(at)), 0.5)
    with pytest.raises(ValueError, match="two rising"):
        law(at, curves, curves, curves)


def test_a_form_needs_as_many_points_as_parameters() -> None:
    with pytest.raises(ValueError, match="3 parameters, and there are 2 points"):
        fit("power", [1, 3], np.full((1, 2), 0.5), np.ones(2))


@quick
@given(
    st.sampled_from(FORMS),
    st.lists(st.floats(0, 1), min_size=len(FEW), max_size=len(FEW)),
    st.lists(st.floats(0.1, 10), min_size=len(FEW), max_size=len(FEW)),
)
def test_fits_are_as_good_as_a_general_solver_s(form: Form, drawn: list[float], weighed: list[float]) -> None:
    """Of any points, with weights, in the same bounds."""
    curve, weights = np.array(drawn), np.array(weighed)
    found = fit(form, FEW, curve[None], weights)
    root = np.sqrt(weights)
    cost = ((root * (found.at(FEW)[0] - curve)) ** 2).sum()
    at = np.array(FEW, float)

    def residuals(x: Floats) -> Floats:
        if form == "logarithm":
            left = 1 - np.log(at) / np.log(at[-1])
        else:
            left = at ** -x[2] if form == "power" else np.exp((1 - at) / x[2])
        return root * (x[0] * left + x[1] * (1 - left) - curve)

    most = 4.0 if form == "power" else 4.0 * at[-1]
    least = 0.05 if form == "power" else 0.25
    others = [
        2 * least_squares(residuals, [0.4, 0.6, rate], bounds=([0, 0, least], [1, 1, most])).cost
        for rate in (0.3, 1.0, 3.0)
    ]
    assert cost <= min(others) + 1e-4 * weights.sum()


def outcomes(p: Floats, samples: int, seed: int, wrong: int = 5) -> Outcomes:
    """Queries whose samples are right with chance p, shape (Q,); wrong ones are spread over some answers."""
    rng = np.random.default_rng(seed)
    right = rng.random((len(p), samples)) < p[:, None]
    answers = np.where(right, 0, rng.integers(1, wrong + 1, right.shape))
    given_ = right.any(1)
    scores = np.clip(np.where(right, 0.7, 0.4) + rng.normal(0, 0.1, right.shape), 0, 1)
    return Outcomes("m", 0.7, answers, np.where(given_, 0, NO_ANSWER), scores, "v")


def test_bins_do_not_select_on_what_is_measured() -> None:
    """Queries that are all alike are no harder in the hard bin, which luck alone fills."""
    one = outcomes(np.full(600, 0.5), 16, seed=3)
    whole, *bins = scaling(one, difficulties([one]), "pass_at_n")
    assert len(bins) == 3
    for told in bins:
        assert told.points.accuracy[0] == pytest.approx(0.5, abs=0.03)
        assert told.points.low[0] <= told.points.accuracy[0] <= told.points.high[0]
    assert whole.record.samples == (1, 16)
    assert bins[0].record.samples == (1, 8)


def test_a_bin_of_next_to_no_queries_is_left_out() -> None:
    """All queries but one are as hard as each other."""
    difficulty = np.zeros((2, 120))
    difficulty[:, 0] = -1.0
    found = scaling(outcomes(np.full(120, 0.5), 8, seed=8), difficulty, "pass_at_n")
    assert [told.record.queries for told in found] == [120, 119]


def test_bins_order_queries_by_difficulty() -> None:
    p = np.random.default_rng(4).beta(1, 1, 300)
    models = [outcomes(p, 32, seed) for seed in (1, 2)]
    _, *bins = scaling(models[0], difficulties(models), "majority")
    ranges = [told.record.difficulty for told in bins]
    assert ranges == sorted(ranges, key=lambda ends: ends or (0, 0))
    first = [float(told.points.accuracy[0]) for told in bins]
    assert first[0] > 0.75 > first[1] > 0.25 > first[2]
    # A hard third whose wrong answers scatter may still rise; an easy one surely does.
    assert bins[0].points.accuracy[-1] > first[0]


def test_a_common_wrong_answer_turns_the_vote_down_and_not_pass_at_n() -> None:
    one = outcomes(np.full(120, 0.3), 64, seed=5, wrong=1)
    vote, passed = (scaling(one, np.zeros((2, 120)), name)[0].record for name in ("majority", "pass_at_n"))
    assert (vote.best_n, vote.falls, vote.ceiling) == (1, True, None)
    assert (passed.best_n, passed.falls) != (1, True)
    assert vote.at(64) < vote.at(1)


def test_verifiers_are_named_where_they_matter() -> None:
    one = outcomes(np.full(40, 0.5), 8, seed=6)
    told = {name: scaling(one, np.zeros((2, 40)), name)[0].record.verifier for name in one.strategies}
    assert told == {"majority": "", "weighted": "v", "best_of_n": "v", "pass_at_n": ""}


@given(st.integers(1, 300))
def test_sizes_rise_to_all_samples(most: int) -> None:
    for strategy in ("majority", "weighted"):
        found = sizes(strategy, most)  # type: ignore[arg-type]
        assert found == sorted(set(found))
        assert (found[0], found[-1]) == (1, most)
        assert strategy != "majority" or most == 2 or 2 not in found


def test_a_half_in_which_nobody_is_right_is_wrong() -> None:
    answers = np.array([[1, 0, 2, 0], [0, 0, 0, 0]])
    one = Outcomes("m", None, answers, np.array([0, 0]))
    assert per_query(one.half(0), "majority", [1, 2]).tolist() == [[0, 0], [1, 1]]
    assert per_query(one.half(1), "majority", [1, 2]).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="needs scores"):
        per_query(one, "weighted", [1])
    with pytest.raises(ValueError, match="4 samples"):
        per_query(one, "majority", [5])


def test_forecasts_are_of_what_was_seen() -> None:
    """Changing what is beyond changes nothing."""
    one = scaling(outcomes(np.linspace(0.1, 0.9, 60), 32, seed=7), np.zeros((2, 60)), "majority")[0]
    before = forecast(one, 8, 32)
    one.curves[:, one.points.samples > 8] = 0.0
    assert forecast(one, 8, 32) == before
    assert set(before) == set(FORMS)
    assert forecast(one, 1, 32) == {}


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="two of each"):
        scaling(outcomes(np.full(1, 0.5), 8, seed=1), np.zeros((2, 1)), "majority")
    with pytest.raises(ValueError, match="halves"):
        difficulties([outcomes(np.full(9, 0.5), 1, seed=1)])


def test_points_that_vary_less_weigh_more() -> None:
    rows = np.full((200, 2), 0.5)
    rows[1:, 1] += np.random.default_rng(0).normal(0, 0.05, 199)
    weights = precision(rows)
    assert weights[0] > 50 * weights[1]
    assert np.isfinite(weights).all()
