"""The fixed plans that the planner is compared with, by effort: see `router.profile.BaselineRecord`.

What the planner gets right is measured on queries that its curves were not fitted on: they are in folds,
and each fold is played by a profile of the others (`training.policy`), with estimates of difficulty that were
made without it, where there are such. A fixed plan is one greedy sample, or so many at a temperature, voted
on, with or without a verifier's weights; how often it is right on the very same queries is resampled from
their samples. Strategies that make chains in parts are in neither: of those only what came of them is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from isoflop.v1.verification_pb2 import Verifier
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from router import cost
from router.catalog import Catalog
from router.planner import Planner
from router.profile import BaselineRecord, Profile, parse
from training.measured import Array, Measured, Samples, numbered
from training.policy import EFFORTS, Solved, play
from training.votes import vote_accuracies

FOLDS = 5
LEAST_QUERIES = 30
"""With fewer nothing can be said."""
ROUND_SAMPLES = 4
"""As the router's settings have it."""


@dataclass(frozen=True)
class Plan:
    """A fixed plan, and what came of it: means over the queries."""

    model: str
    temperature: float
    strategy: str
    samples: int
    verifier: str
    accuracy: float
    flops: float
    money: float


def baselines(
    queries: Sequence[Measured],
    catalog: Catalog,
    profile: Profile,
    fold: NDArray[np.int64],
    fit: Callable[[Sequence[Measured]], dict[str, Any]],
    beliefs: Sequence[tuple[float, float]],
) -> dict[str, dict[str, Any]]:
    """By effort, the record of the fixed plan, as the file has it; of too few queries none.

    `fold` is that of each query, shape (Q,); `fit` makes a profile's data of some of the queries; `beliefs`
    are mean and standard deviation of each query's estimate. What a right answer is worth is as `profile`
    says.
    """
    if len(queries) < LEAST_QUERIES:
        return {}
    recorded, plans = _as_recorded(catalog, queries), list(_plans(queries, catalog, profile))
    solved: dict[str, list[tuple[Planner, Solved]]] = {effort: [] for effort in EFFORTS}
    with threadpool_limits(1, user_api="blas"):
        for number in np.unique(fold):
            known = parse(fit([query for query, own in zip(queries, fold, strict=True) if own != number]))
            planner = Planner(replace(known, efforts=profile.efforts, deep=()), recorded, ROUND_SAMPLES)
            for at in np.flatnonzero(fold == number).tolist():
                for effort, played in solved.items():
                    played.append((planner, play(planner, queries[at], effort, beliefs[at], seed=at)))
    return {effort: _record(effort, played, plans) for effort, played in solved.items()}


def _record(effort: str, solved: Sequence[tuple[Planner, Solved]], plans: Sequence[Plan]) -> dict[str, Any]:
    """The plan for an effort, beside what came of the planner there."""
    accuracy = float(np.mean([one.right for _, one in solved]))
    record = BaselineRecord(
        **vars(cheapest(plans, accuracy)),
        policy_accuracy=accuracy,
        policy_flops=float(np.mean([one.cost.flops for _, one in solved])),
        queries=len(solved),
    )
    expected = []
    for planner, one in solved:
        known = replace(planner.profile, baselines={effort: record})
        if told := replace(planner, profile=known).baseline(one.query, one.difficulty):
            expected.append(told.cost.flops)
    record = record.model_copy(update={"expected_flops": float(np.mean(expected))})
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in record.model_dump(exclude_defaults=True).items()
    }


def cheapest(plans: Sequence[Plan], accuracy: float) -> Plan:
    """The cheapest that is at least so often right; where none is, the one that is most often right."""
    enough = [plan for plan in plans if plan.accuracy >= accuracy]
    if enough:
        return min(enough, key=lambda plan: plan.flops)
    return max(plans, key=lambda plan: (plan.accuracy, -plan.flops))


def _as_recorded(catalog: Catalog, queries: Sequence[Measured]) -> Catalog:
    """The models with as many samples as each query has of them."""
    models = []
    for model in catalog.models.values():
        own = Model()
        own.CopyFrom(model)
        own.capabilities.samples = min(len(query.samples[model.name].answers) for query in queries)
        models.append(own)
    return Catalog.of(models, catalog.verifiers.values())


def _plans(queries: Sequence[Measured], catalog: Catalog, profile: Profile) -> Iterator[Plan]:
    """All fixed plans of the profile's arms, by what came of them."""
    for arm in profile.arms:
        model = catalog.models[arm.model]
        if arm.greedy:
            yield from _voted(model, 0.0, [query.greedy[arm.model] for query in queries], None)
            continue
        samples = [query.samples[arm.model] for query in queries]
        yield from _voted(model, arm.temperature, samples, None)
        # The router goes by the first verifier where none is named.
        verifier = next(iter(catalog.verifiers.values()), None)
        if verifier and arm.verified_by(verifier.name):
            yield from _voted(model, arm.temperature, samples, verifier)


def _voted(
    model: Model, temperature: float, samples: Sequence[Samples], verifier: Verifier | None
) -> Iterator[Plan]:
    """Votes of one sample to all of them; weighed ones of two at least."""
    answers = numbered(samples)
    most, weights = answers.shape[1], None
    if verifier:
        weights = np.nan_to_num(np.array([one.scores[verifier.name][:most] for one in samples]))
    sizes = range(2 if verifier else 1, most + 1)
    accuracies = vote_accuracies(answers, sizes, weights)
    once, again = _prices(model, samples, verifier)
    for size in sizes:
        flops, money = once + (size - 1) * again
        yield Plan(
            model=model.name,
            temperature=temperature,
            strategy="weighted" if verifier else "majority" if size > 1 else "single",
            samples=size,
            verifier=verifier.name if verifier else "",
            accuracy=float(accuracies[size].mean()),
            flops=float(flops),
            money=float(money),
        )


def _prices(model: Model, samples: Sequence[Samples], verifier: Verifier | None) -> tuple[Array, Array]:
    """FLOPs and money of a first sample, and of a further one whose prompt is cached: means over queries."""
    once, less = [], []
    for one in samples:
        flops, money, _ = cost.sample(model, one.prompt_tokens, one.tokens, verifier)
        once.append((flops.mean(), money.mean()))
        less.append(cost.cached(model, one.prompt_tokens))
    first = np.mean(once, axis=0)
    return first, first - np.mean(less, axis=0)
