"""Labelled queries with what models made of them: what calibration begins with. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.strategies.strategy import Search

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Samples:
    """The n samples of one query from one model at one temperature."""

    answers: Sequence[str | None]
    """Equal for equal answers; None: no answer."""
    right: NDArray[np.bool_]
    """Shape (n,)."""
    tokens: Array
    """Shape (n,)."""
    prompt_tokens: int = 0
    scores: Mapping[str, Array] = field(default_factory=dict)
    """Shape (n,): score of each chain, by the verifier's name; NaN where it could give none."""


@dataclass(frozen=True)
class Deep:
    """A strategy that makes chains in parts, with one model."""

    model: str
    strategy: str
    search: Search
    """How wide and how deep it goes."""
    verifier: str = ""
    """The verifier that it goes by; empty: none."""

    @property
    def single(self) -> bool:
        """It makes one chain and nothing chooses it: several of them may be voted on."""
        return self.search.lanes == 1 and not self.verifier

    def __str__(self) -> str:
        return f"{self.model} {spelt(self.strategy, self.search)}"


def spelt(strategy: str, search: Search) -> str:
    """A strategy with its shape, as `isoflop calibrate --strategies` has it."""
    parts = [search.width, search.expansion, search.depth, *([search.nodes] if search.nodes else [])]
    budget = f"@{search.tokens}" if search.tokens else ""
    return f"{strategy}:{'x'.join(map(str, parts))}{budget}"


@dataclass(frozen=True)
class Played:
    """What came of such a strategy on one query; a mean where it was played several times."""

    right: float
    """1 where its best chain is right, else 0; of several a mean."""
    tokens: float
    """Of that chain."""
    flops: float
    """Of all that it did, scores included."""
    chains: Samples | None = None
    """Where chains are single ones, without scores: several of them, each as good as another."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A labelled query with what the models made of it."""

    query_id: str
    prompt: str
    group: str
    samples: Mapping[str, Samples]
    """By model: at a temperature, at least two of each."""
    greedy: Mapping[str, Samples] = field(default_factory=dict)
    """By model: the greedy sample."""
    deep: Mapping[Deep, Played] = field(default_factory=dict)
    """Strategies that make chains in parts."""


def numbered(samples: Sequence[Samples]) -> NDArray[np.int64]:
    """Answers as numbers, shape (Q, n), n of the query with fewest: 0 is right, -1 none, others are wrong."""
    least = min(len(one.answers) for one in samples)
    table = np.full((len(samples), least), -1)
    for row, one in zip(table, samples, strict=True):
        wrong: dict[str | None, int] = {}
        for place, (answer, right) in enumerate(zip(one.answers[:least], one.right, strict=False)):
            if right:
                row[place] = 0
            elif answer is not None:
                row[place] = wrong.setdefault(answer, len(wrong) + 1)
    return table


def rounded(values: Array, digits: int = 4) -> list[float]:
    """For the file."""
    return [round(float(value), digits) for value in values]
