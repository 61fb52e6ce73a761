"""The item-response model finds what simulated answers were drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from training.irt import fit, posteriors

Array = NDArray[np.float64]


def simulated(
    seed: int, queries: int, models: int, samples: int, missing: float = 0.0
) -> tuple[Array, Array, Array, Array, Array]:
    """Counts, and the difficulties, abilities and slopes that they come from."""
    rng = np.random.default_rng(seed)
    difficulty, ability = rng.normal(size=queries), rng.normal(size=models)
    slope = np.exp(rng.normal(0.5, 0.4, models))
    total = np.full((queries, models), float(samples))
    total[rng.random(total.shape) < missing] = 0
    right = rng.binomial(total.astype(int), expit(slope * (ability - difficulty[:, None])))
    return right.astype(float), total, difficulty, ability, slope


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    models=st.integers(2, 6),
    samples=st.integers(4, 16),
    missing=st.sampled_from([0.0, 0.3]),
)
def test_parameters_are_recovered(seed: int, models: int, samples: int, missing: float) -> None:
    """Within their standard errors, with room for the draw of the queries themselves."""
    right, total, difficulty, ability, slope = simulated(seed, 800, models, samples, missing)
    found = fit(right, total)
    assert (np.abs(found.ability - ability) < 5 * found.ability_error + 0.1).all()
    assert (np.abs(np.log(found.slope / slope)) < 5 * found.slope_error / found.slope + 0.2).all()
    assert found.difficulty.std() < 1.1
    z = (found.difficulty - difficulty) / found.difficulty_sd
    assert 0.8 < float(np.sqrt((z**2).mean())) < 1.25


def test_difficulties_are_recovered_and_more_samples_tell_more() -> None:
    correlations, widths = [], []
    for samples in (1, 4, 16):
        right, total, difficulty, *_ = simulated(3, 1000, 5, samples)
        found = fit(right, total)
        correlations.append(float(np.corrcoef(found.difficulty, difficulty)[0, 1]))
        widths.append(float(found.difficulty_sd.mean()))
    assert correlations == sorted(correlations)
    assert widths == sorted(widths, reverse=True)
    assert correlations[-1] > 0.95


def test_standard_errors_are_those_of_repeated_experiments() -> None:
    runs = [fit(*simulated(1, 300, 3, 8)[:2])]
    rng = np.random.default_rng(9)
    _, total, _, ability, slope = simulated(1, 300, 3, 8)
    for _ in range(40):
        difficulty = rng.normal(size=300)
        right = rng.binomial(total.astype(int), expit(slope * (ability - difficulty[:, None])))
        runs.append(fit(right, total))
    for name in ("ability", "slope"):
        spread = np.std([getattr(run, name) for run in runs[1:]], axis=0)
        said = np.mean([getattr(run, f"{name}_error") for run in runs[1:]], axis=0)
        assert (said / spread > 0.6).all()
        assert (said / spread < 1.6).all()


def test_a_query_without_samples_has_the_prior() -> None:
    right, total, *_ = simulated(5, 200, 3, 8)
    right[7], total[7] = 0, 0
    found = fit(right, total)
    assert found.difficulty[7] == pytest.approx(0.0, abs=1e-6)
    assert found.difficulty_sd[7] == pytest.approx(1.0, abs=1e-3)


def test_models_that_are_always_or_never_right_have_finite_curves() -> None:
    right, total, *_ = simulated(6, 100, 4, 8)
    right[:, 0], right[:, 1] = total[:, 0], 0
    found = fit(right, total)
    for values in vars(found).values():
        assert np.isfinite(values).all()
    assert found.ability[0] > 1 > -1 > found.ability[1]


def test_posteriors_are_those_of_the_fit_whoever_else_is_asked() -> None:
    right, total, *_ = simulated(7, 150, 3, 8)
    found = fit(right, total)
    mean, sd = posteriors(right[40:60], total[40:60], found.ability, found.slope)
    assert mean == pytest.approx(found.difficulty[40:60])
    assert sd == pytest.approx(found.difficulty_sd[40:60])


@pytest.mark.parametrize(
    ("right", "total", "said"),
    [
        ([1.0], [1.0], "shapes"),
        ([[1.0]], [[1.0, 2.0]], "shapes"),
        ([[]], [[]], "shapes"),
        ([[3.0]], [[2.0]], "more right"),
        ([[-1.0]], [[2.0]], "more right"),
        ([[1.0, 0.0]], [[2.0, 0.0]], "no samples"),
    ],
)
def test_what_is_no_count_is_refused(right: list[object], total: list[object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit(np.array(right), np.array(total))
