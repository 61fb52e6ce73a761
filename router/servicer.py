"""The gRPC face of the router."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from grpc.aio import ServicerContext
from isoflop.request import TENANT
from isoflop.v1 import router_pb2 as pb
from isoflop.v1 import router_pb2_grpc as rpc

from router.core import Router
from services.common.server import Face

Context = ServicerContext[Any, Any]


class RouterServicer(rpc.RouterServiceServicer):
    """Calls the core."""

    def __init__(self, core: Router) -> None:
        self._core = core

    async def Solve(self, request: pb.SolveRequest, context: Context) -> pb.SolveResponse:
        return await self._core.solve(request, _seconds(context), _tenant(context))

    async def StreamSolve(
        self, request: pb.StreamSolveRequest, context: Context
    ) -> AsyncIterator[pb.StreamSolveResponse]:
        stream = self._core.stream(request.query, _seconds(context), _tenant(context))
        async with aclosing(stream) as events:
            async for event in events:
                yield event

    async def Plan(self, request: pb.PlanRequest, context: Context) -> pb.PlanResponse:
        return await self._core.plan(request.query, _seconds(context), _tenant(context))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return await self._core.models()

    async def GetFrontier(self, request: pb.GetFrontierRequest, context: Context) -> pb.GetFrontierResponse:
        return await self._core.frontier()

    async def GetQuery(self, request: pb.GetQueryRequest, context: Context) -> pb.GetQueryResponse:
        return await self._core.query(request.query_id, _tenant(context))

    async def GetBudget(self, request: pb.GetBudgetRequest, context: Context) -> pb.GetBudgetResponse:
        return await self._core.budget(request)

    async def GetBill(self, request: pb.GetBillRequest, context: Context) -> pb.GetBillResponse:
        return await self._core.bill(request)

    async def SubmitFeedback(
        self, request: pb.SubmitFeedbackRequest, context: Context
    ) -> pb.SubmitFeedbackResponse:
        return await self._core.feedback(request, _tenant(context))


def _seconds(context: Context) -> float:
    """Time until the call's deadline; infinite where it has none."""
    left = context.time_remaining()
    return math.inf if left is None else left


def _tenant(context: Context) -> str:
    """Who says that it asks; empty: nobody does. Callers bring no proof yet, and their word is taken."""
    given = (value for key, value in context.invocation_metadata() or () if key == TENANT)
    return str(next(given, ""))


def face(core: Router) -> Face:
    """The service, for `services.common.server`."""
    return Face(
        "isoflop.v1.RouterService",
        RouterServicer(core),
        rpc.add_RouterServiceServicer_to_server,
        core.well,
        core.end,
    )
