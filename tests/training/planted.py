"""Samples of queries whose types are known, as some models might have made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from isoflop.v1.common_pb2 import Model, Shape
from numpy.typing import NDArray
from scipy.special import expit

from router.cost import sample
from router.strategies.strategy import Search
from training.measured import Array, Deep, Measured, Played, Samples
from training.query_types import Counts

RATES = np.array([[0.95, 0.99], [0.4, 0.8], [0.05, 0.3]])
"""Shape (3 types, 2 models): chance that a sample is right."""
TOKENS = np.array([[40.0, 50.0], [80.0, 90.0], [150.0, 200.0]])
"""Likewise the median of a sample's tokens."""
MODELS = (
    Model(name="a", shape=Shape(active_parameters=1_000_000), context=1024),
    Model(name="b", shape=Shape(active_parameters=8_000_000), context=1024),
)
BEAM = Deep("a", "beam", Search(4, 4, 64), "judge")


def planted(
    queries: int = 300,
    samples: int = 16,
    *,
    rates: Array = RATES,
    tokens: Array = TOKENS,
    concentration: float = 60.0,
    wrong: int = 6,
    scores: Callable[[np.random.Generator, NDArray[np.bool_]], Array] | None = None,
    seed: int = 1,
) -> tuple[list[Measured], NDArray[np.int64]]:
    """Queries with greedy samples, and their types in turn; wrong answers are any of `wrong`, alike likely.

    `scores` makes a verifier's scores of samples from whether they are right.
    """
    rng = np.random.default_rng(seed)
    of = np.arange(queries) % len(rates)
    made = []
    for number, kind in enumerate(of):
        own, greedy = {}, {}
        for at, model in enumerate(MODELS[: rates.shape[1]]):
            p = rates[kind, at]
            rate = rng.beta(concentration * p, concentration * (1 - p)) if 0 < p < 1 else p
            right = rng.random(samples + 1) < rate
            answers = ["right" if r else f"wrong {rng.integers(wrong)}" for r in right]
            mean = np.log(tokens[kind, at]) + rng.normal(0, 0.1)
            lengths = np.exp(mean + rng.normal(0, 0.3, samples + 1)).round()
            told = {"judge": scores(rng, right[:samples])} if scores else {}
            own[model.name] = Samples(answers[:-1], right[:-1], lengths[:-1], 12, told)
            greedy[model.name] = Samples(answers[-1:], right[-1:], lengths[-1:], 12)
        made.append(Measured(f"q{number}", f"query number {number}", str(kind), own, greedy))
    return made, of


def searched(
    queries: Sequence[Measured],
    of: NDArray[np.int64],
    right: Sequence[float],
    times: Sequence[float],
    *,
    deep: Deep = BEAM,
    tokens: float = 100.0,
    seed: int = 2,
) -> list[Measured]:
    """The queries, with a strategy that is right so often and costs so many samples, by type."""
    rng = np.random.default_rng(seed)
    (model,) = [model for model in MODELS if model.name == deep.model]
    made = []
    for query, kind in zip(queries, of, strict=True):
        one = query.samples[model.name]
        flops = times[kind] * sample(model, one.prompt_tokens, float(one.tokens.mean()))[0]
        played = Played(float(rng.random() < right[kind]), tokens, flops)
        made.append(replace(query, deep={**query.deep, deep: played}))
    return made


def counts_of(queries: Sequence[Measured], models: Sequence[str] = ("a", "b")) -> Counts:
    """What types are found in."""
    cells = [[query.samples[name] for name in models] for query in queries]

    def each(value: Callable[[Samples], float]) -> Array:
        return np.array([[value(one) for one in row] for row in cells], float)

    return Counts(
        each(lambda one: one.right.sum()),
        each(lambda one: len(one.right)),
        each(lambda one: np.log(one.tokens).mean()),
        each(lambda one: np.log(one.tokens).var(ddof=1)),
    )


def single_scores(slope: float) -> Callable[[np.random.Generator, NDArray[np.bool_]], Array]:
    """Scores of samples, each for itself, whose logit says `slope` log-odds a unit of right and wrong.

    Normal with means 1 and -1 and variance 2 / slope: the log-likelihood ratio is slope times the logit.
    """

    def scores(rng: np.random.Generator, right: NDArray[np.bool_]) -> Array:
        x = np.where(right, 1.0, -1.0) + rng.normal(0, np.sqrt(2 / slope), len(right))
        return np.asarray(expit(x))

    return scores


def clustered_scores(rng: np.random.Generator, right: NDArray[np.bool_]) -> Array:
    """All samples that are right have one score, all that are wrong another."""
    high, low = rng.normal(1, 1), rng.normal(-1, 1)
    return np.asarray(expit(np.where(right, high, low)))
