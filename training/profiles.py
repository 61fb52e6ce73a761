"""A profile from measured samples: types of queries, and the curves of each arm over them.

Queries fall into types: a mixture that is fitted by expectation-maximisation (latent class analysis:
Lazarsfeld & Henry 1968; Dempster, Laird & Rubin 1977). A type has for each model a chance that one sample is
right, from which its queries differ as a beta distribution does, and a mean of the logarithm of a sample's
tokens. One line of difficulties would not do: queries on which all models agree on the same wrong answer are
few and are a type of their own, without which confidence is too high. Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from numpy.typing import NDArray
from scipy.special import betaln, expit, gammaln, log_expit, logit, logsumexp
from sklearn.cluster import AgglomerativeClustering

from router import cost
from router.lengths import log_student
from router.profile import ROUND_SIZES, SAMPLES_WORTH, SCHEMA, equal_bins, parse, together
from training import alike, irt
from training.measured import Array, Measured, Samples, numbered

TYPES = (8, 16, 32, 64)
"""Numbers of types that are tried."""
FEWEST_QUERIES = 10
"""That a profile is made from."""
QUERIES_A_TYPE = 5
"""Fewest queries that there are for each type, on average."""
FOLDS = 5
"""Of the cross-validation that says how many types there are, and how much queries of one type differ."""
ROUNDS = 20
"""Of expectation and maximisation; they start from Ward's clusters."""
CONCENTRATIONS = tuple(float(2**k) for k in range(10))
SCATTERS = tuple(float(value) for value in np.geomspace(0.25, 32, 29))
ALIKE = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Values that are tried for what is found by its likelihood: see `router.profile.ArmRecord`."""
CLUSTERED = 4000
"""Queries at most that Ward's clusters are found in, as their memory grows with the square."""
PERMUTATIONS = 50
"""Resamplings of stored samples for the accuracy of votes."""
CAPS = (0.5, 0.8, 0.95)
"""Quantiles of a model's tokens at which a sample may be cut."""
LEAST_SLOPE = 1e-3
"""Scores that say less say nothing."""
SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Of the logarithm of tokens between queries of one type; likewise tried."""
PSEUDO_QUERIES = 2.0
"""For what is measured on single samples: so many more that behave as the model does elsewhere."""


class FitError(Exception):
    """No profile can be made of this; `str(error)` says why."""


@dataclass(frozen=True, eq=False)
class Types:
    """Q queries, K types by rising difficulty, M models."""

    of: Array
    """Shape (Q, K): chance that a query is of a type."""
    right: Array
    """Shape (K, M): chance that one sample is right."""
    error: Array
    """Shape (K, M): standard error of that."""
    log_tokens: Array
    """Shape (K, M): mean natural logarithm of a sample's tokens."""
    concentration: Array
    """Shape (M,): see `ArmRecord`."""
    within: Array
    between: Array
    """Shape (M,): see `LengthRecord`."""

    @property
    def share(self) -> Array:
        """Shape (K,): of the queries."""
        return np.asarray(self.of.mean(axis=0))

    def mean(self, values: Array) -> Array:
        """Shape (K,): mean by type of something that each query has, shape (Q,)."""
        return np.asarray(self.of.T @ values / self.of.sum(axis=0))


@dataclass(frozen=True, eq=False)
class Counts:
    """What types are found in; all shapes are (Q, M), by query and model."""

    right: Array
    """Samples that were right."""
    total: Array
    """Samples."""
    log_tokens: Array
    """Mean of the logarithm of their tokens."""
    spread: Array
    """Its variance among a query's samples."""

    def of(self, chosen: NDArray[Any]) -> Counts:
        """Those of some queries."""
        return Counts(*(values[chosen] for values in vars(self).values()))


def find_types(counts: Counts) -> Types:
    """The types of Q queries.

    How many there are, and how much queries of one type differ, is what makes other queries likeliest: to
    those that they were found in types fit too well, and confidence would be too high.
    """
    queries = len(counts.right)
    fold = np.random.default_rng(0).permutation(queries) % FOLDS
    best: tuple[float, int, Array, Array] | None = None
    for many in dict.fromkeys(min(many, max(2, queries // QUERIES_A_TYPE)) for many in TYPES):
        parts = [(_mixture(counts.of(fold != f), many), counts.of(fold == f)) for f in range(FOLDS)]
        told, concentration, between = _differences(parts)
        if best is None or told > best[0]:
            best = told, many, concentration, between
    assert best
    return replace(_mixture(counts, best[1]), concentration=best[2], between=best[3])


def _differences(parts: Sequence[tuple[Types, Counts]]) -> tuple[float, Array, Array]:
    """Log-likelihood of other queries than each of the types were found in, with what makes it greatest.

    That is for each model the concentration, and the spread of the logarithm of tokens between queries.
    """
    models = range(parts[0][1].right.shape[1])
    rates = [[_rates(types, counts, value) for value in CONCENTRATIONS] for types, counts in parts]
    sizes = [[_lengths(types, counts, value) for value in SPREADS] for types, counts in parts]
    chosen = [[len(CONCENTRATIONS) // 2 for _ in models], [len(SPREADS) // 2 for _ in models]]

    def told() -> float:
        total = 0.0
        for (types, _), rate, size in zip(parts, rates, sizes, strict=True):
            log = np.log(types.share) + sum(
                rate[chosen[0][m]][:, :, m] + size[chosen[1][m]][:, :, m] for m in models
            )
            total += float(logsumexp(log, axis=1).sum())
        return total

    best = told()
    for _ in range(2):  # One after the other; a second round changes little.
        for kind, values in enumerate((CONCENTRATIONS, SPREADS)):
            for model in models:
                for value in range(len(values)):
                    before = chosen[kind][model]
                    chosen[kind][model] = value
                    if (now := told()) > best:
                        best = now
                    else:
                        chosen[kind][model] = before
    return best, np.array(CONCENTRATIONS)[chosen[0]], np.array(SPREADS)[chosen[1]]


def _rates(types: Types, counts: Counts, concentration: float) -> Array:
    """Log-likelihood of the right samples, shape (Q, K, M)."""
    return _beta_binomial(np.clip(types.right, 1e-3, 1 - 1e-3), concentration, counts.right, counts.total)


def _lengths(types: Types, counts: Counts, between: float) -> Array:
    """Log-likelihood of the lengths, shape (Q, K, M)."""
    variance = (between**2 + types.within**2 / counts.total)[:, None]
    apart = (counts.log_tokens[:, None] - types.log_tokens) ** 2 / variance
    return np.asarray(log_student(apart) - 0.5 * np.log(variance))


def _mixture(counts: Counts, many: int) -> Types:
    """So many types at most, by expectation and maximisation."""
    right, total, log_tokens = counts.right, counts.total, counts.log_tokens
    queries, rate = len(right), right.sum(0) / total.sum(0)
    within = np.maximum(np.sqrt(counts.spread.mean(0)), 1e-3)
    arcs = 2.0 * np.arcsin(np.sqrt((right + 0.375) / (total + 0.75)))
    of = _clusters(np.hstack([arcs, log_tokens]), min(many, queries))
    for turn in range(ROUNDS + 1):
        each = of.sum(0)[:, None]
        samples = of.T @ total
        p = np.minimum((of.T @ right + 0.5 * rate) / (samples + 0.5), 1.0)  # It may round to more.
        mean = (of.T @ log_tokens + 1e-3 * log_tokens.mean(0)) / (each + 1e-3)
        apart = (log_tokens[:, None] - mean) ** 2
        between = np.einsum("qk,qkm->m", of, apart) / max(queries - len(each), 1)
        between = np.sqrt(np.maximum(between - (within**2 / total).mean(0), SPREADS[0] ** 2))
        kept = np.clip(p, 1e-3, 1 - 1e-3)
        tried = np.array([_beta_binomial(kept, value, right, total) for value in CONCENTRATIONS])
        concentration = np.array(CONCENTRATIONS)[np.einsum("qk,tqkm->tm", of, tried).argmax(0)]
        if turn == ROUNDS:
            break
        log = _beta_binomial(kept, concentration, right, total)
        log -= 0.5 * apart / (between**2 + within**2 / total)[:, None]
        log_of = np.log(each[:, 0] / queries) + log.sum(2)
        of = np.exp(log_of - logsumexp(log_of, axis=1, keepdims=True))
        of = of[:, of.sum(0) > 0.5]
        if of.shape[1] == 1:  # All queries are alike; a profile has two types at least.
            of = np.repeat(of, 2, axis=1)
        of /= of.sum(1, keepdims=True)
    # Queries of one type differ, so that the error of its mean has a part of theirs and one of the samples.
    alike = (samples / each + concentration) / (concentration + 1)
    error = np.sqrt(kept * (1 - kept) * alike / np.maximum(samples, 1))
    return Types(of, p, error, mean, concentration, within, between)


def _clusters(points: Array, many: int) -> Array:
    """So many of Ward's clusters, shape (Q, many): 1 where a query is of it. `points` have shape (Q, F)."""
    if len(points) <= CLUSTERED:
        return np.asarray(np.eye(many)[AgglomerativeClustering(many).fit_predict(points)])
    some = np.random.default_rng(0).permutation(len(points))[:CLUSTERED]
    chosen = AgglomerativeClustering(many).fit_predict(points[some])
    centers = [points[some][chosen == cluster].mean(axis=0) for cluster in range(many)]
    nearest = np.argmin([((points - center) ** 2).sum(axis=1) for center in centers], axis=0)
    return np.asarray(np.eye(many)[nearest])


def _beta_binomial(p: Array, concentration: Array | float, right: Array, total: Array) -> Array:
    """Logarithm of the likelihood of the counts but for a constant, shape (Q, K, M)."""
    a, b = concentration * p, concentration * (1 - p)
    # Many queries have the same counts: each pair of them is worked out once.
    pairs, at = np.unique(np.stack([right.ravel(), total.ravel()], axis=1), axis=0, return_inverse=True)
    rights, totals = pairs.T[:, :, None, None]
    told = betaln(a + rights, b + totals - rights) - betaln(a, b)  # (pairs, K, M)
    kinds, models = np.arange(p.shape[0])[:, None], np.arange(p.shape[1])
    return np.asarray(told[at.reshape(right.shape)[:, None], kinds, models])


def in_order(types: Types, difficulty: Array) -> tuple[Types, Array]:
    """The types by rising difficulty, and that, shape (K,); `difficulty` is the queries', shape (Q,)."""
    place = types.mean(difficulty)
    order = np.argsort(place, kind="stable")
    by_type = {name: getattr(types, name)[order] for name in ("right", "error", "log_tokens")}
    return replace(types, of=types.of[:, order], **by_type), place[order]


def vote_accuracies(
    answers: NDArray[np.int64], sizes: Sequence[int], weights: Array | None = None, seed: int = 7
) -> dict[int, Array]:
    """Accuracy of votes of so many of the samples, shape (Q,) for each size, over PERMUTATIONS of them.

    `answers` as `numbered` has them; `weights` of the same shape, one vote each where there are none. Equal
    leaders share.
    """
    queries, samples = answers.shape
    rng, rows = np.random.default_rng(seed), np.arange(queries)
    sums = {size: np.zeros(queries) for size in sizes}
    for _ in range(PERMUTATIONS):
        order = rng.permuted(np.tile(np.arange(samples), (queries, 1)), axis=1)[:, : max(sizes)]
        drawn = np.take_along_axis(answers, order, axis=1)
        given = np.ones(drawn.shape) if weights is None else np.take_along_axis(weights, order, axis=1)
        votes = np.zeros((queries, int(answers.max(initial=0)) + 2))  # The last column: no answer.
        for place in range(drawn.shape[1]):
            votes[rows, drawn[:, place]] += given[:, place]
            if place + 1 in sums:
                most = votes[:, :-1].max(axis=1, keepdims=True)
                leads = (votes[:, :-1] >= most - 1e-9) & (most > 0)
                sums[place + 1] += leads[:, 0] / np.maximum(leads.sum(axis=1), 1)
    return {size: np.minimum(total / PERMUTATIONS, 1.0) for size, total in sums.items()}


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
) -> dict[str, Any]:
    """The profile of some models as the file has it, from queries of which all of them have samples.

    `difficulty` is each query's, shape (Q,), where it is known: mean 0, sd 1. Else an item-response model
    tells it from how often each model was right. Raises FitError.
    """
    if len(queries) < FEWEST_QUERIES:
        raise FitError(f"a profile needs {FEWEST_QUERIES} queries at least, and there are {len(queries)}")

    def of(some: Sequence[int]) -> dict[str, Any]:
        own = None if difficulty is None else difficulty[list(some)]
        return _fit([queries[at] for at in some], models, version, temperature, seconds_per_token or {}, own)

    profile = of(range(len(queries)))
    halves = np.random.default_rng(0).permutation(len(queries)) % 2
    parts = [np.flatnonzero(halves == half).tolist() for half in range(2)]
    # Each half is judged by what the other one says: types fit those that they were found in too well.
    judged = (
        (parse(of(own)), [queries[at] for at in other])
        for own, other in (parts, parts[::-1])
        if len(models) > 1 and min(len(own), len(other)) >= FEWEST_QUERIES
    )
    found = alike.fit(judged)
    for arm in profile["arms"]:
        arm["alike"] = found
    return profile


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
    dearest = max(models, key=lambda model: model.shape.active_parameters)
    tokens = np.mean([one.tokens.mean() for one in several[dearest.name]])
    once = cost.samples(dearest, 1, 0, max(float(tokens), 1.0)).flops
    return {
        "schema": SCHEMA,
        "version": version,
        "grid": rounded(grid),
        "prior": rounded(types.share, 6),
        "arms": arms,
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


def rounded(values: Array, digits: int = 4) -> list[float]:
    """For the file."""
    return [round(float(value), digits) for value in values]


def thirds(share: Sequence[float], curve: Sequence[float]) -> list[float]:
    """Mean of a curve over the easiest, the middle and the hardest third of the queries."""
    return rounded(equal_bins(np.array(share, float), 3) @ np.array(curve))
