"""A reward model on Triton that is too slow; what else it may do, tests/cluster asks a real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from asking import ask
from isoflop.errors import Unavailable
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from services.verification.backends.triton import TritonBackend
from services.verification.catalog import TritonEntry

TOKENS = 7
"""Of each chain."""


class Triton(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Likes every step half, and says nothing to a chain with the word `slow` in it."""

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        steps = request.inputs[1].shape[0]
        if b"slow" in request.raw_input_contents[1]:
            await asyncio.Event().wait()
        outputs = {"tokens": np.array([TOKENS], np.int32), "scores": np.full(steps, 0.5, np.float32)}
        kinds = {"tokens": "INT32", "scores": "FP32"}
        return pb.ModelInferResponse(
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name=name, datatype=kinds[name], shape=values.shape)
                for name, values in outputs.items()
            ],
            raw_output_contents=[values.tobytes() for values in outputs.values()],
        )


@pytest.fixture
async def prm() -> AsyncIterator[TritonBackend]:
    server = grpc.aio.server()
    rpc.add_GRPCInferenceServiceServicer_to_server(Triton(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    entry = TritonEntry.model_validate(
        {
            "name": "prm",
            "backend": "triton",
            "address": f"127.0.0.1:{port}",
            "shape": {"active_parameters": 1000},
            "timeout_seconds": 0.5,
        }
    )
    backend = TritonBackend(entry, "USD")
    yield backend
    await backend.close()
    await server.stop(0)


async def test_what_it_is_too_slow_with_is_an_error_of_its_chain(prm: TritonBackend) -> None:
    response = await ask(prm, "one\ntwo", "slow", "three")
    assert [list(one.steps) for one in response.scores] == [[0.5, 0.5], [], [0.5]]
    assert "did not score within 0.5 seconds" in response.scores[1].error
    assert response.tokens == 2 * TOKENS


async def test_a_server_that_is_too_slow_with_all_is_unavailable(prm: TritonBackend) -> None:
    with pytest.raises(Unavailable, match=r"Triton at .* did not score within 0\.5 seconds"):
        await ask(prm, "slow", "so slow")
