"""Estimators against brute force over all subsets."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import resampling
from training.resampling import (
    NO_ANSWER,
    RESAMPLES,
    best_of,
    bests,
    interval,
    permutations,
    resamples,
    vote,
    votes,
)

answers = st.lists(st.integers(NO_ANSWER, 3), min_size=1, max_size=7)


def voted(picked: list[tuple[int, float]], right: int) -> float:
    """Chance that one vote is right."""
    sums: Counter[int] = Counter()
    for answer, weight in picked:
        if answer != NO_ANSWER:
            sums[answer] += weight  # type: ignore[assignment]
    leaders = [answer for answer, total in sums.items() if total >= max(sums.values()) - 1e-6]
    return (right in leaders) / len(leaders) if leaders else 0.0


def all_orders(samples: int, n: int) -> np.ndarray:
    """Every subset once, as the first n of a row."""
    return np.array(
        [[*c, *(i for i in range(samples) if i not in c)] for c in combinations(range(samples), n)]
    )


@given(answers, st.data())
def test_a_vote_over_all_subsets_is_the_mean_over_them(drawn: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(drawn)))
    weights = data.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=len(drawn), max_size=len(drawn)))
    for right in range(max(drawn) + 1):
        orders = all_orders(len(drawn), n)
        for weighed in (None, np.array(weights)):
            told = [1.0] * len(drawn) if weighed is None else weights
            truth = np.mean(
                [voted([(drawn[i], told[i]) for i in c], right) for c in combinations(range(len(drawn)), n)]
            )
            assert vote(np.array(drawn), right, n, orders, weighed) == pytest.approx(truth)


@given(answers)
def test_votes_of_two_are_worth_one_sample_where_all_have_answers(drawn: list[int]) -> None:
    chosen = np.abs(np.array([*drawn, 0, 1]))
    orders = all_orders(len(chosen), 2)
    assert vote(chosen, 0, 2, orders) == pytest.approx(vote(chosen, 0, 1, orders))


def test_a_right_answer_that_nobody_gave_is_not_found() -> None:
    assert vote(np.array([0, 0, 1]), NO_ANSWER, 3, permutations(3)) == 0.0


def test_where_a_verifier_gives_nothing_votes_count_alike() -> None:
    chosen = np.array([0, 0, 1])
    assert vote(chosen, 0, 3, permutations(3), np.zeros(3)) == 1.0


@given(
    st.lists(st.tuples(st.sampled_from([-np.inf, 0.1, 0.5, 0.9]), st.booleans()), min_size=1, max_size=7),
    st.data(),
)
def test_best_of_is_the_mean_over_subsets(drawn: list[tuple[float, bool]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(drawn)))

    def chosen(subset: tuple[tuple[float, bool], ...]) -> float:
        best = max(score for score, _ in subset)
        return float(np.mean([right for score, right in subset if score == best]))

    truth = np.mean([chosen(subset) for subset in combinations(drawn, n)])
    scores, right = np.array([score for score, _ in drawn]), np.array([right for _, right in drawn])
    assert best_of(scores, right, n) == pytest.approx(truth)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("at_once", [10**6, 1000])
def test_many_queries_at_once_are_as_each_by_itself(
    weighed: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_MOST_SUMS", at_once)
    rng = np.random.default_rng(0)
    answers = rng.integers(-1, 4, (20, 8))
    answers[0], answers[1] = NO_ANSWER, 2
    right = np.where((answers == 0).any(1), 0, NO_ANSWER)
    scores = rng.integers(0, 3, answers.shape) / 2
    orders, at = permutations(8), [1, 2, 3, 6, 8]
    told = votes(answers, right, at, orders, scores if weighed else None)
    for row, one, truth, each in zip(told, answers, right, scores, strict=True):
        assert row == pytest.approx([vote(one, truth, n, orders, each if weighed else None) for n in at])
    is_right = answers == 0
    ranked = np.where(answers == NO_ANSWER, -np.inf, scores)
    for row, each, true in zip(bests(ranked, is_right, at), ranked, is_right, strict=True):
        assert row == pytest.approx([best_of(each, true, n) for n in at])


def test_permutations_have_each_sample_once() -> None:
    orders = permutations(16)
    assert (np.sort(orders, axis=1) == np.arange(16)).all()
    assert len({tuple(row) for row in orders}) == len(orders)


def test_resampled_means_are_means_of_as_many_problems_and_paired() -> None:
    weights = resamples(50)
    assert weights.shape == (RESAMPLES, 50)
    assert weights.sum(1) == pytest.approx(1.0)
    assert (weights == resamples(50)).all()
    values = np.random.default_rng(1).normal(size=50)
    low, high = interval(weights @ values)
    # The normal interval of a mean, within the noise of 2,000 resamples.
    spread = 1.96 * values.std() / np.sqrt(50)
    assert low == pytest.approx(values.mean() - spread, abs=0.3 * spread)
    assert high == pytest.approx(values.mean() + spread, abs=0.3 * spread)
