"""What a strategy is, what it works with, and what it yields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from isoflop.errors import Unavailable
from isoflop.v1.aggregation_pb2 import SELECTION_SUM, Selection
from isoflop.v1.common_pb2 import Message, Model, Sample, TextDelta
from isoflop.v1.router_pb2 import Growth
from isoflop.v1.verification_pb2 import ChainScore, ChainScoring


@dataclass(frozen=True)
class Candidate:
    """A sample and its weight in the vote."""

    sample: Sample
    weight: float = 1.0
    scores: ChainScore = field(default_factory=ChainScore)
    """Of its steps, where it was verified."""


Batch = list[Candidate] | TextDelta | Growth
"""What a strategy yields: candidates, text as it comes, or how its search has grown."""


@dataclass(frozen=True)
class Search:
    """How wide and how deep a strategy goes that makes a chain in parts."""

    width: int
    """Chains that are gone on with at a time, and returned at most."""
    expansion: int = 1
    """Continuations of each that are tried."""
    depth: int = 0
    """Most parts of a chain: steps, or extensions of its thinking, or revisions."""
    nodes: int = 0
    """Most steps that are made in all; 0: as width, expansion and depth have it."""
    tokens: int = 0
    """That a chain is to have, as its budget of thinking; 0: as many as it takes."""

    @property
    def lanes(self) -> int:
        """Samples that run at once."""
        return self.width * self.expansion

    def __str__(self) -> str:
        tried = f" × {self.expansion}" if self.expansion > 1 else ""
        within = (
            f" in {self.nodes} steps" if self.nodes else f" of {self.tokens} tokens" if self.tokens else ""
        )
        return f"{self.width}{tried}{within}"


class Bench(Protocol):
    """What a strategy works with: one round of metered access to the services."""

    model: Model
    """The model that samples."""
    scoring: ChainScoring.ValueType
    """From the scores of steps to the score of a chain."""
    search: Search
    """How wide and how deep to go."""

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

    async def finish(self, chains: Sequence[Sample], most: Sequence[int] = ()) -> Sequence[Sample]:
        """Each chain continued to its end, by at most so many tokens; otherwise as `extend`."""
        ...

    async def ask(self, conversations: Sequence[Sequence[Message]], said: Sequence[int]) -> Sequence[Sample]:
        """What the model says where the query is followed by each of these; none: no more.

        `branch` of each is the index of its conversation; `said`: tokens of each that are the model's own.
        """
        ...

    async def score(self, samples: Sequence[Sample]) -> Sequence[ChainScore]:
        """Scores of the samples' steps, in order."""
        ...


class Strategy(ABC):
    """A way to spend a round."""

    selection: Selection.ValueType = SELECTION_SUM
    """How the vote's leader is chosen."""
    verifies = False
    """It scores steps."""
    shape: Search | None = None
    """How wide and how deep it goes where nothing is said; None: it makes whole samples."""
    thinks = False
    """It asks the model to think."""
    checked = False
    """The caller chooses among its candidates."""

    def serves(self, model: Model) -> bool:
        """Whether a model can do what it needs."""
        return True

    @abstractmethod
    def play(self, bench: Bench) -> AsyncGenerator[Batch, None]:
        """Play one round: candidates as they are there. Closing it aborts what still runs."""


async def together(batches: AsyncIterator[Batch]) -> AsyncGenerator[Batch, None]:
    """The same candidates in one batch, when the last has come; those before a failure, too."""
    candidates: list[Candidate] = []
    failure: Unavailable | None = None
    try:
        async for batch in batches:
            if isinstance(batch, list):
                candidates += batch
            else:
                yield batch
    except Unavailable as error:
        failure = error
    if candidates:
        yield candidates
    if failure:
        raise failure
