"""The four services as the router sees them: the same Protocols in one process and over the wire."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
    GetRoundUsageRequest,
    GetRoundUsageResponse,
)
from isoflop.v1.verification_pb2 import (
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)


class Generation(Protocol):
    """Samples from language models."""

    def generate(self, requests: AsyncIterator[GenerateRequest]) -> AsyncGenerator[GenerateResponse, None]:
        """One round: `start` and `abort` in, samples and then usage out."""
        ...

    def untold(self, round_id: str) -> bool:
        """Whether a stream of the round broke before it told its usage; another one may have told its own."""
        ...

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        """What was not told of a round; raises NotFound where that is not known."""
        ...

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        """The models."""
        ...


class Verification(Protocol):
    """Scores for the steps of chains."""

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One score in [0, 1] for each step of each chain."""
        ...

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        """The verifiers."""
        ...


class Difficulty(Protocol):
    """How hard queries are."""

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """One estimate for each query."""
        ...


class Aggregation(Protocol):
    """Which answers are the same."""

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        """Adds candidates to clusters."""
        ...


@dataclass(frozen=True)
class Stages:
    """All four. Each raises the errors of isoflop.errors."""

    generation: Generation
    verification: Verification
    difficulty: Difficulty
    aggregation: Aggregation
