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
            alone.append(belief._log_partitions(np.array([3.0, 1.0]), np.full(2, 4.0)))
    wanted = sum(share * np.exp(one) for (_, share), one in zip(SCATTERED, alone, strict=True))
    assert np.exp(belief._log_partitions(np.array([3.0, 1.0]), np.full(2, 4.0))) == pytest.approx(wanted)
    assert update(PRIOR, votes).joint.sum() == pytest.approx(1)


def test_much_agreement_is_less_sure_than_where_wrong_answers_never_agree() -> None:
    arm = make_arm(p_right=np.array([0.2, 0.3]), scatter=20.0)
    votes = make_votes((arm, [8, 3, 1, 1], 0))
    confidence = update(PRIOR, votes).confidence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(belief, "SCATTERED", ((1.0, 1.0),))
        assert confidence < update(PRIOR, votes).confidence
