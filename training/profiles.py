"""A profile from measured samples: types of queries, and the curves of each arm over them.

Types are found by `training.query_types`. Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from numpy.typing import NDArray
from scipy.special import expit, gammaln, log_expit, logit

from router import cost
from router.profile import ROUND_SIZES, SAMPLES_WORTH, SCHEMA, equal_bins, parse, together
from training import alike, irt, profile_deep
from training.measured import Array, Measured, Samples, numbered, rounded
from training.query_types import PSEUDO_QUERIES, Counts, Types, find_types, in_order
from training.votes import vote_accuracies

FEWEST_QUERIES = 10
"""That a profile is made from."""
SCATTERS = tuple(float(value) for value in np.geomspace(0.25, 32, 29))
ALIKE = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Values that are tried for what is found by its likelihood: see `router.profile.ArmRecord`."""
CAPS = (0.5, 0.8, 0.95)
"""Quantiles of a model's tokens at which a sample may be cut."""
LEAST_SLOPE = 1e-3
"""Scores that say less say nothing."""


class FitError(Exception):
    """No profile can be made of this; `str(error)` says why."""


def scatter_of(answers: NDArray[np.int64], types: Types) -> Array:
    """How rarely wrong answers agree by type, shape (K,): Ewens's parameter by its likelihood.

    `answers` are `numbered`. Where a type has few wrong ones it is near that of all together.
    """
    alpha = np.array(SCATTERS)
    log = np.zeros((len(answers), len(alpha)))
    for told, row in zip(log, answers, strict=True):
        _, counts = np.unique(row[row > 0], return_counts=True)
        total = counts.sum()
        if total > 1:
            told += len(counts) * np.log(alpha) + gammaln(alpha) - gammaln(alpha + total)
    mean = np.log(alpha[(log.sum(axis=0) - 0.125 * np.log(alpha) ** 2).argmax()])
    return np.asarray(alpha[(types.of.T @ log - 0.5 * (np.log(alpha) - mean) ** 2).argmax(axis=1)])


def _blanks(answers: NDArray[np.int64]) -> float:
    """Share of wrong samples without an answer, with half of one more; `answers` are `numbered`."""
    return float(((answers < 0).sum() + 0.5) / ((answers != 0).sum() + 1))


def fit_verified(samples: Sequence[Samples], verifier: str, right: Array) -> dict[str, Any] | None:
    """What a verifier's scores say of right and wrong: see `router.profile.VerifiedRecord`; None: nothing.

    `right` is each query's chance of a right sample before it was scored, shape (Q,).
    """
    answers = numbered(samples)
    least = answers.shape[1]
    scores = np.array([one.scores[verifier][:least] for one in samples])
    truth = (answers == 0).astype(float)
    scored = (answers >= 0) & np.isfinite(scores)
    x = logit(np.clip(np.where(scored, scores, 0.5), 0.001, 0.999))
    offset = np.tile(logit(np.clip(right, 0.01, 0.99))[:, None], (1, least))
    slope = _slope(x[scored], truth[scored], offset[scored], least)
    if slope is None:
        return None
    a, b = slope
    evidence = np.where(scored, a + b * x, 0.0)
    alike = max(ALIKE, key=lambda value: _told(answers, evidence, right, value))
    say = [float(evidence[scored & (truth == value)].mean()) for value in (1.0, 0.0)]
    return {
        "verifier": verifier,
        "intercept": a,
        "slope": b,
        "alike": alike,
        "right": say[0],
        "wrong": say[1],
    }


def _slope(x: Array, truth: Array, offset: Array, alike: int) -> tuple[float, float] | None:
    """Logistic regression with an offset (Newton): intercept and slope; None where scores say nothing.

    With a standard normal prior on both that counts as much as one query, of `alike` samples.
    """
    if not len(x) or np.ptp(truth) == 0 or np.ptp(x) < LEAST_SLOPE:
        return None
    design, weights = np.column_stack([np.ones_like(x), x]), np.zeros(2)
    for _ in range(50):
        p = expit(offset + design @ weights)
        step = np.linalg.solve(
            design.T * (p * (1 - p)) @ design + alike * np.eye(2), design.T @ (truth - p) - alike * weights
        )
        weights += np.clip(step, -1.0, 1.0)
        if abs(step).max() < 1e-8:
            break
    return (float(weights[0]), float(weights[1])) if weights[1] > LEAST_SLOPE else None


def _told(answers: NDArray[np.int64], evidence: Array, right: Array, alike: float) -> float:
    """Log-likelihood that an answer is right by the scores of all of its samples together."""
    total = 0.0
    for row, said, p in zip(answers, evidence, np.clip(right, 0.01, 0.99), strict=True):
        for answer in np.unique(row[row >= 0]):
            own = said[row == answer]
            log_odds = logit(p) + together(own.sum(), len(own), alike)
            total += float(log_expit(log_odds if answer == 0 else -log_odds)) / len(np.unique(row))
    return total


def fit(
    queries: Sequence[Measured],
    models: Sequence[Model],
    version: str,
    *,
    temperature: float = 0.7,
    seconds_per_token: Mapping[str, float] | None = None,
    difficulty: Array | None = None,
    likeness: float | None = None,
) -> dict[str, Any]:
    """The profile of some models as the file has it, from queries of which all of them have samples.

    `difficulty` is each query's, shape (Q,), where it is known: mean 0, sd 1. Else an item-response model
    tells it from how often each model was right. `likeness` is how alike models are, where that is known.
    Raises FitError.
    """
    if len(queries) < FEWEST_QUERIES:
        raise FitError(f"a profile needs {FEWEST_QUERIES} queries at least, and there are {len(queries)}")

    def of(some: Sequence[int]) -> dict[str, Any]:
        own = None if difficulty is None else difficulty[list(some)]
        return _fit([queries[at] for at in some], models, version, temperature, seconds_per_token or {}, own)

    profile = of(range(len(queries)))
    if likeness is None:
        likeness = _likeness(of, queries, models)
    for arm in profile["arms"]:
        arm["alike"] = likeness
    return profile


def _likeness(
    of: Callable[[Sequence[int]], dict[str, Any]], queries: Sequence[Measured], models: Sequence[Model]
) -> float:
    """How alike models are; `of` makes the profile of some of the queries."""
    halves = np.random.default_rng(0).permutation(len(queries)) % 2
    parts = [np.flatnonzero(halves == half).tolist() for half in range(2)]
    # Each half is judged by what the other one says: types fit those that they were found in too well.
    judged = (
        (parse(of(own)), [queries[at] for at in other])
        for own, other in (parts, parts[::-1])
        if len(models) > 1 and min(len(own), len(other)) >= FEWEST_QUERIES
    )
    return alike.fit(judged)


def _fit(
    queries: Sequence[Measured],
    models: Sequence[Model],
    version: str,
    temperature: float,
    seconds_per_token: Mapping[str, float],
    difficulty: Array | None,
) -> dict[str, Any]:
    """The profile, but for how alike models are."""
    named = [model.name for model in models]
    several = {name: [query.samples[name] for query in queries] for name in named}
    right = np.array([[one.right.sum() for one in several[name]] for name in named], float).T
    total = np.array([[len(one.right) for one in several[name]] for name in named], float).T
    logs = {name: [np.log(np.maximum(one.tokens, 1.0)) for one in several[name]] for name in named}
    counts = Counts(
        right,
        total,
        np.array([[one.mean() for one in logs[name]] for name in named]).T,
        np.array([[one.var(ddof=1) for one in logs[name]] for name in named]).T,
    )
    types = find_types(counts)
    if difficulty is None:
        difficulty = irt.fit(right, total).difficulty
    types, grid = in_order(types, difficulty)
    arms = []
    for number, model in enumerate(models):
        arm = _sampled_arm(types, number, several[model.name], model.name, temperature)
        arm["seconds_per_token"] = round(seconds_per_token.get(model.name, 0.0), 7)
        prompt = sum(one.prompt_tokens for one in several[model.name])
        bytes = sum(len(query.prompt.encode()) for query in queries)
        arm["prompt_tokens_per_byte"] = max(round(prompt / bytes, 4), 1e-9) if bytes else 1e-9
        if all(model.name in query.greedy for query in queries):
            arms.append(_greedy_arm(types, arm, [query.greedy[model.name] for query in queries]))
            arm["p_right_after_greedy"] = _after_greedy(types, arm, queries, model.name)
        arms.append(arm)
    sampled = {arm["model"]: arm for arm in arms if arm["temperature"]}
    deep = profile_deep.records(types, sampled, queries, models)
    dearest = max(models, key=lambda model: model.shape.active_parameters)
    tokens = np.mean([one.tokens.mean() for one in several[dearest.name]])
    once = cost.samples(dearest, 1, 0, max(float(tokens), 1.0)).flops
    return {
        "schema": SCHEMA,
        "version": version,
        "grid": rounded(grid),
        "prior": rounded(types.share, 6),
        "arms": arms,
        **({"deep": deep} if deep else {}),
        "efforts": {name: float(f"{worth * once:.4g}") for name, worth in SAMPLES_WORTH.items()},
    }


def _sampled_arm(
    types: Types, number: int, samples: Sequence[Samples], model: str, temperature: float
) -> dict[str, Any]:
    """The record of a model's samples at a temperature."""
    answers = numbered(samples)
    enough = answers.shape[1] * 2 // 3
    sizes = [size for size in ROUND_SIZES if size == 1 or size <= enough]
    right = types.right[:, number]
    votes = {size: types.mean(by_query) for size, by_query in vote_accuracies(answers, sizes).items()}
    votes[1] = right
    lengths = np.concatenate([one.tokens for one in samples])
    arm: dict[str, Any] = {
        "model": model,
        "temperature": temperature,
        "p_right": rounded(right),
        "p_right_error": rounded(types.error[:, number]),
        "p_right_after_greedy": None,
        "tokens": rounded(np.maximum(types.mean(np.array([one.tokens.mean() for one in samples])), 1.0), 1),
        "length": {
            "mean": rounded(types.log_tokens[:, number]),
            "within": round(float(types.within[number]), 4),
            "between": round(float(types.between[number]), 4),
            "caps": sorted({max(int(cap), 1) for cap in np.quantile(lengths, CAPS)}),
        },
        "concentration": float(types.concentration[number]),
        "scatter": rounded(scatter_of(answers, types), 3),
        "votes": {str(size): rounded(curve) for size, curve in votes.items()},
        "blanks": round(_blanks(answers), 4),
    }
    expected = types.of @ right
    arm["verified"] = []
    for verifier in sorted(set.intersection(*(set(one.scores) for one in samples))):
        told = fit_verified(samples, verifier, expected)
        if told:
            least = answers.shape[1]
            weights = np.nan_to_num(np.array([one.scores[verifier][:least] for one in samples]))
            measured = vote_accuracies(answers, sizes, weights)
            told = {
                name: value if isinstance(value, str) else round(value, 4) for name, value in told.items()
            }
            told["votes"] = {str(size): rounded(types.mean(curve)) for size, curve in measured.items()}
            arm["verified"].append(told)
    return arm


def _greedy_arm(types: Types, arm: dict[str, Any], samples: Sequence[Samples]) -> dict[str, Any]:
    """The record of the model's greedy samples, beside that of its others."""
    counts, sampled = types.of.sum(0), np.array(arm["p_right"])
    right = np.array([one.right[0] for one in samples], float)
    p = np.minimum((types.of.T @ right + PSEUDO_QUERIES * sampled) / (counts + PSEUDO_QUERIES), 1.0)
    tokens = np.maximum([one.tokens[0] for one in samples], 1.0)
    return {
        **{name: arm[name] for name in ("model", "concentration", "scatter", "blanks", "seconds_per_token")},
        "prompt_tokens_per_byte": arm["prompt_tokens_per_byte"],
        "temperature": 0.0,
        "p_right": rounded(p),
        "p_right_error": rounded(np.sqrt(p * (1 - p) / (counts + PSEUDO_QUERIES))),
        "tokens": rounded(
            (types.of.T @ tokens + PSEUDO_QUERIES * np.array(arm["tokens"])) / (counts + PSEUDO_QUERIES), 1
        ),
        "votes": {},
    }


def _after_greedy(types: Types, arm: dict[str, Any], queries: Sequence[Measured], model: str) -> list[float]:
    """Chance that a sample is right where the greedy one was wrong, by type, shape (K,)."""
    wrong = np.array([not query.greedy[model].right[0] for query in queries], float)
    rate = np.array([query.samples[model].right.mean() for query in queries])
    curve = np.array(arm["p_right"])
    expected = types.of @ curve
    # What it is of the chance that the types foresee, over all queries; and by type as far as it has queries.
    share = (wrong @ rate + PSEUDO_QUERIES) / (wrong @ expected + PSEUDO_QUERIES)
    weight = types.of.T @ wrong
    after = (types.of.T @ (wrong * rate) + PSEUDO_QUERIES * curve * share) / (weight + PSEUDO_QUERIES)
    return rounded(np.clip(np.minimum(after, curve), 0.0, 1.0))


def thirds(share: Sequence[float], curve: Sequence[float]) -> list[float]:
    """Mean of a curve over the easiest, the middle and the hardest third of the queries."""
    return rounded(equal_bins(np.array(share, float), 3) @ np.array(curve))
