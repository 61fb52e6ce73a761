"""A router that says what a test tells it to: the one fake, at the outer edge of the client."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from isoflop.errors import IsoflopError, to_status
from isoflop.rpc import STATUS_DETAILS
from isoflop.v1.router_pb2 import StreamSolveResponse
from isoflop.v1.router_pb2_grpc import RouterServiceServicer, add_RouterServiceServicer_to_server

HANG = "hang"
"""The outcome of a call that ends only when it is cancelled."""

Outcome = Message | IsoflopError | str

CODES = {code.value[0]: code for code in grpc.StatusCode}


class ScriptedRouter(RouterServiceServicer):
    """Answers each call with the next outcome scripted for its method, and records the request."""

    def __init__(self) -> None:
        self._script: defaultdict[str, deque[Sequence[Outcome]]] = defaultdict(deque)
        self.requests: list[Any] = []
        """All requests, in the order in which they came."""
        self.called = asyncio.Event()
        """Set by the first call."""
        self.cancelled = asyncio.Event()
        """Set when a call that hangs is cancelled."""
        self.deadlines: list[float | None] = []
        """Seconds that each call had left."""
        self.tenants: list[str | None] = []
        """Who each call said that it is from."""

    def expect(self, method: str, *outcomes: Outcome) -> None:
        """The next call of `method` has these outcomes: events of a stream, or one response or error."""
        self._script[method].append(outcomes)

    def unused(self) -> list[str]:
        """Methods that were expected to be called more often."""
        return [method for method, script in self._script.items() if script]

    async def _play(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.tenants.append(dict(context.invocation_metadata()).get("isoflop-tenant"))
        self.called.set()
        assert self._script[method], f"{method} was not expected"
        outcomes = self._script[method].popleft()
        if HANG in outcomes:
            context.add_done_callback(lambda _: self.cancelled.set())
        for outcome in outcomes:
            if isinstance(outcome, IsoflopError):
                status = to_status(outcome)
                details = ((STATUS_DETAILS, status.SerializeToString()),)
                await context.abort(CODES[status.code], status.message, details)
            if outcome == HANG:
                await asyncio.Event().wait()
            yield outcome

    async def _one(self, method: str, request: Any, context: Any) -> Any:
        return await anext(self._play(method, request, context))

    async def Solve(self, request: Any, context: Any) -> Any:
        return await self._one("Solve", request, context)

    async def StreamSolve(self, request: Any, context: Any) -> AsyncIterator[StreamSolveResponse]:
        async for event in self._play("StreamSolve", request, context):
            yield event

    async def Plan(self, request: Any, context: Any) -> Any:
        return await self._one("Plan", request, context)

    async def ListModels(self, request: Any, context: Any) -> Any:
        return await self._one("ListModels", request, context)

    async def GetFrontier(self, request: Any, context: Any) -> Any:
        return await self._one("GetFrontier", request, context)

    async def GetQuery(self, request: Any, context: Any) -> Any:
        return await self._one("GetQuery", request, context)

    async def GetBudget(self, request: Any, context: Any) -> Any:
        return await self._one("GetBudget", request, context)

    async def GetBill(self, request: Any, context: Any) -> Any:
        return await self._one("GetBill", request, context)

    async def SubmitFeedback(self, request: Any, context: Any) -> Any:
        return await self._one("SubmitFeedback", request, context)


@asynccontextmanager
async def serving(router: ScriptedRouter) -> AsyncIterator[str]:
    """Serve `router` on a free port; yields the address."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_RouterServiceServicer_to_server(router, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
