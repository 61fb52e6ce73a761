"""How long samples take now, against when they were measured: what load does to the pools. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

HALF_LIFE = 30.0
"""Seconds after which an observation counts half as much."""

STEP = math.log(4)
"""So far, in log ratios, an observation counts from what is known: samples that ran while a process stood
still are no sign of how long others will take, and a load that lasts is learnt all the same."""


@dataclass
class Pace:
    """By model, an exponentially weighted mean, with one observation more: that nothing has changed."""

    _seen: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Sum of weights, weighted sum of log ratios, and when they were such."""

    def observe(self, model: str, ratio: float, now: float) -> None:
        """A sample took `ratio` times as long a token as was measured; `now` in seconds of any clock."""
        if math.isfinite(ratio) and ratio > 0:
            weight, total = self._faded(model, now)
            known = total / (1.0 + weight)
            seen = min(max(math.log(ratio), known - STEP), known + STEP)
            self._seen[model] = weight + 1.0, total + seen, now

    def at(self, now: float) -> dict[str, float]:
        """By model that was observed: how many times as long a sample takes; with time it comes back to 1."""
        faded = {model: self._faded(model, now) for model in self._seen}
        return {model: math.exp(total / (1.0 + weight)) for model, (weight, total) in faded.items()}

    def _faded(self, model: str, now: float) -> tuple[float, float]:
        weight, total, then = self._seen.get(model, (0.0, 0.0, now))
        left = 0.5 ** (max(0.0, now - then) / HALF_LIFE)
        return weight * left, total * left
