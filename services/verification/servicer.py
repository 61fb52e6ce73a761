"""The gRPC face of verification."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from isoflop.v1 import verification_pb2 as pb
from isoflop.v1 import verification_pb2_grpc as rpc

from services.common.server import Face
from services.verification.core import Verification


class VerificationServicer(rpc.VerificationServiceServicer):
    """Calls the core."""

    def __init__(self, core: Verification) -> None:
        self._core = core

    async def Score(self, request: pb.ScoreRequest, context: ServicerContext[Any, Any]) -> pb.ScoreResponse:
        return await self._core.score(request)

    async def DescribeVerifiers(
        self, request: pb.DescribeVerifiersRequest, context: ServicerContext[Any, Any]
    ) -> pb.DescribeVerifiersResponse:
        return await self._core.describe(request)


def face(core: Verification) -> Face:
    """The service, for `services.common.server`."""
    return Face(
        "isoflop.v1.VerificationService",
        VerificationServicer(core),
        rpc.add_VerificationServiceServicer_to_server,
    )
