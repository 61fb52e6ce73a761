"""A fake Triton: the tensors of the vLLM backend without a model behind them, in no time.

Every request on a stream is answered under its id with the same short solution, at once or a set time
after it came. So what a query through the suite takes beyond a direct call is the suite's own. Run it in
a process of its own: `python -m benchmarks.fake_triton`.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import grpc
import uvloop
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

from services.common.server import until_signal

QUERY = "17*24+13"
ANSWER = "421"
SOLUTION = f"""\
17*24=17*20+17*4
17*20=340
17*4=68
340+68=408
408+13={ANSWER}
answer: {ANSWER}
"""
PROMPT_TOKENS = len(QUERY)
TOKEN_LOGPROB = -0.05
"""Log-probability of each token; a token is a character."""


class FakeTriton(rpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers ModelStreamInfer; everything else is unimplemented."""

    def __init__(self, latency_ms: float, chunks: int) -> None:
        self._seconds = latency_ms / 1e3
        self._responses = responses(SOLUTION, chunks)

    async def ModelStreamInfer(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Answers each request when its time has come, whatever came before it."""
        if not self._seconds:
            async for request in requests:
                await self._answer(request, context)
            return
        writing = asyncio.Lock()  # a stream takes one message at a time

        async def answer_late(request: pb.ModelInferRequest) -> None:
            await asyncio.sleep(self._seconds)
            async with writing:
                await self._answer(request, context)

        async with asyncio.TaskGroup() as running:
            async for request in requests:
                running.create_task(answer_late(request))

    async def _answer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        for template in self._responses:
            response = pb.ModelStreamInferResponse()
            response.CopyFrom(template)
            response.infer_response.id = request.id
            response.infer_response.model_name = request.model_name
            await context.write(response)


def responses(text: str, chunks: int) -> list[pb.ModelStreamInferResponse]:
    """The responses to one request: `text` in so many pieces, cut at line ends where it can be."""
    pieces = _cut(text.splitlines(keepends=True), chunks)
    made: list[pb.ModelStreamInferResponse] = []
    tokens = 0
    for piece in pieces:
        tokens += len(piece)
        made.append(_response(piece, tokens, last=len(made) == len(pieces) - 1))
    return made


def _cut(lines: Sequence[str], chunks: int) -> list[str]:
    """The lines in at most so many chunks of nearly equal numbers of lines."""
    chunks = min(chunks, len(lines))
    bounds = [len(lines) * i // chunks for i in range(chunks + 1)]
    return ["".join(lines[a:b]) for a, b in pairwise(bounds)]


def _response(piece: str, tokens: int, last: bool) -> pb.ModelStreamInferResponse:
    tensors = {
        "text_output": ("BYTES", _text(piece)),
        "finish_reason": ("BYTES", _text("stop" if last else "None")),
        "cumulative_logprob": ("FP32", struct.pack("<f", TOKEN_LOGPROB * tokens)),
        "num_input_tokens": ("UINT32", struct.pack("<I", PROMPT_TOKENS)),
        "num_output_tokens": ("UINT32", struct.pack("<I", len(piece))),
    }
    response = pb.ModelStreamInferResponse()
    for name, (kind, raw) in tensors.items():
        response.infer_response.outputs.add(name=name, datatype=kind, shape=[1])
        response.infer_response.raw_output_contents.append(raw)
    return response


def _text(value: str) -> bytes:
    """One element of a BYTES tensor."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data


async def serve(address: str, latency_ms: float, chunks: int) -> None:
    """Serve until a signal; the address is printed once it listens."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(FakeTriton(latency_ms, chunks), server)
    port = server.add_insecure_port(address)
    await server.start()
    print(f"benchmarks.fake_triton: serving on {address.rpartition(':')[0]}:{port}", flush=True)
    await until_signal()
    await server.stop(None)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fake_triton", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:0", help="host:port; port 0 takes a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time that each sample takes")
    parser.add_argument("--chunks", type=int, default=1, help="responses in which a sample comes (1 to 6)")
    options = parser.parse_args()
    try:
        uvloop.run(serve(options.address, options.latency_ms, options.chunks))
    except RuntimeError as error:
        print(f"benchmarks.fake_triton: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
