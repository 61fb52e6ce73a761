"""Types of queries: a mixture that is fitted by expectation-maximisation.

That is latent class analysis (Lazarsfeld & Henry 1968; Dempster, Laird & Rubin 1977). A type has for each
model a chance that one sample is right, from which its queries differ as a beta distribution does, and a mean
of the logarithm of a sample's tokens. One line of difficulties would not do: queries on which all models
agree on the same wrong answer are few and are a type of their own, without which confidence is too high.
Pure: numbers in, numbers out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, logsumexp
from sklearn.cluster import AgglomerativeClustering

from router.lengths import log_student
from training.measured import Array

TYPES = (8, 16, 32, 64)
"""Numbers of types that are tried."""
QUERIES_A_TYPE = 5
"""Fewest queries that there are for each type, on average."""
FOLDS = 5
"""Of the cross-validation that says how many types there are, and how much queries of one type differ."""
ROUNDS = 20
"""Of expectation and maximisation; they start from Ward's clusters."""
CONCENTRATIONS = tuple(float(2**k) for k in range(10))
"""Values that are tried for what is found by its likelihood: see `router.profile.ArmRecord`."""
CLUSTERED = 4000
"""Queries at most that Ward's clusters are found in, as their memory grows with the square."""
SPREADS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Of the logarithm of tokens between queries of one type; likewise tried."""
PSEUDO_QUERIES = 2.0
"""For what is measured on single samples: so many more that behave as the model does elsewhere."""


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
