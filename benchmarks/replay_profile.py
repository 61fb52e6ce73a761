"""A profile from recorded samples, until `training.profiles.fit` takes its place.

Queries are merged to types by Ward's method, on each model's rate and mean logarithm of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from numpy.typing import NDArray
from scipy.special import betaln, ndtri
from sklearn.cluster import AgglomerativeClustering

Array = NDArray[np.float64]
SIZES = (2, 4, 8, 16, 32)
CAPS = (0.5, 0.8, 0.95)
TYPES = 64


@dataclass(frozen=True, eq=False)
class Samples:
    """The n samples of one query from one model."""

    answers: Sequence[str | None]
    right: NDArray[np.bool_]
    tokens: Array


@dataclass(frozen=True, eq=False)
class Measured:
    """A labelled query with what the models made of it."""

    query_id: str
    prompt: str
    group: str
    samples: Mapping[str, Samples]


def fit(queries: Sequence[Measured], models: Sequence[Model], version: str) -> dict[str, Any]:
    """The profile of some models as the file has it."""
    count, features = len(queries), []
    for model in models:
        mine = [query.samples[model.name] for query in queries]
        rate = np.array([one.right.mean() for one in mine])
        n = len(mine[0].right)
        features.append(2 * np.arcsin(np.sqrt((rate * n + 0.375) / (n + 0.75))))
        features.append(np.array([np.log(np.maximum(one.tokens, 1)).mean() for one in mine]))
    table = np.array(features).T
    of = AgglomerativeClustering(min(TYPES, count // 2)).fit_predict(table)
    hard = -(table[:, 0::2] - 0.3 * table[:, 1::2]).sum(axis=1)
    size = np.bincount(of)
    of = np.argsort(np.argsort(np.bincount(of, hard) / size, kind="stable"), kind="stable")[of]
    size = np.bincount(of)
    # Normal scores: an estimate that says nothing, mean 0 and sd 1, leaves the prior.
    place = ndtri((np.cumsum(size) - size / 2) / count)
    arms = [_arm([query.samples[model.name] for query in queries], model.name, of) for model in models]
    efforts = {"low": 1e13, "medium": 1e14, "high": 1e15, "most": 1e18}
    return {
        "schema": 1,
        "version": version,
        "grid": place.tolist(),
        "prior": (size / count).tolist(),
        "arms": arms,
        "efforts": efforts,
    }


def _arm(samples: Sequence[Samples], model: str, of: NDArray[np.int64]) -> dict[str, Any]:
    size, count = np.bincount(of), len(samples)
    right = np.array([one.right.sum() for one in samples], float)
    n = len(samples[0].right)
    logs = np.array([np.log(np.maximum(one.tokens, 1)) for one in samples])
    within = float(np.sqrt(logs.var(axis=1, ddof=1).mean()))
    p = (np.bincount(of, right) + 0.5 * right.mean() / n) / (size * n + 0.5)
    mean = np.bincount(of, logs.mean(axis=1)) / size
    apart = ((logs.mean(axis=1) - mean[of]) ** 2).sum() / max(count - len(size), 1)
    between = float(np.sqrt(max(apart - within**2 / n, 0.05**2)))
    kept = np.clip(p, 1e-3, 1 - 1e-3)[of]
    tried = np.array([2, 5, 10, 20, 40, 80, 160, 320])
    told = [
        (betaln(k * kept + right, k * (1 - kept) + n - right) - betaln(k * kept, k * (1 - kept))).sum()
        for k in tried
    ]
    tokens = np.array([one.tokens.mean() for one in samples])
    return {
        "model": model,
        "temperature": 0.7,
        "p_right": np.clip(p, 0, 1).tolist(),
        "tokens": (np.bincount(of, tokens) / size).tolist(),
        "length": {
            "mean": mean.tolist(),
            "within": within,
            "between": between,
            "caps": [int(cap) for cap in np.quantile(np.concatenate([one.tokens for one in samples]), CAPS)],
        },
        "concentration": float(tried[int(np.argmax(told))]),
        "scatter": 1.5,
        "votes": {"1": np.clip(p, 0, 1).tolist(), **_votes(samples, of)},
        "prompt_tokens_per_byte": 1e-9,
        "seconds_per_token": 0.0,
    }


def _votes(samples: Sequence[Samples], of: NDArray[np.int64]) -> dict[str, list[float]]:
    rng, n = np.random.default_rng(0), min(len(one.right) for one in samples)
    table = np.full((len(samples), n), -1)
    for row, one in zip(table, samples, strict=True):
        wrong: dict[str | None, int] = {}
        for at in range(n):
            if one.right[at]:
                row[at] = 0
            elif one.answers[at] is not None:
                row[at] = wrong.setdefault(one.answers[at], len(wrong) + 1)
    sums, rows = {size: np.zeros(len(samples)) for size in SIZES}, np.arange(len(samples))
    for _ in range(20):
        drawn = np.take_along_axis(
            table, rng.permuted(np.tile(np.arange(n), (len(table), 1)), axis=1), axis=1
        )
        votes = np.zeros((len(table), int(table.max()) + 2))
        for at in range(min(n, max(SIZES))):
            votes[rows, drawn[:, at]] += 1
            if at + 1 in sums:
                most = votes[:, :-1].max(axis=1, keepdims=True)
                leads = (votes[:, :-1] == most) & (most > 0)
                sums[at + 1] += leads[:, 0] / np.maximum(leads.sum(axis=1), 1)
    return {
        str(n): (np.bincount(of, total / 20) / np.bincount(of)).clip(0, 1).tolist()
        for n, total in sums.items()
    }
