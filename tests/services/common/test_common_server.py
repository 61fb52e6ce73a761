"""What goes over the wire beside answers: statuses with details, health, reflection, metrics."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from isoflop import errors
from isoflop.rpc import CHANNEL_OPTIONS, STATUS_DETAILS, from_rpc_error
from isoflop.v1 import generation_pb2, generation_pb2_grpc, verification_pb2, verification_pb2_grpc
from prometheus_client import CollectorRegistry, Counter
from service_process import ROOT
from structlog.testing import capture_logs

from services.common.server import CannotServe, Face, serving
from services.common.settings import ServiceSettings

SECRET = "the prompt: 17*24+13"


class Verifier(verification_pb2_grpc.VerificationServiceServicer):
    """Answers with `behave`."""

    behave: Callable[[], Awaitable[None]]

    async def Score(self, request: verification_pb2.ScoreRequest, context: Any) -> Any:
        await self.behave()
        return verification_pb2.ScoreResponse()

    async def DescribeVerifiers(
        self, request: verification_pb2.DescribeVerifiersRequest, context: Any
    ) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "as I said")


class Generator(generation_pb2_grpc.GenerationServiceServicer):
    """Says one thing, and then behaves."""

    behave: Callable[[], Awaitable[None]]

    async def Generate(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        yield generation_pb2.GenerateResponse()
        await self.behave()


class Served:
    """A server with both, and what to call it with."""

    def __init__(self, registry: CollectorRegistry, address: str, channel: grpc.aio.Channel) -> None:
        self.registry = registry
        self.address = address
        self.channel = channel
        self.verifier: Verifier
        self.generator: Generator

    def behave(self, behaviour: Callable[[], Awaitable[None]]) -> None:
        self.verifier.behave = self.generator.behave = behaviour

    async def unary(self) -> None:
        await verification_pb2_grpc.VerificationServiceStub(self.channel).Score(
            verification_pb2.ScoreRequest(verifier=SECRET)
        )

    async def stream(self) -> None:
        call = generation_pb2_grpc.GenerationServiceStub(self.channel).Generate()
        try:
            async for _ in call:
                pass
        finally:
            # Cancelled while it still begins, grpc's own iteration leaves the call to the garbage collector.
            call.cancel()

    def calls(self, method: str, code: str) -> float:
        labels = {"method": method, "code": code}
        return self.registry.get_sample_value("isoflop_rpc_calls_total", labels) or 0.0

    async def until_recorded(self, method: str, code: str) -> None:
        """A call is recorded just after the caller has heard of its end."""
        async with asyncio.timeout(5):
            while not self.calls(method, code):  # noqa: ASYNC110 (metrics tell nobody)
                await asyncio.sleep(0.01)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    registry = CollectorRegistry()
    verifier, generator = Verifier(), Generator()
    faces = [
        Face(
            "isoflop.v1.VerificationService",
            verifier,
            verification_pb2_grpc.add_VerificationServiceServicer_to_server,
        ),
        Face(
            "isoflop.v1.GenerationService",
            generator,
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
        ),
    ]
    settings = ServiceSettings(address="127.0.0.1:0", drain_seconds=0)
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(settings, faces, registry))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, CHANNEL_OPTIONS))
        served = Served(registry, address, channel)
        served.verifier, served.generator = verifier, generator
        yield served


async def failure(call: Awaitable[None]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def details(error: grpc.aio.AioRpcError) -> list[Any]:
    """The messages of google.rpc that came with a status."""
    values = [value for key, value in error.trailing_metadata() if key == STATUS_DETAILS]
    status = Status.FromString(values[0])
    assert status.message == error.details()
    assert status.code == error.code().value[0]
    found = []
    for packed in status.details:
        for kind in (BadRequest, RetryInfo, ErrorInfo):
            if packed.Is(kind.DESCRIPTOR):
                found.append(kind())
                packed.Unpack(found[-1])
    return found


TABLE = [
    (errors.InvalidArgument("budget.flops", "must not be negative"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound("there is no model 'x'"), grpc.StatusCode.NOT_FOUND),
    (errors.Unauthenticated("who are you?"), grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied("not yours"), grpc.StatusCode.PERMISSION_DENIED),
    (errors.ResourceExhausted("come back later", 12.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Unavailable("down", 0.25), grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.FailedPrecondition("no plan fits: 3e9 FLOPs would do"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Internal("abc123"), grpc.StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("error", "code"), TABLE, ids=lambda value: type(value).__name__)
async def test_each_error_arrives_as_what_it_was(
    error: errors.IsoflopError, code: grpc.StatusCode, served: Served
) -> None:
    async def fail() -> None:
        raise error

    served.behave(fail)
    for call, method in ((served.unary, "Score"), (served.stream, "Generate")):
        arrived = await failure(call())
        assert arrived.code() == code
        assert arrived.details() == str(error)
        assert details(arrived) == error.details()
        again = from_rpc_error(arrived, served.address)
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
        await served.until_recorded(method, code.name)


async def test_details_say_the_field_the_seconds_and_the_id(served: Served) -> None:
    async def arrived(error: Exception) -> Any:
        async def fail() -> None:
            raise error

        served.behave(fail)
        (detail,) = details(await failure(served.unary()))
        return detail

    bad = await arrived(errors.InvalidArgument("budget.flops", "must not be negative"))
    assert [(one.field, one.description) for one in bad.field_violations] == [
        ("budget.flops", "must not be negative")
    ]
    for seconds in (12.5, 0.0, 86400.0):
        retry = await arrived(errors.ResourceExhausted("later", seconds))
        assert retry.retry_delay.ToTimedelta().total_seconds() == seconds
    assert (await arrived(errors.Internal("abc123"))).metadata["error_id"] == "abc123"


async def test_a_bug_is_internal_with_a_fixed_text_and_is_logged_under_its_id(served: Served) -> None:
    async def bug() -> None:
        prompt = SECRET
        raise ZeroDivisionError(len(prompt))

    served.behave(bug)
    for call, method in ((served.unary, "Score"), (served.stream, "Generate")):
        with capture_logs() as logged:
            arrived = await failure(call())
        assert arrived.code() == grpc.StatusCode.INTERNAL
        (info,) = details(arrived)
        error_id = info.metadata["error_id"]
        assert arrived.details() == f"internal error {error_id}: the service's log has the details"
        (entry,) = logged
        assert entry["error_id"] == error_id
        assert isinstance(entry["exc_info"], ZeroDivisionError)
        assert SECRET not in str(entry)
        await served.until_recorded(method, "INTERNAL")


BUG = f"""
import asyncio
from services.common import log, status
log.configure("info", "%s")
class Context:
    async def abort(self, code, message, details): pass
async def handler(request):
    prompt = request
    raise ZeroDivisionError("a bug")
async def main():
    try:
        await handler("{SECRET[:10]}" + "{SECRET[10:]}")
    except Exception as error:
        await status.abort(Context(), error)
asyncio.run(main())
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_of_a_bug_has_the_traceback_and_not_the_prompt(form: str) -> None:
    """In a process of its own: loggers are configured once."""
    ran = subprocess.run(
        [sys.executable, "-c", BUG % form], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == ""
    assert "internal error" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr
    assert "handler" in ran.stderr
    assert SECRET not in ran.stderr


async def test_a_call_that_ends_well_is_recorded_as_ok(served: Served) -> None:
    async def nothing() -> None:
        pass

    served.behave(nothing)
    await served.unary()
    await served.stream()
    for method in ("Score", "Generate"):
        await served.until_recorded(method, "OK")
        labels = {"method": method}
        assert served.registry.get_sample_value("isoflop_rpc_seconds_count", labels) == 1


async def test_calls_that_their_callers_cancel_are_recorded_as_cancelled(served: Served) -> None:
    began, told = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    served.behave(wait)
    for call, method in ((served.unary, "Score"), (served.stream, "Generate")):
        began.clear()
        told.clear()
        with capture_logs() as logged:
            task = asyncio.create_task(call())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await served.until_recorded(method, "CANCELLED")
        assert told.is_set()
        assert logged == []


async def test_a_call_that_is_too_late_is_cancelled_in_the_service(served: Served) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    served.behave(wait)
    stub = verification_pb2_grpc.VerificationServiceStub(served.channel)
    late = await failure(stub.Score(verification_pb2.ScoreRequest(), timeout=0.1))
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await served.until_recorded("Score", "CANCELLED")


async def test_a_status_that_a_servicer_sets_itself_is_left_alone(served: Served) -> None:
    stub = verification_pb2_grpc.VerificationServiceStub(served.channel)
    arrived = await failure(stub.DescribeVerifiers(verification_pb2.DescribeVerifiersRequest()))
    assert (arrived.code(), arrived.details()) == (grpc.StatusCode.DATA_LOSS, "as I said")


async def test_a_method_that_is_not_there_is_unimplemented(served: Served) -> None:
    call = served.channel.unary_unary("/isoflop.v1.VerificationService/Guess")
    assert (await failure(call(b""))).code() == grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_serving_for_the_server_and_each_service(served: Served) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name in ("", "isoflop.v1.VerificationService", "isoflop.v1.GenerationService"):
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    unknown = await failure(stub.Check(health_pb2.HealthCheckRequest(service="isoflop.v1.Nothing")))
    assert unknown.code() == grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(served: Served) -> None:
    def ask() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(served.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            proto = database.FindFileContainingSymbol("isoflop.v1.VerificationService")
            return list(database.get_services()), [method.name for method in proto.service[0].method]

    services, methods = await asyncio.to_thread(ask)
    assert {"isoflop.v1.VerificationService", "isoflop.v1.GenerationService"} <= set(services)
    assert "grpc.health.v1.Health" in services
    assert methods == ["Score", "DescribeVerifiers"]


async def test_metrics_are_served_for_prometheus(free_port: int) -> None:
    registry = CollectorRegistry()
    Counter("isoflop_things_total", "Things.", ["kind"], registry=registry).labels("big").inc(3)

    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=5) as page:
            return str(page.read().decode())

    settings = ServiceSettings(address="127.0.0.1:0", metrics_port=free_port)
    async with serving(settings, [], registry):
        page = await asyncio.to_thread(fetch)
    assert 'isoflop_things_total{kind="big"} 3.0' in page
    assert "# TYPE isoflop_rpc_seconds histogram" in page
    assert "_created" not in page


async def test_a_port_in_use_cannot_be_served(served: Served) -> None:
    settings = ServiceSettings(address=served.address)
    with pytest.raises(CannotServe, match=f"cannot listen on {served.address}: port in use"):
        async with serving(settings, [], CollectorRegistry()):
            pass


async def test_a_metrics_port_in_use_cannot_be_served(taken_port: int) -> None:
    settings = ServiceSettings(address="127.0.0.1:0", metrics_port=taken_port)
    with pytest.raises(CannotServe, match=f"cannot serve metrics on port {taken_port} "):
        async with serving(settings, [], CollectorRegistry()):
            pass


async def test_what_runs_may_end_while_the_server_drains(free_port: int) -> None:
    registry = CollectorRegistry()
    verifier, began = Verifier(), asyncio.Event()

    async def slowly() -> None:
        began.set()
        await asyncio.sleep(0.2)

    verifier.behave = slowly
    face = Face(
        "isoflop.v1.VerificationService",
        verifier,
        verification_pb2_grpc.add_VerificationServiceServicer_to_server,
    )
    settings = ServiceSettings(address="127.0.0.1:0", metrics_port=free_port, drain_seconds=5)
    async with AsyncExitStack() as stack:
        server = serving(settings, [face], registry)
        address = await server.__aenter__()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        call = asyncio.ensure_future(
            verification_pb2_grpc.VerificationServiceStub(channel).Score(verification_pb2.ScoreRequest())
        )
        await began.wait()
        await server.__aexit__(None, None, None)
        assert await call == verification_pb2.ScoreResponse()
    # And the metrics page has gone with it.
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{free_port}/metrics", timeout=5)
