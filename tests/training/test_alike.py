"""How alike models are: none where they are what types say, much where they are right and wrong together."""

from __future__ import annotations

import numpy as np
import pytest
from planted import Array

from router.profile import Arm, Profile
from training import alike
from training.alike import ALIKE, UNKNOWN, Purchase
from training.measured import Measured, Samples

SAMPLES = 32
RATES = np.array([0.85, 0.35])
"""Of both types, of each model."""


def arm(model: str) -> Arm:
    return Arm(
        model=model,
        temperature=0.7,
        p_right=RATES,
        tokens=np.full(2, 50.0),
        concentration=4.0,
        scatter=1.0,
        votes=np.tile(RATES, (6, 1)),
        prompt_tokens_per_byte=1.0,
        seconds_per_token=0.0,
    )


PROFILE = Profile("p", np.array([-1.0, 1.0]), np.array([0.5, 0.5]), tuple(arm(name) for name in "abcd"), {})


def query(number: int, shared: bool, rng: np.random.Generator) -> Measured:
    """Four models that have chances of their own, or one chance and one wrong answer together."""
    mean = RATES[rng.integers(2)]

    def samples(chance: float, wrong: str) -> Samples:
        right = rng.random(SAMPLES) < chance
        return Samples(["right" if one else wrong for one in right], right, np.full(SAMPLES, 50.0))

    both = rng.beta(4 * mean, 4 * (1 - mean))
    chances: Array = np.full(4, both) if shared else rng.beta(4 * mean, 4 * (1 - mean), 4)
    return Measured(
        str(number),
        "",
        "",
        {
            name: samples(chance, "wrong" if shared else f"wrong of {name}")
            for name, chance in zip("abcd", chances.tolist(), strict=True)
        },
    )


def test_models_with_chances_of_their_own_are_less_alike_than_those_with_one_chance() -> None:
    rng = np.random.default_rng(2)
    found = [
        alike.fit([(PROFILE, [query(number, shared, rng) for number in range(150)])])
        for shared in (False, True)
    ]
    assert found[0] < found[1]
    assert found[1] >= 0.75
    assert set(found) <= set(ALIKE)


def test_without_queries_several_models_are_taken_to_tell_what_one_does() -> None:
    assert alike.fit(()) == UNKNOWN


def test_a_purchase_is_some_of_the_samples_of_several_models() -> None:
    rng = np.random.default_rng(0)
    made = query(0, False, rng)
    for _ in range(50):
        bought = Purchase.of(made, list("abcd"), rng)
        assert 2 <= len(bought.models) <= 4
        many = np.bincount(bought.row)
        assert all(one in (1, 2, 4, 8, 16, 32) for one in many)
        for row, model in enumerate(bought.models):
            right = (bought.answers[bought.row == row] == 0).sum()
            assert right <= made.samples["abcd"[model]].right.sum()


def test_confidence_that_was_wrong_is_unlikely() -> None:
    sure = Purchase(np.array([0, 1]), np.repeat([0, 1], 4), np.zeros(8, np.int64), np.full(8, 50.0))
    wrong = Purchase(np.array([0, 1]), np.repeat([0, 1], 4), np.ones(8, np.int64), np.full(8, 50.0))
    arms = PROFILE.arms
    assert np.exp(sure.log_chance(PROFILE.prior, arms)) > 0.9
    assert np.exp(sure.log_chance(PROFILE.prior, arms)) + np.exp(
        wrong.log_chance(PROFILE.prior, arms)
    ) == pytest.approx(1)
