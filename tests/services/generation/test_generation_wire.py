"""Generation over a real server: one bidirectional stream a round, and callers that hang up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from isoflop.errors import InvalidArgument, NotFound, Unavailable, Unreachable
from isoflop.rpc import CHANNEL_OPTIONS, from_rpc_error
from isoflop.v1.common_pb2 import FINISH_REASON_ABORTED
from isoflop.v1.generation_pb2 import (
    AbortSamples,
    Branch,
    DescribeModelsRequest,
    GenerateRequest,
    StartRound,
)
from isoflop.v1.generation_pb2_grpc import GenerationServiceStub
from prometheus_client import CollectorRegistry
from scripted_backend import (
    NAME,
    ScriptedBackend,
    make_core,
    put_two_lines,
    samples,
    start,
    two_lines,
    until_aborted,
)

from services.common.server import serving
from services.generation.backends import Piece, Round
from services.generation.servicer import face
from services.generation.settings import GenerationSettings


@asynccontextmanager
async def served(
    backend: ScriptedBackend, registry: CollectorRegistry
) -> AsyncIterator[GenerationServiceStub]:
    settings = GenerationSettings(address="127.0.0.1:0", drain_seconds=0)
    faces = [face(make_core(backend, registry=registry))]
    async with (
        serving(settings, faces, registry) as address,
        grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel,
    ):
        yield GenerationServiceStub(channel)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (metrics tell nobody)
            await asyncio.sleep(0.01)


def begin(**fields: object) -> GenerateRequest:
    return GenerateRequest(start=start(**fields))


async def test_a_round_goes_over_the_wire() -> None:
    async with served(ScriptedBackend(two_lines), CollectorRegistry()) as stub:
        call = stub.Generate()
        await call.write(begin(branches=[Branch(samples=3)]))
        await call.done_writing()
        responses = [response async for response in call]
        (model,) = (await stub.DescribeModels(DescribeModelsRequest())).models
    assert len(samples(responses)) == 3
    assert responses[-1].usage.completion_tokens == 12
    assert model.name == NAME


async def test_an_abort_goes_over_the_wire_and_the_usage_comes_back() -> None:
    async with served(ScriptedBackend(until_aborted), CollectorRegistry()) as stub:
        call = stub.Generate()
        await call.write(begin(branches=[Branch(samples=3)], stream_text=True))
        assert (await call.read()).delta.text == "one\n"
        await call.write(GenerateRequest(abort=AbortSamples()))
        responses = []
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
    assert [one.finish_reason for one in samples(responses)] == [FINISH_REASON_ABORTED] * 3
    assert responses[-1].usage.aborted_tokens == 9


@pytest.mark.parametrize("says_done", [True, False], ids=["half-closed", "open"])
async def test_a_caller_that_hangs_up_aborts_the_round_at_once(says_done: bool) -> None:
    registry = CollectorRegistry()
    backend = ScriptedBackend(until_aborted)
    async with served(backend, registry) as stub:
        call = stub.Generate()
        await call.write(begin(branches=[Branch(samples=3)], stream_text=True))
        if says_done:
            await call.done_writing()
        await call.read()
        call.cancel()
        labels = {"method": "Generate", "code": "CANCELLED"}
        await until(lambda: registry.get_sample_value("isoflop_rpc_calls_total", labels))
        assert backend.running == 0
        aborted = {"model": NAME, "kind": "aborted"}
        assert registry.get_sample_value("isoflop_generation_tokens_total", aborted) == 9
        assert registry.get_sample_value("isoflop_generation_samples_running", {"model": NAME}) == 0


async def test_a_caller_that_hangs_up_while_text_is_on_its_way_aborts_the_round() -> None:
    """The caller reads nothing, so that the service waits for room on the wire when it hears of the end."""

    async def endless(round: Round) -> None:
        sample_id = round.jobs[0].sample_id
        while not round.aborted(sample_id):
            round.put(Piece(sample_id, "x" * 10_000, 1))
            await asyncio.sleep(0)
        await until_aborted(round)

    registry = CollectorRegistry()
    backend = ScriptedBackend(endless)
    async with served(backend, registry) as stub:
        call = stub.Generate()
        await call.write(begin(stream_text=True))
        await until(lambda: backend.running)
        await asyncio.sleep(0.2)
        call.cancel()
        await until(lambda: not backend.running)
        running = {"model": NAME}
        await until(lambda: registry.get_sample_value("isoflop_generation_samples_running", running) == 0)


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        (GenerateRequest(abort=AbortSamples()), InvalidArgument),
        (GenerateRequest(start=StartRound(model="gpt-9")), NotFound),
        (begin(messages=[]), InvalidArgument),
    ],
    ids=["abort", "model", "messages"],
)
async def test_a_wrong_beginning_is_an_error_of_its_kind(first: GenerateRequest, kind: type) -> None:
    async with served(ScriptedBackend(two_lines), CollectorRegistry()) as stub:
        call = stub.Generate()
        await call.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert type(from_rpc_error(caught.value, "there")) is kind


async def test_a_stream_without_a_word_is_an_invalid_argument() -> None:
    async with served(ScriptedBackend(two_lines), CollectorRegistry()) as stub:
        call = stub.Generate()
        await call.done_writing()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_backend_that_fails_after_a_sample_is_an_error_after_that_sample() -> None:
    async def play(round: Round) -> None:
        put_two_lines(round, round.jobs[0])
        raise Unavailable("the engine is down", 3.0)

    async with served(ScriptedBackend(play), CollectorRegistry()) as stub:
        call = stub.Generate()
        await call.write(begin(branches=[Branch(samples=2)]))
        assert (await call.read()).sample.text == "one\ntwo"
        assert (await call.read()).usage.samples == 2
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    error = from_rpc_error(caught.value, "there")
    assert isinstance(error, Unavailable)
    assert error.retry_after == 3.0


@pytest.mark.parametrize(
    "code", ["UNAVAILABLE", "INTERNAL", "UNKNOWN", "CANCELLED", "ABORTED"], ids=str.lower
)
def test_what_grpc_says_itself_is_a_connection_that_broke(code: str) -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), "broke")
    assert isinstance(from_rpc_error(error, "there"), Unreachable)
