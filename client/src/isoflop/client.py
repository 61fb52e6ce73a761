"""The clients: one channel each, for as long as they live."""

# ruff: noqa: ASYNC109 (a timeout here is the deadline of a call, by which the router plans)

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message as AnyMessage

from isoflop.errors import InvalidArgument, Unavailable
from isoflop.request import (
    TENANT,
    BillKey,
    Options,
    bill_request,
    budget_request,
    feedback_request,
    solve_request,
)
from isoflop.rpc import CHANNEL_OPTIONS, from_rpc_error
from isoflop.v1.common_pb2 import Message
from isoflop.v1.router_pb2 import (
    GetBillResponse,
    GetBudgetResponse,
    GetFrontierRequest,
    GetFrontierResponse,
    GetQueryRequest,
    GetQueryResponse,
    ListModelsRequest,
    ListModelsResponse,
    PlanRequest,
    PlanResponse,
    SolveResponse,
    StreamSolveRequest,
    StreamSolveResponse,
    SubmitFeedbackResponse,
)
from isoflop.v1.router_pb2_grpc import RouterServiceStub

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from isoflop.v1.router_pb2_grpc import RouterServiceAsyncStub

DEFAULT_ADDRESS = "localhost:50051"
"""Where the router is looked for when neither the caller nor ISOFLOP_ADDRESS says."""

TRIES = 3
"""Most tries of a call that is safe to repeat."""

LONGEST_PAUSE = 30.0
"""Seconds. A router that asks for a longer pause before the next try gets none: the caller is told."""

_Q = TypeVar("_Q", bound=AnyMessage)
_R = TypeVar("_R", bound=AnyMessage)


def default_address() -> str:
    """The environment's ISOFLOP_ADDRESS, or `localhost:50051`."""
    return os.environ.get("ISOFLOP_ADDRESS") or DEFAULT_ADDRESS


def _metadata(tenant: str | None) -> tuple[tuple[str, str], ...]:
    """What goes with each call; raises InvalidArgument for a name that cannot."""
    name = os.environ.get("ISOFLOP_TENANT", "") if tenant is None else tenant
    if not (name.isascii() and name.isprintable()):
        raise InvalidArgument("tenant", "is no name of a tenant: those are of a-z, 0-9, dots, dashes")
    return ((TENANT, name),) if name else ()


class _Tries:
    """The tries of one call, all within its timeout.

    Only what is Unavailable is tried again, after the pause that the router asks for, and only
    calls that are safe to repeat: those that spend nothing, and those with a request_id.
    """

    def __init__(self, address: str, timeout: float | None, repeatable: bool) -> None:
        self._address = address
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._more = TRIES - 1 if repeatable else 0

    def left(self) -> float | None:
        """Seconds that the next try may take."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self, failure: grpc.RpcError) -> float:
        """Seconds to wait before the next try; raises the failure's error where there is none."""
        error = from_rpc_error(failure, self._address)
        if not isinstance(error, Unavailable) or not self._more or error.retry_after > LONGEST_PAUSE:
            raise error from failure
        left = self.left()
        if left is not None and error.retry_after >= left:
            raise error from failure
        self._more -= 1
        return error.retry_after


class _Heard:
    """The events that a caller has had of a query, over all tries: none is told twice.

    To a call that joins a query the router tells all events from the first on, or after its end the last one.
    Where the query could not be joined, and has begun anew, all of its events are new.
    """

    def __init__(self) -> None:
        self._query_id = ""
        self._told = 0
        self._next = 0

    def again(self) -> None:
        """Another call begins."""
        self._next = 0

    def is_new(self, event: StreamSolveResponse) -> bool:
        """Whether the caller has not had this next event of the call."""
        if event.HasField("started") and event.started.query_id != self._query_id:
            self._query_id, self._told = event.started.query_id, 0
        self._next += 1
        if self._next <= self._told and not event.HasField("final"):
            return False
        self._told = self._next
        return True


class Client:
    """Calls a router. Use it as a context manager, or close it; threads may share it.

    `address` is `host:port`; where it is None, the environment's ISOFLOP_ADDRESS or
    `localhost:50051`. `tenant` says who asks, and so whose budgets and limits hold; where it is
    None, the environment's ISOFLOP_TENANT or nobody in particular. The router takes the caller's
    word for it. A `timeout` is in seconds, and for a query it is the time budget: the router plans
    by it. Every method raises the errors of `isoflop.errors`. Calls that spend nothing, and those
    with a `request_id`, are tried up to three times while the router is Unavailable, or the
    connection breaks: a query that runs is joined, and not billed again.
    """

    def __init__(self, address: str | None = None, tenant: str | None = None) -> None:
        self.address = address or default_address()
        self._metadata = _metadata(tenant)
        self._channel = grpc.insecure_channel(self.address, CHANNEL_OPTIONS)
        self._stub = RouterServiceStub(self._channel)

    def solve(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> SolveResponse:
        """The answer to a query, with its calibrated confidence, what was decided, and the bill."""
        request = solve_request(query, **options)
        return self._call(self._stub.Solve, request, timeout, bool(request.request_id))

    def stream(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Generator[StreamSolveResponse, None, None]:
        """The events of a query as they happen; the last one is `final`.

        The query starts with the first event that is asked for. Closing the generator
        (`contextlib.closing`) cancels it. With a `request_id` a stream that breaks goes on where it
        broke, within its tries; where the query had to begin anew, with a `started` of another query.
        """
        request = StreamSolveRequest(query=solve_request(query, **options))
        return self._events(request, timeout)

    def plan(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> PlanResponse:
        """What `solve` would do first, why, and the best that was rejected. Spends nothing."""
        return self._call(self._stub.Plan, PlanRequest(query=solve_request(query, **options)), timeout)

    def models(self, *, timeout: float | None = None) -> ListModelsResponse:
        """The models, verifiers and strategies that can be asked for."""
        return self._call(self._stub.ListModels, ListModelsRequest(), timeout)

    def frontier(self, *, timeout: float | None = None) -> GetFrontierResponse:
        """By difficulty, what no other plan beats in accuracy at its price."""
        return self._call(self._stub.GetFrontier, GetFrontierRequest(), timeout)

    def query(self, query_id: str, *, timeout: float | None = None) -> GetQueryResponse:
        """A running or finished query, by the `query_id` of its response or first event: what was planned,
        what came, and what was charged."""
        return self._call(self._stub.GetQuery, GetQueryRequest(query_id=query_id), timeout)

    def budget(self, tenant: str = "", *, timeout: float | None = None) -> GetBudgetResponse:
        """Budgets in their present windows, a tenant's or everybody's: what was spent, what rounds that run
        may take, and the shadow price."""
        return self._call(self._stub.GetBudget, budget_request(tenant), timeout)

    def bill(
        self,
        by: Sequence[BillKey] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        timeout: float | None = None,
    ) -> GetBillResponse:
        """What queries have cost, in FLOPs, money and tokens: a row for each of `by`, the dearest first.

        By the time of each charge, from `since` on (None: from the first that is kept) and before `until`
        (None: until now). Times without a zone are UTC, as the days of bills are.
        """
        return self._call(self._stub.GetBill, bill_request(by, since, until), timeout)

    def feedback(
        self,
        query_id: str,
        *,
        answer: str | None = None,
        right: bool | None = None,
        timeout: float | None = None,
    ) -> SubmitFeedbackResponse:
        """Say the right `answer` to a finished query, or whether the returned one is `right`: one of the two.

        Whether it was right comes back. Said again, it replaces what was said before.
        """
        return self._call(self._stub.SubmitFeedback, feedback_request(query_id, answer, right), timeout)

    def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Q, _R],
        request: _Q,
        timeout: float | None,
        repeatable: bool = True,
    ) -> _R:
        tries = _Tries(self.address, timeout, repeatable)
        while True:
            try:
                return method(request, timeout=tries.left(), metadata=self._metadata)
            except grpc.RpcError as failure:
                pause = tries.pause(failure)
            time.sleep(pause)

    def _events(
        self, request: StreamSolveRequest, timeout: float | None
    ) -> Generator[StreamSolveResponse, None, None]:
        tries, heard = _Tries(self.address, timeout, bool(request.query.request_id)), _Heard()
        while True:
            call = self._stub.StreamSolve(request, timeout=tries.left(), metadata=self._metadata)
            try:
                yield from filter(heard.is_new, call)
            except grpc.RpcError as failure:
                pause = tries.pause(failure)
            else:
                return
            finally:
                call.cancel()
            heard.again()
            time.sleep(pause)


class AsyncClient:
    """`Client` for asyncio: the same methods, to be awaited. Make it where the event loop runs.

    A task that is cancelled while it waits for a call cancels the call.
    """

    def __init__(self, address: str | None = None, tenant: str | None = None) -> None:
        self.address = address or default_address()
        self._metadata = _metadata(tenant)
        self._channel = grpc.aio.insecure_channel(self.address, CHANNEL_OPTIONS)
        self._stub: RouterServiceAsyncStub = RouterServiceStub(self._channel)

    async def solve(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> SolveResponse:
        """As `Client.solve`."""
        request = solve_request(query, **options)
        return await self._call(self._stub.Solve, request, timeout, bool(request.request_id))

    def stream(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[StreamSolveResponse, None]:
        """As `Client.stream`, for `async for`; close it with `contextlib.aclosing`."""
        request = StreamSolveRequest(query=solve_request(query, **options))
        return self._events(request, timeout)

    async def plan(
        self, query: str | Sequence[Message], *, timeout: float | None = None, **options: Unpack[Options]
    ) -> PlanResponse:
        """As `Client.plan`."""
        return await self._call(self._stub.Plan, PlanRequest(query=solve_request(query, **options)), timeout)

    async def models(self, *, timeout: float | None = None) -> ListModelsResponse:
        """As `Client.models`."""
        return await self._call(self._stub.ListModels, ListModelsRequest(), timeout)

    async def frontier(self, *, timeout: float | None = None) -> GetFrontierResponse:
        """As `Client.frontier`."""
        return await self._call(self._stub.GetFrontier, GetFrontierRequest(), timeout)

    async def query(self, query_id: str, *, timeout: float | None = None) -> GetQueryResponse:
        """As `Client.query`."""
        return await self._call(self._stub.GetQuery, GetQueryRequest(query_id=query_id), timeout)

    async def budget(self, tenant: str = "", *, timeout: float | None = None) -> GetBudgetResponse:
        """As `Client.budget`."""
        return await self._call(self._stub.GetBudget, budget_request(tenant), timeout)

    async def bill(
        self,
        by: Sequence[BillKey] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        *,
        timeout: float | None = None,
    ) -> GetBillResponse:
        """As `Client.bill`."""
        return await self._call(self._stub.GetBill, bill_request(by, since, until), timeout)

    async def feedback(
        self,
        query_id: str,
        *,
        answer: str | None = None,
        right: bool | None = None,
        timeout: float | None = None,
    ) -> SubmitFeedbackResponse:
        """As `Client.feedback`."""
        return await self._call(self._stub.SubmitFeedback, feedback_request(query_id, answer, right), timeout)

    async def close(self) -> None:
        """Close the channel; calls that still run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Q, _R],
        request: _Q,
        timeout: float | None,
        repeatable: bool = True,
    ) -> _R:
        tries = _Tries(self.address, timeout, repeatable)
        while True:
            try:
                return await method(request, timeout=tries.left(), metadata=self._metadata)
            except grpc.RpcError as failure:
                pause = tries.pause(failure)
            await asyncio.sleep(pause)

    async def _events(
        self, request: StreamSolveRequest, timeout: float | None
    ) -> AsyncGenerator[StreamSolveResponse, None]:
        tries, heard = _Tries(self.address, timeout, bool(request.query.request_id)), _Heard()
        while True:
            call = self._stub.StreamSolve(request, timeout=tries.left(), metadata=self._metadata)
            try:
                async for event in call:
                    if heard.is_new(event):
                        yield event
            except grpc.RpcError as failure:
                pause = tries.pause(failure)
            else:
                return
            finally:
                call.cancel()
            heard.again()
            await asyncio.sleep(pause)
