"""The gRPC face of generation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext
from isoflop.v1 import generation_pb2 as pb
from isoflop.v1 import generation_pb2_grpc as rpc

from services.common.server import Face
from services.generation.core import Generation


class GenerationServicer(rpc.GenerationServiceServicer):
    """Calls the core."""

    def __init__(self, core: Generation) -> None:
        self._core = core

    async def Generate(
        self, request_iterator: AsyncIterator[pb.GenerateRequest], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        # Closed at once when the caller goes away, so that the round is aborted and counted now.
        async with aclosing(self._core.generate(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def GetRoundUsage(
        self, request: pb.GetRoundUsageRequest, context: ServicerContext[Any, Any]
    ) -> pb.GetRoundUsageResponse:
        return await self._core.usage(request)

    async def DescribeModels(
        self, request: pb.DescribeModelsRequest, context: ServicerContext[Any, Any]
    ) -> pb.DescribeModelsResponse:
        return await self._core.describe(request)


def face(core: Generation) -> Face:
    """The service, for `services.common.server`."""
    return Face(
        "isoflop.v1.GenerationService",
        GenerationServicer(core),
        rpc.add_GenerationServiceServicer_to_server,
        end=core.end,
    )
