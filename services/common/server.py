"""One way to serve: gRPC with health, reflection and metrics, a clear word when it cannot, and a drain."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection
from isoflop.errors import IsoflopError
from isoflop.rpc import MAX_MESSAGE_BYTES
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from services.common import log
from services.common.settings import S, ServiceSettings, load, options
from services.common.status import StatusInterceptor

logger = structlog.get_logger()

SERVER_OPTIONS: list[tuple[str, int]] = [
    # A second server on the same port is a mistake: refuse it, do not share the port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The suite's own parts ping every 5 s: see `services.common.channels`.
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Callers come back through the resolver now and then, and so find new replicas.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
]

LAST_WORD_SECONDS = 1.0
"""How long callers may take to hear how their calls have ended."""
LONGEST_SECONDS = 86_400.0
"""Longer than any drain."""

OpenService: TypeAlias = Callable[[S, CollectorRegistry], AbstractAsyncContextManager[Sequence["Face"]]]
"""Makes a service's faces from its settings, and closes what they need."""


class CannotServe(Exception):
    """A service cannot start; `str(error)` is one line that says why and what to do."""


@dataclass(frozen=True)
class Face:
    """A servicer and how grpc takes it."""

    name: str
    """Full name of the service, as in isoflop.v1.RouterService."""
    servicer: Any
    add: Callable[[Any, grpc.aio.Server], None]
    """The generated `add_..._to_server`."""
    well: Callable[[Callable[[str, bool], Awaitable[None]]], Awaitable[None]] | None = None
    """Runs while it is served, and tells health whether parts of the service are well, by name."""
    end: Callable[[], Awaitable[None]] | None = None
    """Ends what still runs when a drain has no more time: callers are told, and what it took is counted."""


@asynccontextmanager
async def serving(
    settings: ServiceSettings, faces: Sequence[Face], registry: CollectorRegistry
) -> AsyncIterator[str]:
    """Serve `faces` while the context lasts; yields the address. Ends with a drain.

    Raises CannotServe where a port is in use.
    """
    calls = StatusInterceptor(registry)
    loop = asyncio.get_running_loop()
    tasks = Gauge(
        "isoflop_process_tasks",
        "Tasks of asyncio that have not ended; moves as calls and what they wait for begin and end.",
        registry=registry,
    )
    tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
    server = grpc.aio.server(interceptors=[calls], options=SERVER_OPTIONS)
    for face in faces:
        face.add(face.servicer, server)
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [face.name for face in faces]
    if settings.reflection:
        reflection.enable_server_reflection([*names, HEALTH, reflection.SERVICE_NAME], server)
    host = settings.address.rpartition(":")[0]
    try:
        port = server.add_insecure_port(settings.address)
    except RuntimeError:
        port = 0
    if not port:
        raise CannotServe(
            f"cannot listen on {settings.address}: port in use, or not ours; choose another with --address"
        )
    metrics = None
    if settings.metrics_port:
        try:
            metrics, _ = start_http_server(settings.metrics_port, host.strip("[]"), registry)
        except OSError as error:
            raise CannotServe(
                f"cannot serve metrics on port {settings.metrics_port} ({error.strerror}): "
                "choose another with --metrics-port"
            ) from None
    await server.start()

    async def tell(name: str, well: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await servicer.set(name, status)

    for name in ["", *names]:
        await tell(name, True)
    parts = [asyncio.ensure_future(face.well(tell)) for face in faces if face.well]
    try:
        yield f"{host}:{port}"
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await servicer.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_notice_seconds)
        await _drain(server, calls, faces, settings.drain_seconds)
        if metrics:
            await asyncio.to_thread(metrics.shutdown)
            metrics.server_close()


async def _drain(
    server: grpc.aio.Server, calls: StatusInterceptor, faces: Sequence[Face], seconds: float
) -> None:
    """Take no more calls, let those that run go on for so long, and then have them end."""
    stopping = asyncio.create_task(server.stop(LONGEST_SECONDS))
    await asyncio.sleep(0)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await calls.idle()
    await asyncio.gather(*(face.end() for face in faces if face.end))
    # Who watches health does not leave by itself.
    await asyncio.wait({stopping}, timeout=LAST_WORD_SECONDS)
    await server.stop(0)
    await stopping


async def until_signal() -> None:
    """Return at the first SIGINT or SIGTERM. A second one ends the process at once."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


def main(kind: type[S], open_service: OpenService[S]) -> int:
    """`python -m` of a service: its command line, and then `run`."""
    name = kind.module()
    parser = ArgumentParser(prog=f"python -m {name}", description=kind.__doc__)
    source = options(kind, parser)
    return run(name, load(kind, source, parser.parse_args()), open_service)


def run(name: str, settings: S, open_service: OpenService[S]) -> int:
    """Run a service until a signal; the exit status. An error is one line on standard error."""
    log.configure(settings.log_level, settings.log_format)

    async def serve() -> None:
        registry = CollectorRegistry()
        # Before anything else: a signal that comes while models are loading, too, is an orderly end.
        signalled = asyncio.create_task(until_signal())
        await asyncio.sleep(0)
        async with open_service(settings, registry) as faces, serving(settings, faces, registry) as address:
            print(f"{name}: serving on {address}", flush=True)
            await signalled

    try:
        uvloop.run(serve())
    except (CannotServe, IsoflopError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0
