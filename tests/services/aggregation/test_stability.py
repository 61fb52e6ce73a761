"""The Beta rule, against scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import beta

from services.aggregation.stability import incomplete_beta_at_half, stability

VOTES = st.one_of(st.integers(0, 2000).map(float), st.floats(0, 2000))


@given(VOTES, VOTES)
def test_like_scipy(leader: float, rival: float) -> None:
    assert incomplete_beta_at_half(leader + 1, rival + 1) == pytest.approx(
        betainc(leader + 1, rival + 1, 0.5), rel=1e-9, abs=1e-12
    )
    assert stability(leader, rival) == pytest.approx(beta.sf(0.5, leader + 1, rival + 1), abs=1e-11)


@pytest.mark.parametrize("votes", [(1e5, 1e5 - 300), (9e5, 9e5), (2e6, 2e6 - 3000), (1e9, 1e9), (1e7, 3)])
def test_many_votes(votes: tuple[float, float]) -> None:
    assert stability(*votes) == pytest.approx(betainc(votes[1] + 1, votes[0] + 1, 0.5), abs=1e-3)


def test_known_values() -> None:
    assert stability(0, 0) == pytest.approx(0.5)
    assert stability(1, 0) == pytest.approx(0.75)
    assert stability(4, 0) == pytest.approx(1 - 2**-5)
    assert stability(3, 3) == pytest.approx(0.5)
    assert stability(2, 5) == pytest.approx(1 - stability(5, 2))
    assert 0.999999 < stability(1e300, 1e3) <= 1.0
    assert math.isfinite(stability(1e300, 1e300))


@given(VOTES, VOTES, st.floats(0.1, 100))
def test_more_votes_more_sure(leader: float, rival: float, more: float) -> None:
    assert stability(leader + more, rival) >= stability(leader, rival) - 1e-12
