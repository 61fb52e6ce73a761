"""The gRPC face of difficulty."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from isoflop.v1 import difficulty_pb2 as pb
from isoflop.v1 import difficulty_pb2_grpc as rpc

from services.common.server import Face
from services.difficulty.core import Difficulty


class DifficultyServicer(rpc.DifficultyServiceServicer):
    """Calls the core."""

    def __init__(self, core: Difficulty) -> None:
        self._core = core

    async def Estimate(
        self, request: pb.EstimateRequest, context: ServicerContext[Any, Any]
    ) -> pb.EstimateResponse:
        return await self._core.estimate(request)


def face(core: Difficulty) -> Face:
    """The service, for `services.common.server`."""
    return Face(
        "isoflop.v1.DifficultyService", DifficultyServicer(core), rpc.add_DifficultyServiceServicer_to_server
    )
