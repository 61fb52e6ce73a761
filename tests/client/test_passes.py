"""pass@k against brute force over all subsets, and against the paper's product."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isoflop.passes import pass_at


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_is_the_share_of_subsets_with_a_right_one(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    subsets = [any(subset) for subset in combinations(right, k)]
    assert pass_at(k, len(right), sum(right)) == float(Fraction(sum(subsets), len(subsets)))


@given(st.integers(1, 2000), st.data())
def test_many_samples_are_as_the_product_of_the_paper_says(samples: int, data: st.DataObject) -> None:
    k, right = data.draw(st.integers(1, samples)), data.draw(st.integers(0, samples))
    product = 1.0
    if samples - right >= k:
        product = 1 - math.prod(1 - k / i for i in range(samples - right + 1, samples + 1))
    assert pass_at(k, samples, right) == pytest.approx(product, abs=1e-12)
    assert pass_at(1, samples, right) == right / samples
    assert pass_at(samples, samples, right) == bool(right)


@pytest.mark.parametrize(("k", "samples", "right"), [(0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1), (1, 0, 0)])
def test_more_than_there_is_is_refused(k: int, samples: int, right: int) -> None:
    with pytest.raises(ValueError, match="among the samples"):
        pass_at(k, samples, right)
