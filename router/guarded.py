"""The services behind breakers: who is down is not asked, and who is silent is not waited for.

Each call that fails because its part is down raises `Unavailable`, at once where the breaker is open. Votes
are then counted in this process, if it can; what else is missing is the query's to do without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from isoflop.errors import FailedPrecondition, Unavailable
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

from router.breakers import Breakers
from router.stages import Aggregation, Difficulty, Generation, Stages, Verification
from services.generation.remote import resumed

FellBack = Callable[[str], None]
"""Takes the name of a part in whose place another has worked."""


def guarded(
    stages: Stages,
    breakers: Breakers,
    *,
    stage_seconds: float,
    score_seconds: float,
    aside: Aggregation | None = None,
    fell_back: FellBack = lambda part: None,
) -> Stages:
    """The services behind breakers.

    `stage_seconds`: how long an estimate or a tally may take; `score_seconds`: how long scores may. `aside`
    counts votes where aggregation is down; none: it is in this process itself, and is not guarded.
    """
    aggregation = stages.aggregation
    if aside:
        aggregation = _Aggregation(aggregation, aside, breakers, stage_seconds, fell_back)
    return Stages(
        _Generation(stages.generation, breakers),
        _Verification(stages.verification, breakers, stage_seconds, score_seconds),
        _Difficulty(stages.difficulty, breakers, stage_seconds),
        aggregation,
    )


class _Generation:
    """Rounds, each behind the breaker of its model."""

    def __init__(self, stage: Generation, breakers: Breakers) -> None:
        self._stage, self._breakers = stage, breakers

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        first = await anext(requests)
        with self._breakers.model(first.start.model).call() as call:
            async with aclosing(self._stage.generate(resumed(first, requests))) as responses:
                async for response in responses:
                    if not response.HasField("usage"):  # A round that fails tells its usage, too.
                        call.answered()
                    yield response

    def untold(self, round_id: str) -> bool:
        return self._stage.untold(round_id)

    async def usage(self, request: GetRoundUsageRequest) -> GetRoundUsageResponse:
        return await self._stage.usage(request)

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        return await self._stage.describe(request)


class _Verification:
    """Scores, behind the breaker of their verifier."""

    def __init__(
        self, stage: Verification, breakers: Breakers, stage_seconds: float, score_seconds: float
    ) -> None:
        self._stage, self._breakers = stage, breakers
        self._stage_seconds, self._score_seconds = stage_seconds, score_seconds

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        name = request.verifier
        with self._breakers.verifier(name).call():
            async with _within(self._score_seconds, f"verifier {name}"):
                return await self._stage.score(request)

    async def describe(self, request: DescribeVerifiersRequest) -> DescribeVerifiersResponse:
        with self._breakers.of("verification").call():
            async with _within(self._stage_seconds, "the verification service"):
                return await self._stage.describe(request)


class _Difficulty:
    """Estimates, behind a breaker."""

    def __init__(self, stage: Difficulty, breakers: Breakers, seconds: float) -> None:
        self._stage, self._breaker, self._seconds = stage, breakers.of("difficulty"), seconds

    async def estimate(self, request: EstimateRequest) -> EstimateResponse:
        with self._breaker.call():
            async with _within(self._seconds, "the difficulty service"):
                return await self._stage.estimate(request)


class _Aggregation:
    """Votes, behind a breaker; where they cannot be counted there, they are counted here."""

    def __init__(
        self, stage: Aggregation, aside: Aggregation, breakers: Breakers, seconds: float, fell_back: FellBack
    ) -> None:
        self._stage, self._aside = stage, aside
        self._breaker, self._seconds, self._fell_back = breakers.of("aggregation"), seconds, fell_back

    async def aggregate(self, request: AggregateRequest) -> AggregateResponse:
        try:
            with self._breaker.call():
                async with _within(self._seconds, "the aggregation service"):
                    return await self._stage.aggregate(request)
        except Unavailable as error:
            down = error
        self._fell_back(self._breaker.part)
        try:
            return await self._aside.aggregate(request)
        except FailedPrecondition as error:
            raise Unavailable(f"{down} In its place the router would: {error}", down.retry_after) from None


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    """Raises Unavailable where it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"{what} did not answer within {seconds:g} s") from None
