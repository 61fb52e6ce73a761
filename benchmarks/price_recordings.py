"""Recorded samples of MATH-500, AIME and GPQA, and profiles fitted on them, for `benchmarks.price`."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from isoflop.v1.common_pb2 import Capabilities, Model, Shape
from scipy.special import betaln
from sklearn.cluster import KMeans

from benchmarks.curves import NO_ANSWER, Floats, Ints, permutations, vote
from benchmarks.streams import RIGHT, Asked
from router.profile import ROUND_SIZES, SCHEMA, Profile, parse

BILLIONS: Final = {"gpt-oss-20b": 3.6, "Qwen3-30B-A3B-Thinking-2507": 3.3, "EXAONE-Deep-32B": 32.0}
"""Active parameters of the models that are played: two sparse ones, and a dense one."""
FILES: Final = ("math500", "aime2024", "gpqa_diamond")
SAMPLES: Final = 80
"""Of each problem under each model."""
TYPES: Final = 16
"""Of problems: by how often each model is right, and how long it takes."""
CONCENTRATIONS: Final = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
SCATTER: Final = 1.5
"""How rarely wrong answers agree; not fitted."""
CAPS: Final = (0.5, 0.8, 0.95)
"""Quantiles of lengths at which a probe may be cut."""
WORTH: Final = {"low": 3.0, "medium": 8.0, "high": 20.0, "most": 1000.0}
"""Of a right answer, in samples of the dearest model: as where the embedded models are calibrated."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A problem under every model: answers and tokens of its samples, shape (SAMPLES,) each."""

    dataset: str
    answers: dict[str, Ints]
    tokens: dict[str, Ints]


def load(folder: Path) -> list[Recorded]:
    """Problems that all models have answered; raises OSError where a file is missing."""
    problems = []
    for name in FILES:
        rows: dict[str, dict[str, Any]] = defaultdict(dict)
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row["model"] in BILLIONS and len(row["samples"]) >= SAMPLES:
                    rows[row["query_id"]][row["model"]] = row["samples"][:SAMPLES]
        problems += [_recorded(name, found) for found in rows.values() if len(found) == len(BILLIONS)]
    return problems


def _recorded(dataset: str, samples: dict[str, list[dict[str, Any]]]) -> Recorded:
    numbers: dict[str, int] = {}

    def number(sample: dict[str, Any]) -> int:
        if sample.get("correct"):
            return RIGHT
        answer = sample["answer"]
        return numbers.setdefault(answer, len(numbers) + 1) if answer else NO_ANSWER

    return Recorded(
        dataset,
        {model: np.array([number(one) for one in found]) for model, found in samples.items()},
        {model: np.array([one["tokens"] for one in found]) for model, found in samples.items()},
    )


def models() -> list[Model]:
    """FLOPs are 2 × active parameters × completion tokens: recordings have no shapes, nor prompts' tokens."""
    return [
        Model(
            name=name,
            backend="recorded",
            shape=Shape(active_parameters=int(1e9 * billions)),
            capabilities=Capabilities(samples=SAMPLES),
        )
        for name, billions in BILLIONS.items()
    ]


def fit(problems: list[Recorded]) -> Profile:
    """Curves of each model over types of problems."""
    share = {m: np.array([(one.answers[m] == RIGHT).mean() for one in problems]) for m in BILLIONS}
    logs = {m: np.log(np.array([np.maximum(one.tokens[m], 1) for one in problems])) for m in BILLIONS}
    features = [2 * np.arcsin(np.sqrt(share[m])) for m in BILLIONS] + [logs[m].mean(1) for m in BILLIONS]
    found = KMeans(TYPES, n_init=4, random_state=0).fit_predict(np.column_stack(features))
    # Types by rising difficulty.
    hard = np.bincount(found, -np.sum(list(share.values()), axis=0)) / np.bincount(found)
    kind = np.argsort(np.argsort(hard))[found]
    count = np.bincount(kind)
    grid = np.sort(hard)
    grid = (grid - np.average(grid, weights=count)) / np.sqrt(np.cov(grid, fweights=count))
    arms = [_arm(m, problems, share[m], logs[m], kind) for m in BILLIONS]
    dearest = max(2e9 * BILLIONS[m] * float(np.exp(logs[m]).mean()) for m in BILLIONS)
    return parse(
        {
            "schema": SCHEMA,
            "version": "recorded",
            "grid": grid.tolist(),
            "prior": (count / count.sum()).tolist(),
            "arms": arms,
            "efforts": {name: worth * dearest for name, worth in WORTH.items()},
        }
    )


def _arm(model: str, problems: list[Recorded], share: Floats, logs: Floats, kind: Ints) -> dict[str, Any]:
    count = np.bincount(kind)

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(kind, values) / count)

    right = share * SAMPLES
    p = (np.bincount(kind, right) + 0.5 * share.mean()) / (count * SAMPLES + 0.5)
    expected = np.clip(p, 1e-3, 1 - 1e-3)[kind]
    likelihoods = [
        (betaln(k * expected + right, k * (1 - expected) + SAMPLES - right)).sum()
        - betaln(k * expected, k * (1 - expected)).sum()
        for k in CONCENTRATIONS
    ]
    within = float(np.sqrt(logs.var(1, ddof=1).mean()))
    apart = logs.mean(1) - mean(logs.mean(1))[kind]
    between = float(np.sqrt(max((apart**2).sum() / (len(kind) - TYPES) - within**2 / SAMPLES, 0.05**2)))
    orders = permutations(SAMPLES, draws=12)
    return {
        "model": model,
        "temperature": 0.6,
        "p_right": p.tolist(),
        "tokens": mean(np.exp(logs).mean(1)).tolist(),
        "length": {
            "mean": mean(logs.mean(1)).tolist(),
            "within": within,
            "between": between,
            "caps": np.quantile(np.exp(logs), CAPS).astype(int).tolist(),
        },
        "concentration": CONCENTRATIONS[int(np.argmax(likelihoods))],
        "scatter": SCATTER,
        "votes": {
            n: mean(np.array([vote(one.answers[model], RIGHT, n, orders) for one in problems])).tolist()
            for n in ROUND_SIZES
        },
        "prompt_tokens_per_byte": 1e-9,
        "seconds_per_token": 0.0,
    }


def asked(problem: Recorded, profile: Profile, seed: int) -> Asked:
    """The problem with its samples in an order of their own; nothing is known of it beforehand."""
    rng = np.random.default_rng(seed)
    orders = {model: rng.permutation(SAMPLES) for model in BILLIONS}
    return Asked(
        profile.prior,
        {(model, False): problem.answers[model][order] for model, order in orders.items()},
        {(model, False): problem.tokens[model][order] for model, order in orders.items()},
    )
