"""How long samples are: what it says of a query, and what a cap on tokens costs and cuts.

The tokens of a sample are log-normal: the logarithm's mean is the type's, plus what sets this query apart
from others of its type (sd `between`), plus what sets this sample apart (sd `within`). A sample that was
cut at a cap says that it would have been longer. Lengths tell types apart that one vote cannot: what is hard
for a reasoning model takes it long, whether or not it ends right. Pure functions, numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TAIL = 3.0
"""Degrees of freedom of Student's distribution of a query's lengths about its type's: queries unlike all that
were calibrated are not impossible, however many samples say so."""


@dataclass(frozen=True)
class Lengths:
    """How long the samples of one arm were."""

    samples: int = 0
    """Those that ended by themselves."""
    log_tokens: float = 0.0
    """Sum over them of the natural logarithm of their tokens."""
    caps: tuple[float, ...] = ()
    """Of each of those that were cut, the logarithm of the tokens that it had by then."""

    def and_one(self, tokens: int, cut: bool) -> Lengths:
        """With one more sample."""
        log = math.log(max(tokens, 1))
        if cut:
            return Lengths(self.samples, self.log_tokens, (*self.caps, log))
        return Lengths(self.samples + 1, self.log_tokens + log, self.caps)


UNSEEN = Lengths()


@dataclass(frozen=True, eq=False)
class LengthCurve:
    """Lengths of an arm by type of query, shape (D,)."""

    mean: Array
    """Of the logarithm of a sample's tokens."""
    within: float
    """Its standard deviation among samples of one query."""
    between: float
    """That of the queries' means among queries of one type."""

    def foreseen(self, seen: Lengths) -> tuple[Array, float]:
        """Mean (D,) and standard deviation of the next sample's logarithm of tokens."""
        if not seen.samples:
            return self.mean, math.hypot(self.within, self.between)
        share = self.between**2 / (self.between**2 + self.within**2 / seen.samples)
        mean = self.mean + share * (seen.log_tokens / seen.samples - self.mean)
        return mean, math.sqrt(self.within**2 + self.between**2 * (1 - share))

    def log_likelihood(self, seen: Lengths) -> Array:
        """Of what was seen, by type, shape (D,), but for a constant."""
        told = np.zeros(len(self.mean))
        if seen.samples:
            variance = self.between**2 + self.within**2 / seen.samples
            apart = (seen.log_tokens / seen.samples - self.mean) ** 2 / variance
            told += log_student(apart)
        if seen.caps:
            mean, sd = self.foreseen(seen)
            for cap in seen.caps:
                told += np.log(np.maximum(below((mean - cap) / sd), 1e-12))
        return told

    def expected(self, seen: Lengths, cap: float) -> Array:
        """Tokens of the next sample where it is cut at `cap`, by type, shape (D,)."""
        mean, sd = self.foreseen(seen)
        return cut_at(mean, np.array(sd), np.array(cap))


def cut_at(mean: Array, sd: Array, cap: Array) -> Array:
    """Expected tokens of samples that are cut, of a mean and standard deviation of the logarithm each."""
    place = (np.log(cap) - mean) / sd
    missing = below(-place)
    return np.exp(mean + 0.5 * sd**2) * below(place - sd) + np.where(missing > 0, cap, 0.0) * missing


def log_student(apart: Array) -> Array:
    """Logarithm of Student's density, but for a constant, at squared distances in spreads."""
    return np.asarray(-0.5 * (TAIL + 1) * np.log1p(apart / TAIL))


def below(place: Array) -> Array:
    """The normal distribution function, to about 1e-7 (Abramowitz & Stegun 1964, 26.2.17)."""
    size = np.abs(place)
    t = 1.0 / (1.0 + 0.2316419 * size)
    rest = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = np.exp(-0.5 * size * size) * 0.3989422804014327 * rest
    return np.where(place > 0, 1.0 - tail, tail)
