"""Scaling laws for a profile: what `training.scaling` finds in the samples of a calibration. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from router.scaling import ScalingRecord, Strategy
from training.measured import Measured, numbered
from training.resampling import NO_ANSWER
from training.scaling import Outcomes, difficulties, scaling, sizes

LEAST_POINTS: Final = 3
"""Numbers of samples at which a curve was measured, for a law to be told: two are on any curve."""


def laws(queries: Sequence[Measured], models: Sequence[str], temperature: float) -> list[ScalingRecord]:
    """The laws of each model and strategy, over all queries and by bin of difficulty, easiest first.

    Of a model each query has as many samples as the one with fewest. Votes are told of all models, weighed
    ones and best of n by verifier, where it has scored all queries. Where samples are too few there is none.
    """
    voted, scored = list[Outcomes](), list[list[Outcomes]]()
    for model in models:
        samples = [query.samples[model] for query in queries]
        answers = numbered(samples)
        least = answers.shape[1]
        right = np.where((answers == 0).any(1), 0, NO_ANSWER)
        voted.append(Outcomes(model, temperature, answers, right))
        by_verifier = []
        for verifier in sorted(set.intersection(*(set(one.scores) for one in samples))):
            scores = np.array([one.scores[verifier][:least] for one in samples])
            if np.isfinite(scores).any():
                # What could not be scored has no weight.
                given = np.nan_to_num(scores)
                by_verifier.append(Outcomes(model, temperature, answers, right, given, verifier))
        scored.append(by_verifier)
    difficulty = difficulties(voted)
    return [
        law.record
        for plain, by_verifier in zip(voted, scored, strict=True)
        for strategy, one in _measurable(plain, by_verifier)
        if len(sizes(strategy, one.answers.shape[1])) >= LEAST_POINTS
        for law in scaling(one, difficulty, strategy)
        if len(law.points.samples) >= LEAST_POINTS
    ]


def _measurable(plain: Outcomes, by_verifier: Sequence[Outcomes]) -> Iterator[tuple[Strategy, Outcomes]]:
    yield "majority", plain
    for one in by_verifier:
        yield "weighted", one
        yield "best_of_n", one
