"""Errors of the cores as statuses of calls, and a count of how calls ended: one interceptor for all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from isoflop.errors import Internal, IsoflopError, to_status
from isoflop.rpc import STATUS_DETAILS
from prometheus_client import CollectorRegistry, Counter, Histogram

log = structlog.get_logger()

CODES = {code.value[0]: code for code in grpc.StatusCode}
SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End the call with the status of `error`; what is no error of isoflop is a bug, and goes to the log."""
    if not isinstance(error, IsoflopError):
        known = Internal()
        log.error("internal error", error_id=known.error_id, exc_info=error)
        error = known
    status = to_status(error)
    details = ((STATUS_DETAILS, status.SerializeToString()),)
    await context.abort(CODES[status.code], status.message, details)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Maps errors to statuses, and records each call once it has ended, streams included."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "isoflop_rpc_calls_total",
            "Calls that have ended, by method and status code.",
            ["method", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "isoflop_rpc_seconds",
            "Seconds from a call's arrival to its end, by method.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Return when no call runs."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called by grpc for each call."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith("/isoflop."):
            return handler
        method = path.rsplit("/", 1)[-1]
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
            if not handler.request_streaming:
                make = grpc.unary_stream_rpc_method_handler
            behaviour = self._streaming(method, handler.stream_stream or handler.unary_stream)
        else:
            make = grpc.unary_unary_rpc_method_handler
            behaviour = self._unary(method, handler.unary_unary)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _unary(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            begin, code = self._begin(), "OK"
            try:
                return await behaviour(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = "ABORTED"
                raise
            except Exception as error:
                code = _code(error)
                await abort(context, error)
            finally:
                self._record(method, code, begin)

        return call

    def _streaming(self, method: str, behaviour: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            begin, code = self._begin(), "OK"
            try:
                async for response in behaviour(request, context):
                    yield response
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = "ABORTED"
                raise
            except Exception as error:
                code = _code(error)
                await abort(context, error)
            finally:
                self._record(method, code, begin)

        return call

    def _begin(self) -> float:
        self._running += 1
        self._idle.clear()
        return time.perf_counter()

    def _record(self, method: str, code: str, begin: float) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(time.perf_counter() - begin)


def _code(error: Exception) -> str:
    return CODES[error.code if isinstance(error, IsoflopError) else Internal.code].name
