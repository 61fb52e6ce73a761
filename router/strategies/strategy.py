"""What a strategy is, what it works with, and what it yields."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from isoflop.v1.aggregation_pb2 import Selection
from isoflop.v1.common_pb2 import Sample, TextDelta
from isoflop.v1.verification_pb2 import ChainScore, ChainScoring


@dataclass(frozen=True)
class Candidate:
    """A sample and its weight in the vote."""

    sample: Sample
    weight: float = 1.0
    scores: ChainScore = field(default_factory=ChainScore)
    """Of its steps, where it was verified."""


@dataclass(frozen=True)
class Search:
    """How wide and how deep to search over the steps of chains."""

    width: int = 4
    """Chains that are kept at each step."""
    expansion: int = 4
    """Continuations of each that are tried at each step."""
    depth: int = 64
    """Most steps of a chain."""


def tries(search: Search | None) -> int:
    """Samples that run for each that is returned; 1 where there is no search."""
    return search.expansion if search else 1


class Bench(Protocol):
    """What a strategy works with: one round of metered access to the services."""

    scoring: ChainScoring.ValueType
    """From the scores of steps to the score of a chain."""
    search: Search
    """How wide and how deep to search."""

    def sample(self, stream_text: bool = False) -> AsyncGenerator[list[Sample] | TextDelta, None]:
        """The round's samples as they finish, those together that are there together.

        With their text as it comes, if asked. Closing it aborts the samples that still run.
        """
        ...

    async def extend(self, chains: Sequence[Sample], each: int) -> Sequence[Sample]:
        """So many continuations of each chain by one step, as chains from their beginning; none: no more.

        `branch` of each is the index of the chain that it continues.
        """
        ...

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        """Scores of the samples' steps, in order."""
        ...


class Strategy(Protocol):
    """A way to spend a round."""

    selection: Selection.ValueType
    """How the vote's leader is chosen."""
    verifies: bool
    """It scores steps."""
    searches: bool
    """It makes chains step by step."""

    def play(self, bench: Bench) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
        """Play one round: candidates as they are there. Closing it aborts what still runs."""
        ...


async def together(
    batches: AsyncIterator[list[Candidate] | TextDelta],
) -> AsyncGenerator[list[Candidate] | TextDelta, None]:
    """The same candidates in one batch, when the last has come."""
    candidates: list[Candidate] = []
    async for batch in batches:
        if isinstance(batch, TextDelta):
            yield batch
        else:
            candidates += batch
    if candidates:
        yield candidates
