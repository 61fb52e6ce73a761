"""Figures of step scores, each by a case that can be reckoned by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.labels import Chain, Step
from training.prm_figures import (
    Plans,
    Scored,
    auc,
    best_scoring,
    best_threshold,
    brier,
    by_error,
    calibration_error,
    confident_mistakes,
    estimate,
    first_error,
    plans,
    reliability,
    steps_of,
    wrong_precision,
)


def scored(
    scores: str,
    rights: str,
    problem: str = "p",
    *,
    answer: str | None = None,
    reached: bool | None = None,
    model: str = "m",
    error: str = "",
) -> Scored:
    """Scores in tenths; labels: + right, - wrong, . none."""
    steps = tuple(
        Step(
            f"step {i}",
            float(c == "+"),
            float(c != "."),
            {"+": True, "-": False}.get(c),
            error if c == "-" else "",
        )
        for i, c in enumerate(rights)
    )
    chain = Chain(problem, steps, True, reached, answer, model)
    return Scored(chain, tuple(int(c) / 10 for c in scores))


def test_steps_count_where_they_have_a_label() -> None:
    steps = steps_of([scored("924", "+-."), scored("8", "+", "q")])
    assert steps.scores.tolist() == [0.9, 0.2, 0.8]
    assert steps.right.tolist() == [1, 0, 1]
    assert steps.problem.tolist() == [0, 0, 1]
    assert steps.problems == 2


def test_figures_of_steps() -> None:
    steps = steps_of([scored("9274", "++--")])
    # Right .9 and .2, wrong .7 and .4: two of four pairs are in order.
    assert auc(steps.right, steps.scores) == 0.5
    # By rising score: right, wrong, wrong, right.
    assert wrong_precision(steps.right, steps.scores) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert brier(steps.right, steps.scores) == pytest.approx((0.01 + 0.64 + 0.49 + 0.16) / 4)
    assert calibration_error(steps.right, steps.scores) == pytest.approx((0.1 + 0.8 + 0.7 + 0.4) / 4)
    bins = reliability(steps.right, np.full(4, 1.0))
    assert bins == [(1.0, 0.5, 4.0)]


@pytest.mark.parametrize("chains", [[], [scored("99", "++")], [scored("1", "-")], [scored("1", ".")]])
def test_what_is_not_defined_is_nan_and_no_error(chains: list[Scored]) -> None:
    steps = steps_of(chains)
    assert math.isnan(estimate(auc, steps).value)
    assert math.isnan(estimate(wrong_precision, steps).low)
    assert math.isnan(first_error(chains, 0.5).f1)
    assert best_threshold(chains) == 0.5
    assert plans(chains, "min") == []
    assert best_scoring(chains) == ("min", {})


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("+-")), min_size=4, max_size=30), st.integers(0, 9)
)
def test_an_interval_is_about_its_figure(steps: list[tuple[int, str]], seed: int) -> None:
    chains = [scored(str(s), right, f"p{i % 7}") for i, (s, right) in enumerate(steps)]
    found = estimate(brier, steps_of(chains), seed)
    assert 0 <= found.low <= found.high <= 1
    assert found.low - 1e-9 <= found.value <= found.high + 1e-9


def test_first_errors_are_found_at_their_place_or_not() -> None:
    chains = [
        scored("992", "++-"),  # found
        scored("192", "++-"),  # too early
        scored("998", "++-"),  # not at all
        scored("91.".replace(".", "1"), "+-."),  # found; what comes after is of no matter
        scored("99", "++"),  # passed
        scored("93", "++"),  # not passed
    ]
    found = first_error(chains, 0.5)
    assert (found.wrong, found.wrong_chains) == (0.5, 4)
    assert (found.right, found.right_chains) == (0.5, 2)
    assert found.f1 == 0.5


def test_chains_that_are_not_judged_are_left_out() -> None:
    alternative = Scored(Chain("p", (Step("a", 0, 1, False),), False), (0.1,))
    assert first_error([scored("9.".replace(".", "1"), "+."), alternative], 0.5).wrong_chains == 0


def test_the_threshold_is_the_best_one() -> None:
    chains = [scored("97", "+-"), scored("98", "++")]
    assert 0.7 < best_threshold(chains) <= 0.8
    assert first_error(chains, best_threshold(chains)).f1 == 1.0


def four() -> list[Scored]:
    """Answers 1 (right, score .9), 2, 2 (.5 each), none."""
    return [
        scored("9", "+", answer="1", reached=True),
        scored("5", "-", answer="2", reached=False),
        scored("5", "-", answer="2", reached=False),
        scored("9", "-", answer=None, reached=False),
    ]


def test_plans_choose_among_the_chains_of_a_problem() -> None:
    found = plans(four(), "min")
    assert [one.n for one in found] == [1, 2, 4]
    assert found[0] == Plans(1, 0.25, 0.25, 0.25, 0.25)
    # Two share the best score; .9 against .5 + .5; one vote against two.
    assert found[-1] == Plans(4, 0.5, 0.0, 0.0, 1.0)


def test_problems_of_unknown_outcome_are_left_out() -> None:
    assert plans([*four(), scored("9", "+", "other", reached=None)], "min") == plans(four(), "min")


def test_a_problem_with_fewer_solutions_does_not_end_the_comparison() -> None:
    others = [replace(one, chain=replace(one.chain, problem="other")) for one in four()]
    fewer = scored("9", "+", "one solution", answer="1", reached=True)
    assert plans([*four(), *others, fewer], "min") == plans([*four(), *others], "min")


def test_models_are_not_mixed() -> None:
    chains = [
        scored("1", "+", answer="1", reached=True, model="a"),
        scored("9", "-", answer="2", reached=False, model="b"),
    ]
    (one,) = plans(chains, "min")
    assert (one.n, one.best) == (1, 0.5)


def test_the_rule_is_the_one_that_chooses_best() -> None:
    chains = [
        scored("919", "+.+", answer="1", reached=True),  # the last step says so
        scored("448", "+--", answer="2", reached=False),
    ]
    name, accuracy = best_scoring(chains)
    assert name == "last"
    assert accuracy == {"min": 0.0, "product": 0.0, "last": 1.0, "mean": 1.0}


def test_kinds_of_errors_are_told_apart() -> None:
    chains = [scored("91", "+-", error="copy"), scored("98", "+-", error="copy"), scored("72", "+-")]
    copy, other = by_error(chains, 0.5)
    assert (copy.kind, copy.steps, copy.found, copy.mean_score) == ("copy", 2, 0.5, pytest.approx(0.45))
    # Against .9, .9 and .7: .1 is below all three, .8 below two.
    assert copy.auc == pytest.approx(5 / 6)
    assert (other.kind, other.steps, other.found) == ("not told", 1, 1.0)


def test_the_surest_mistakes_one_of_each_problem() -> None:
    chains = [
        scored("37", "+-", "p", error="copy"),
        scored("69", "+-", "p", error="copy"),
        scored("58", "+-", "q"),
    ]
    wrong, right = confident_mistakes(chains, 10)
    assert [(one.problem, one.step, one.score, one.before) for one in wrong] == [
        ("p", "step 1", 0.9, ("step 0",)),
        ("q", "step 1", 0.8, ("step 0",)),
    ]
    assert [(one.problem, one.score) for one in right] == [("p", 0.3), ("q", 0.5)]
    assert len(confident_mistakes(chains, 1)[0]) == 1
