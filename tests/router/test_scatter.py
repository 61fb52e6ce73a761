"""Queries of one type differ in how their wrong answers agree: the mean over several parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic import make_arm, make_votes

from router import belief
from router.belief import SCATTERED, update

PRIOR = np.array([0.5, 0.5])


def test_the_shares_are_a_distribution() -> None:
    assert math.fsum(share for _, share in SCATTERED) == pytest.approx(1)


def test_it_is_the_mean_of_ewenss_formula_over_the_parameters() -> None:
    arm = make_arm(p_right=np.array([0.2, 0.6]), scatter=4.0)
    votes = make_votes((arm, [3, 1], 0))
    alone = []
    for factor, _ in SCATTERED:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(belief, "SCATTERED", ((factor, 1.0),))
            alone.append(belief._log_agreement(votes, 2))
    wanted = sum(share * np.exp(one) for (_, share), one in zip(SCATTERED, alone, strict=True))
    assert np.exp(belief._log_agreement(votes, 2)) == pytest.approx(wanted)
    assert update(PRIOR, votes).joint.sum() == pytest.approx(1)


def test_much_agreement_is_less_sure_than_where_wrong_answers_never_agree() -> None:
    arm = make_arm(p_right=np.array([0.2, 0.3]), scatter=20.0)
    votes = make_votes((arm, [8, 3, 1, 1], 0))
    confidence = update(PRIOR, votes).confidence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belief, "SCATTERED", ((1.0, 1.0),))
        assert confidence < update(PRIOR, votes).confidence


def test_the_same_wrong_answer_of_two_models_is_as_likely_as_two() -> None:
    arms = [make_arm(model=model, p_right=np.array([0.001, 0.001])) for model in "ab"]
    same, apart = (
        belief._log_agreement(make_votes((arms[0], a, 0), (arms[1], b, 0)), 2)[-1]
        for a, b in (([1], [1]), ([1, 0], [0, 1]))
    )
    assert same == pytest.approx(apart)


def test_models_that_are_alike_say_less_together_than_apart() -> None:
    def confidence(alike: float, votes: int) -> float:
        arms = [make_arm(model=model, p_right=np.array([0.9, 0.4]), alike=alike) for model in "ab"]
        return update(PRIOR, make_votes(*((arm, [votes], 0) for arm in arms))).confidence

    assert confidence(1.0, 8) < confidence(0.3, 8) < confidence(0.0, 8)
    one = update(PRIOR, make_votes((make_arm(p_right=np.array([0.9, 0.4]), alike=1.0), [8], 0))).confidence
    assert one == update(PRIOR, make_votes((make_arm(p_right=np.array([0.9, 0.4])), [8], 0))).confidence
    # What others say counts, for all that they are alike.
    assert (
        confidence(1.0, 1)
        > update(PRIOR, make_votes((make_arm(p_right=np.array([0.9, 0.4])), [1], 0))).confidence
    )
