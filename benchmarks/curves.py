"""Fits of growth with the number of samples, as the headlines' claim was defined. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.resampling import Floats

_EXPONENTS: Final = np.geomspace(0.03, 3.0, 240)
"""Tried for n^-c: a fit is linear but for c."""


@dataclass(frozen=True)
class Fit:
    """A form, fitted to several curves at once: one row each."""

    name: str
    predicted: Floats
    """At the sizes that were asked for, shape (curves, sizes)."""
    ceiling: Floats
    """Of each curve, as n grows without end; NaN where the form has none."""


def fit_logarithm(curves: Floats, fitted: Sequence[int], asked: Sequence[int]) -> Fit:
    """a + c log n, by least squares."""
    values = _linear(np.log(fitted), curves, np.log(asked))[0]
    return Fit("a + c·log n", values, np.full(len(curves), np.nan))


def fit_power_law(curves: Floats, fitted: Sequence[int], asked: Sequence[int]) -> Fit:
    """1 - b n^-c: what is still wrong falls as a power of n, down to nothing."""
    at, least = np.array(asked, float), np.full(len(curves), np.inf)
    best = np.zeros((len(curves), len(at)))
    for exponent in _EXPONENTS:
        x = np.array(fitted, float) ** -exponent
        b = np.maximum((1 - curves) @ x / (x @ x), 0.0)
        error = ((1 - b[:, None] * x - curves) ** 2).sum(1)
        better = error < least
        best[better] = (1 - b[:, None] * at**-exponent)[better]
        least = np.minimum(error, least)
    return Fit("1 - b·n^-c", best, np.ones(len(curves)))


def fit_saturating(curves: Floats, fitted: Sequence[int], asked: Sequence[int]) -> Fit:
    """a - d n^-c: the same, towards a ceiling a of at most 1."""
    at, least = np.array(asked, float), np.full(len(curves), np.inf)
    best, ceiling = np.zeros((len(curves), len(at))), np.ones(len(curves))
    for exponent in _EXPONENTS:
        x = np.array(fitted, float) ** -exponent
        _, a, slope = _linear(x, curves, x)
        # A ceiling above 1 is none: the best fit that goes to 1.
        slope = np.where(a > 1, -((1 - curves) @ x) / (x @ x), slope)
        a = np.minimum(a, 1.0)
        error = ((a[:, None] + slope[:, None] * x - curves) ** 2).sum(1)
        better = error < least
        best[better] = (a[:, None] + slope[:, None] * at**-exponent)[better]
        ceiling[better] = a[better]
        least = np.minimum(error, least)
    return Fit("a - d·n^-c", best, ceiling)


def fits(curves: Floats, fitted: Sequence[int], asked: Sequence[int]) -> list[Fit]:
    """All three forms; `curves` has shape (curves, fitted)."""
    return [fit(curves, fitted, asked) for fit in (fit_logarithm, fit_power_law, fit_saturating)]


def _linear(x: Floats, curves: Floats, at: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares of each curve on x: values at `at`, intercepts, slopes."""
    centred = x - x.mean()
    slope = curves @ centred / (centred @ centred)
    intercept = curves.mean(1) - slope * x.mean()
    return intercept[:, None] + slope[:, None] * at, intercept, slope
