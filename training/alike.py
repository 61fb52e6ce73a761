"""How alike models are: how much less several tell of a query together than each by itself.

Models are wrong on the same queries more often than the types of a profile say. How much of what they say
together counts (`router.belief.weight`) is found by likelihood: confidence should be right for random
purchases on queries that the profile was not made from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.belief import Votes, update
from router.lengths import Lengths
from router.profile import Arm, Profile
from training.measured import Array, Measured, Samples, numbered

ALIKE = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values that are tried; at 1 all models together tell what one does."""
UNKNOWN = 1.0
"""Where there are too few queries to tell: several count as one."""
PURCHASES = 4
"""Of each query: of two to MODELS models, each of 1, 2, 4, ... samples, by SIZES."""
MODELS = 4
SIZES = 6
LEAST = 1e-4
"""Confidence nearer to 0 or 1 is not told from it."""


def fit(judged: Iterable[tuple[Profile, Sequence[Measured]]]) -> float:
    """The value of ALIKE by likelihood, over profiles with queries that they were not made from."""
    rng = np.random.default_rng(0)
    told = np.zeros(len(ALIKE))
    for profile, queries in judged:
        arms = [arm for arm in profile.arms if not arm.greedy]
        tried = [[replace(arm, alike=value) for arm in arms] for value in ALIKE]
        for query in queries:
            for _ in range(PURCHASES):
                bought = Purchase.of(query, [arm.model for arm in arms], rng)
                told += [bought.log_chance(profile.prior, several) for several in tried]
    return ALIKE[int(told.argmax())] if told.any() else UNKNOWN


@dataclass(frozen=True, eq=False)
class Purchase:
    """Some of a query's samples: of some models' samples, their answers and tokens."""

    models: NDArray[np.int64]
    """Shape (M,): which."""
    row: NDArray[np.int64]
    """Shape (n,): of each sample, which of `models`."""
    answers: NDArray[np.int64]
    """Shape (n,): as `numbered` has them."""
    tokens: Array
    """Shape (n,)."""

    @classmethod
    def of(cls, query: Measured, names: Sequence[str], rng: np.random.Generator) -> Purchase:
        """At random: see PURCHASES."""
        models = rng.permutation(len(names))[: rng.integers(2, min(MODELS, len(names)) + 1)]
        parts = [query.samples[names[model]] for model in models]
        places = [rng.permutation(len(part.answers))[: 2 ** rng.integers(0, SIZES)] for part in parts]
        pairs = list(zip(parts, places, strict=True))
        some = Samples(
            [part.answers[place] for part, at in pairs for place in at.tolist()],
            np.concatenate([part.right[at] for part, at in pairs]),
            np.concatenate([part.tokens[at] for part, at in pairs]),
        )
        return cls(
            models,
            np.repeat(np.arange(len(models)), [len(at) for at in places]),
            numbered([some])[0],
            some.tokens,
        )

    def log_chance(self, prior: Array, arms: Sequence[Arm]) -> float:
        """Logarithm of the confidence that the leader is right, or wrong, whichever it is."""
        own = [arms[model] for model in self.models.tolist()]
        said, column = np.unique(self.answers[self.answers >= 0], return_inverse=True)
        counts = np.zeros((len(own), len(said)))
        np.add.at(counts, (self.row[self.answers >= 0], column), 1.0)
        blanks = np.bincount(self.row[self.answers < 0], minlength=len(own)).astype(np.float64)
        logs = np.log(np.maximum(self.tokens, 1.0))
        samples, sums = np.bincount(self.row), np.bincount(self.row, logs)
        lengths = tuple(Lengths(n, total) for n, total in zip(samples.tolist(), sums.tolist(), strict=True))
        posterior = update(prior, Votes(tuple(own), counts, blanks, lengths))
        right = posterior.leader >= 0 and said[posterior.leader] == 0
        confidence = min(max(posterior.confidence, LEAST), 1 - LEAST)
        return math.log(confidence if right else 1 - confidence)
