"""The four services over the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from isoflop.rpc import from_rpc_error
from isoflop.v1.aggregation_pb2 import AggregateRequest, AggregateResponse
from isoflop.v1.aggregation_pb2_grpc import AggregationServiceStub
from isoflop.v1.difficulty_pb2 import EstimateRequest, EstimateResponse
from isoflop.v1.difficulty_pb2_grpc import DifficultyServiceStub
from isoflop.v1.verification_pb2 import (
    DescribeVerifiersRequest,
    DescribeVerifiersResponse,
    ScoreRequest,
    ScoreResponse,
)
from isoflop.v1.verification_pb2_grpc import VerificationServiceStub

from router.stages import Stages
from services.common.channels import Channels
from services.generation.remote import RemoteGeneration

R = TypeVar("R")


class _Remote:
    def __init__(self, target: str, what: str, channels: Channels) -> None:
        self._what = f"the {what} service at {target}"
        self._stub: Any = None
        self._channel = channels.to(target)

    async def _call(self, call: Awaitable[R]) -> R:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._what) from None


class RemoteVerification(_Remote):
    """Verification in another process."""

    def __init__(self, target: str, channels: Channels) -> None:
        super().__init__(target, "verification", channels)
        self._stub = VerificationServiceStub(self._channel)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One score in [0, 1] for each step of each chain."""
        return await self._call(self._stub.Score(request))

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        """The verifiers."""
        return await self._call(self._stub.DescribeVerifiers(request))


class RemoteDifficulty(_Remote):
    """Difficulty in another process."""

    def __init__(self, target: str, channels: Channels) -> None:
        super().__init__(target, "difficulty", channels)
        self._stub = DifficultyServiceStub(self._channel)

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """One estimate for each query."""
        return await self._call(self._stub.Estimate(request))


class RemoteAggregation(_Remote):
    """Aggregation in another process."""

    def __init__(self, target: str, channels: Channels) -> None:
        super().__init__(target, "aggregation", channels)
        self._stub = AggregationServiceStub(self._channel)

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        """Adds candidates to clusters."""
        return await self._call(self._stub.Aggregate(request))


@asynccontextmanager
async def connected(
    generation: str, verification: str, difficulty: str, aggregation: str
) -> AsyncIterator[Stages]:
    """The services at these addresses, as long as the context lasts; nothing is called yet."""
    channels = Channels()
    try:
        yield Stages(
            RemoteGeneration(generation, channels),
            RemoteVerification(verification, channels),
            RemoteDifficulty(difficulty, channels),
            RemoteAggregation(aggregation, channels),
        )
    finally:
        await channels.close()
