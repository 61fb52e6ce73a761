"""The file of an estimator, as `isoflop train-difficulty` writes it: plain numbers, one JSON object."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.difficulty.features import BUCKETS, NAMES

SCHEMA = 2
"""Number of the form of the file; an estimator of another number is refused."""

MEAN = "mean"
"""Stands for the predicted difficulty where the spread depends on it."""


class EstimatorError(Exception):
    """The estimator's file is not usable; `str(error)` says where and why."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=True)


class Range(_Record):
    """What the training queries had of one feature."""

    low: float
    """Least value."""
    high: float
    """Greatest value."""
    unit: float = Field(gt=0)
    """How far outside counts as 1: the standard deviation, or a little where it did not vary."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Hinges(_Record):
    """intercept + the sum of weight * max(0, feature - knot): a curve of straight pieces in each feature."""

    intercept: float
    terms: list[tuple[str, float, float]]
    """Feature, knot, weight."""


class Trees(_Record):
    """A sum of regression trees. Nodes lie in one list; a tree's first node is its root."""

    roots: list[int]
    """Node that each tree begins at."""
    feature: list[int]
    """Which feature a node looks at; 0 in a leaf."""
    threshold: list[float]
    """A value up to it goes left."""
    left: list[int]
    """Next node; a leaf's is itself."""
    right: list[int]
    """Next node; a leaf's is itself."""
    value: list[float]
    """What a leaf adds; 0 elsewhere."""
    depth: int = Field(ge=0, le=64)
    """Most steps from a root to a leaf."""

    @model_validator(mode="after")
    def _connected(self) -> Trees:
        size = len(self.value)
        if {len(self.feature), len(self.threshold), len(self.left), len(self.right)} != {size}:
            raise ValueError("the lists of a tree are not equally long")
        if not all(0 <= node < size for node in (*self.roots, *self.left, *self.right)):
            raise ValueError("a node of a tree is not there")
        if not all(0 <= feature < len(NAMES) for feature in self.feature):
            raise ValueError("a tree looks at a feature that is not there")
        return self


class Sentences(_Record):
    """Weights of a sentence embedding."""

    name: str
    """Of the embedding that they were fitted with."""
    weights: list[float]
    """One for each dimension."""


class CurveRecord(_Record):
    """A model's prospects over latent difficulty d.

    P(one sample is right) = 1 / (1 + exp(-slope * (ability - d))), the two-parameter logistic model of
    item response theory; expected tokens = exp(log_tokens + tokens_slope * d).
    """

    model: str
    ability: float
    slope: float
    log_tokens: float
    tokens_slope: float


class EstimatorRecord(_Record):
    """An estimator as the file has it."""

    form: int = Field(alias="schema")
    """Number of this form."""
    name: str
    """Told in responses."""
    data: str
    """SHA-256 of the answers that it was trained on."""
    ranges: dict[str, Range]
    """By feature."""
    center: Hinges
    """The difficulty that is expected, of a query like those it was trained on."""
    words: dict[int, float] = {}
    """Weight of each bucket of hashed words, added to the center."""
    trees: Trees | None = None
    """Added to the center."""
    sentences: Sentences | None = None
    """Added to the center; needs the embedding that it names."""
    log_variance: Hinges
    """Logarithm of the variance around the center: of features, and of the center as `mean`."""
    tokens_range: tuple[float, float]
    """Difficulties between which tokens were measured; beyond, they stay as they are at its ends."""
    curves: list[CurveRecord]
    """One for each model."""
    figures: dict[str, Any] = {}
    """How it did on queries that it was not trained on."""

    @model_validator(mode="after")
    def _consistent(self) -> EstimatorRecord:
        if self.form != SCHEMA:
            raise ValueError(f"schema {self.form}, but schema {SCHEMA} is read: train it again")
        if set(self.ranges) != set(NAMES):
            raise ValueError(f"ranges for other features than {', '.join(NAMES)}")
        known = {*NAMES, MEAN}
        for name, *_ in (*self.center.terms, *self.log_variance.terms):
            if name not in known:
                raise ValueError(f"no feature {name}")
        if any(name == MEAN for name, *_ in self.center.terms):
            raise ValueError("the center cannot depend on itself")
        if not all(0 <= bucket < BUCKETS for bucket in self.words):
            raise ValueError(f"buckets are 0 to {BUCKETS - 1}")
        names = sorted(curve.model for curve in self.curves)
        if any(a == b for a, b in pairwise(names)):
            raise ValueError("a model has two curves")
        return self


def read(path: Path) -> EstimatorRecord:
    """Read an estimator's file; raises EstimatorError."""
    try:
        return EstimatorRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EstimatorError(f"estimator {path}: {error.strerror}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"{part}: " for part in fault["loc"])
        raise EstimatorError(f"estimator {path}: not an estimator ({where}{fault['msg']})") from None
