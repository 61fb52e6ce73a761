"""Strategies that make chains in parts, for a profile: curves beside those of the model's samples. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from isoflop.v1.common_pb2 import Model
from scipy.special import expit, logit

from router import cost
from router.profile import ROUND_SIZES
from training.measured import Array, Deep, Measured, Samples, numbered, rounded
from training.query_types import PSEUDO_QUERIES, Types
from training.votes import vote_accuracies

SHIFTS = np.linspace(-10.0, 10.0, 2001)
"""Of log-odds, that are tried."""


def records(
    types: Types, arms: Mapping[str, dict[str, Any]], queries: Sequence[Measured], models: Sequence[Model]
) -> list[dict[str, Any]]:
    """The records of the strategies that all queries were played with; `arms` are of samples, by model."""
    return [
        _record(types, arms[model.name], queries, model, deep)
        for model in models
        for deep in queries[0].deep
        if deep.model == model.name and all(deep in query.deep for query in queries)
    ]


def _record(
    types: Types, arm: dict[str, Any], queries: Sequence[Measured], model: Model, deep: Deep
) -> dict[str, Any]:
    """As `router.profile.DeepRecord` has it. A type with few queries is drawn to what all of them say."""
    played = [query.deep[deep] for query in queries]
    samples = [query.samples[model.name] for query in queries]
    right = np.array([one.right for one in played])
    expected = shifted(np.array(arm["p_right"]), types.share, right)
    weight = types.of.sum(0) + PSEUDO_QUERIES
    p = np.minimum((types.of.T @ right + PSEUDO_QUERIES * expected) / weight, 1.0)
    tokens = _drawn(types, np.array([one.tokens for one in played]), np.array(arm["tokens"]))
    once = [cost.sample(model, one.prompt_tokens, max(float(one.tokens.mean()), 1.0))[0] for one in samples]
    base = np.maximum(types.mean(np.array(once)), 1.0)
    flops = _drawn(types, np.array([one.flops for one in played]), base)
    votes = _votes(types, p, [one.chains for one in played if one.chains])
    return {
        "model": model.name,
        "temperature": arm["temperature"],
        "strategy": deep.strategy,
        "search": asdict(deep.search),
        "verifier": deep.verifier,
        "p_right": rounded(p),
        "p_right_error": rounded(np.sqrt(p * (1 - p) / weight)),
        "tokens": rounded(np.maximum(tokens, 1.0), 1),
        "times": rounded(np.maximum(flops / base, 1e-3)),
        **({"votes": votes} if votes else {}),
    }


def _votes(types: Types, once: Array, chains: Sequence[Samples]) -> dict[str, list[float]]:
    """Accuracy of votes of n chains by type, by n; none where there are not enough of each query."""
    if len(chains) < len(types.of):
        return {}
    answers = numbered(chains)
    sizes = [size for size in ROUND_SIZES if 1 < size <= answers.shape[1] * 2 // 3]
    if not sizes:
        return {}
    curves = {size: types.mean(by_query) for size, by_query in vote_accuracies(answers, sizes).items()}
    return {"1": rounded(once), **{str(size): rounded(curve) for size, curve in curves.items()}}


def shifted(curve: Array, share: Array, right: Array) -> Array:
    """The curve of samples, its log-odds all moved by as much as makes its mean that of `right`, shape (Q,).

    The mean is that of the queries and of a few more that behave as samples do.
    """
    curve = np.clip(curve, 1e-3, 1 - 1e-3)
    mean = (right.sum() + PSEUDO_QUERIES * (share @ curve)) / (len(right) + PSEUDO_QUERIES)
    means = share @ expit(logit(curve)[:, None] + SHIFTS)
    return np.asarray(expit(logit(curve) + np.interp(mean, means, SHIFTS)))


def _drawn(types: Types, values: Array, of_samples: Array) -> Array:
    """Mean by type of what each query has, shape (Q,), drawn to as many times what samples have as on all."""
    counts = types.of.sum(0)
    expected = of_samples * (values.sum() / (counts @ of_samples))
    return np.asarray((types.of.T @ values + PSEUDO_QUERIES * expected) / (counts + PSEUDO_QUERIES))
