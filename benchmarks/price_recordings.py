"""Recorded samples of MATH-500, AIME and GPQA as queries of a stream, for `benchmarks.price`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from isoflop.v1.common_pb2 import Capabilities, Model, Shape

from benchmarks.streams import Asked
from router.profile import Profile, parse
from training.measured import Measured, Samples, numbered
from training.profiles import fit
from training.recordings import read

BILLIONS: Final = {"gpt-oss-20b": 3.6, "Qwen3-30B-A3B-Thinking-2507": 3.3, "EXAONE-Deep-32B": 32.0}
"""Active parameters of the models that are played: two sparse ones, and a dense one."""
SAMPLES: Final = 80
"""Of each problem under each model."""


def load(folder: Path, datasets: Sequence[str]) -> dict[str, Sequence[Measured]]:
    """Problems that all models have answered, by dataset; raises OSError where a file is missing."""
    return {
        name: read([folder / f"{name}.jsonl.gz"], tuple(BILLIONS)).queries for name in dict.fromkeys(datasets)
    }


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


def fitted(problems: Sequence[Measured]) -> Profile:
    """The profile as `isoflop calibrate` fits it."""
    return parse(fit(problems, models(), "recorded"))


def asked(problem: Measured, profile: Profile, seed: int) -> Asked:
    """The problem with its samples in an order of their own; nothing is known of it beforehand."""
    own = [problem.samples[name] for name in BILLIONS]
    # Numbered together: models may agree on what is wrong.
    answers, right, tokens = (
        np.concatenate([np.asarray(part)[:SAMPLES] for part in parts])
        for parts in zip(*((one.answers, one.right, one.tokens) for one in own), strict=True)
    )
    (numbers,) = numbered([Samples(answers.tolist(), right, tokens)])
    rng = np.random.default_rng(seed)
    orders = {name: at * SAMPLES + rng.permutation(SAMPLES) for at, name in enumerate(BILLIONS)}
    return Asked(
        profile.prior,
        {(name, False): numbers[order] for name, order in orders.items()},
        {(name, False): tokens[order].astype(np.int64) for name, order in orders.items()},
    )
