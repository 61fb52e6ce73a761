"""The gRPC face of aggregation."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from isoflop.v1 import aggregation_pb2 as pb
from isoflop.v1 import aggregation_pb2_grpc as rpc

from services.aggregation.core import Aggregation
from services.common.server import Face


class AggregationServicer(rpc.AggregationServiceServicer):
    """Calls the core."""

    def __init__(self, core: Aggregation) -> None:
        self._core = core

    async def Aggregate(
        self, request: pb.AggregateRequest, context: ServicerContext[Any, Any]
    ) -> pb.AggregateResponse:
        return await self._core.aggregate(request)


def face(core: Aggregation) -> Face:
    """The service, for `services.common.server`."""
    return Face(
        "isoflop.v1.AggregationService",
        AggregationServicer(core),
        rpc.add_AggregationServiceServicer_to_server,
    )
