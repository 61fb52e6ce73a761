"""What the suite reads while it is measured: a catalogue, a profile and an estimator of one fake model.

They are written for the benchmark alone, so that it measures the same whatever was calibrated last.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from benchmarks.fake_triton import SOLUTION
from router.profile import ROUND_SIZES, SCHEMA
from services.difficulty.features import NAMES
from services.difficulty.record import SCHEMA as ESTIMATOR_SCHEMA

MODEL = "fake"
TEMPERATURE = 0.8
GRID = np.linspace(-3.0, 3.0, 31)
ABILITY, SLOPE = 0.0, 1.2
"""Of the model, as in item response theory."""


@dataclass(frozen=True)
class Files:
    """Where they lie."""

    catalog: Path
    profile: Path
    estimator: Path


def write_files(folder: Path, backend: str) -> Files:
    """Write them into `folder`, for a Triton that listens on `backend`."""
    files = Files(folder / "catalog.yaml", folder / "profile.json", folder / "difficulty.json")
    files.catalog.write_text(yaml.safe_dump(_catalog(backend)), encoding="utf-8")
    files.profile.write_text(json.dumps(_profile()), encoding="utf-8")
    files.estimator.write_text(json.dumps(_estimator()), encoding="utf-8")
    return files


def _catalog(backend: str) -> dict[str, object]:
    return {
        "currency": "USD",
        "models": [
            {
                "name": MODEL,
                "backend": "triton",
                "address": backend,
                "shape": {"active_parameters": 400_000, "layers": 4, "heads": 4, "head_size": 16},
                "context": 512,
                "price": {"per_million_prompt_tokens": 0.01, "per_million_completion_tokens": 0.02},
            }
        ],
    }


def _profile() -> dict[str, object]:
    prior = np.exp(-0.5 * GRID**2)
    return {
        "schema": SCHEMA,
        "version": "synthetic",
        "grid": GRID.tolist(),
        "prior": (prior / prior.sum()).tolist(),
        "arms": [_arm(0.0), _arm(TEMPERATURE)],
        "efforts": {"low": 1e9, "medium": 1e10, "high": 1e11, "most": 1e16},
    }


def _arm(temperature: float) -> dict[str, object]:
    return {
        "model": MODEL,
        "temperature": temperature,
        "p_right": _right(1),
        "tokens": [float(len(SOLUTION))] * len(GRID),
        "concentration": 4.0,
        "scatter": 2.0,
        "votes": {n: _right(n) for n in ROUND_SIZES} if temperature else {},
        "prompt_tokens_per_byte": 1.0,
        "seconds_per_token": 0.0,
    }


def _right(votes: int) -> list[float]:
    """A vote turns more sharply from right to wrong than one sample does."""
    return [float(p) for p in 1 / (1 + np.exp(-SLOPE * math.sqrt(votes) * (ABILITY - GRID)))]


def _estimator() -> dict[str, object]:
    return {
        "schema": ESTIMATOR_SCHEMA,
        "name": "synthetic",
        "data": "",
        "ranges": {name: {"low": 0.0, "high": 1e9, "unit": 1.0} for name in NAMES},
        "center": {"intercept": 0.0, "terms": [[name, 0.0, 0.0] for name in NAMES]},
        "log_variance": {"intercept": 0.0, "terms": []},
        "tokens_range": [-3.0, 3.0],
        "curves": [
            {
                "model": MODEL,
                "ability": ABILITY,
                "slope": SLOPE,
                "log_tokens": math.log(len(SOLUTION)),
                "tokens_slope": 0.0,
            }
        ],
    }
