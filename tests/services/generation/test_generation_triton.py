"""One step by the Triton backend, against a strict fake of Triton's stream."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    Message,
    Sampling,
)
from isoflop.v1.generation_pb2 import Branch, StartRound
from scripted_backend import Call, generate, make_core, samples, start
from tritonclient.grpc import service_pb2, service_pb2_grpc

from services.generation.backends.triton import FLAGS, UNSEEN_TOKENS, TritonBackend
from services.generation.catalog import TritonEntry
from services.generation.core import Generation

LOGPROB = -0.125
PROMPT_TOKENS = 7
PARAMETERS = {
    *("temperature", "top_p", "logprobs", "max_tokens", "seed"),
    *("stop", "include_stop_str_in_output"),
}
ONE_STEP = Sampling(max_tokens=100, one_step=True)

Chunk = tuple[str, str]
"""A text, a token, and the reason why the sample ends with it, or None in these letters."""


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Says the same chunks to each request. Without a last one, it waits to be cancelled."""

    def __init__(self, *chunks: Chunk) -> None:
        self._chunks = chunks
        self.asked: list[dict[str, Any]] = []
        """The sampling parameters of the requests."""
        self.prompts: list[str] = []
        self.cancelled = asyncio.Event()

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """One stream."""
        try:
            async for request in requests:
                self.asked.append(parameters(request))
                self.prompts.append(text_of(request))
                for number, chunk in enumerate(self._chunks, start=1):
                    yield answer(request.id, number, *chunk)
            if not self._chunks or self._chunks[-1][1] == "None":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def text_of(request: Any) -> str:
    """The text that is continued."""
    at = [one.name for one in request.inputs].index("text_input")
    return str(request.raw_input_contents[at][4:].decode())


def parameters(request: Any) -> dict[str, Any]:
    """What is asked, after a look whether it is asked rightly."""
    names = [one.name for one in request.inputs]
    assert sorted(names) == sorted(["text_input", "sampling_parameters", "stream", *FLAGS])
    content = request.raw_input_contents[names.index("sampling_parameters")]
    given: dict[str, Any] = json.loads(content[4:])
    assert given.keys() <= PARAMETERS
    return given


def answer(sample_id: str, tokens: int, text: str, reason: str) -> Any:
    """A response with one token, the last of so many."""
    outputs = {
        "text_output": ("BYTES", _bytes(text)),
        "finish_reason": ("BYTES", _bytes(reason)),
        "cumulative_logprob": ("FP32", struct.pack("<f", tokens * LOGPROB)),
        "num_input_tokens": ("UINT32", struct.pack("<I", PROMPT_TOKENS)),
        "num_output_tokens": ("UINT32", struct.pack("<I", 1)),
    }
    response = service_pb2.ModelInferResponse(id=sample_id)
    for name, (kind, content) in outputs.items():
        response.outputs.add(name=name, datatype=kind, shape=[1])
        response.raw_output_contents.append(content)
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def _bytes(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


@asynccontextmanager
async def served(
    *chunks: Chunk, steps: bool = True, **fields: Any
) -> AsyncIterator[tuple[Generation, Triton]]:
    """A core with one model, `far`, on a fake Triton."""
    triton, server = Triton(*chunks), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    entry = TritonEntry.model_validate(
        {
            "name": "far",
            "backend": "triton",
            "address": f"127.0.0.1:{port}",
            "shape": {"active_parameters": 1e9},
            "steps": steps,
            **fields,
        }
    )
    backend = TritonBackend(entry, "USD")
    try:
        yield make_core(backend), triton
    finally:
        await backend.close()
        await server.stop(None)


def begin(count: int = 1, sampling: Sampling = ONE_STEP, **fields: Any) -> StartRound:
    return start("far", branches=[Branch(samples=count, prefix="17*24\n")], sampling=sampling, **fields)


def said(*texts: str, reason: str = "stop") -> Sequence[Chunk]:
    """These tokens, the last of which ends the sample."""
    return [*((text, "None") for text in texts[:-1]), (texts[-1], reason)]


async def test_one_step_is_a_stop_text_that_is_kept() -> None:
    async with served(*said("= ", "408", "\n")) as (core, triton):
        made, usage = await generate(core, begin(2))
    assert [one["stop"] for one in triton.asked] == [["\n"]] * 2
    assert all(one["include_stop_str_in_output"] is True for one in triton.asked)
    assert [(one.text, one.finish_reason) for one in made] == [("= 408\n", FINISH_REASON_STEP)] * 2
    assert [[(step.end, step.tokens) for step in one.steps] for one in made] == [[(6, 3)]] * 2
    assert [one.logprob for one in made] == [3 * LOGPROB] * 2
    assert (usage.completion_tokens, usage.prompt_tokens) == (6, 2 * PROMPT_TOKENS)
    assert usage.unseen_tokens == usage.aborted_tokens == 0


@pytest.mark.parametrize(
    ("texts", "reason", "finish"),
    [
        (("= ", "408", ""), "stop", FINISH_REASON_STOP),
        (("",), "stop", FINISH_REASON_STOP),
        (("= ", "408"), "length", FINISH_REASON_LENGTH),
        (("= ", "408\n", ""), "stop", FINISH_REASON_STEP),
        # A stop text knows nothing of blank lines.
        (("\n",), "stop", FINISH_REASON_STEP),
    ],
    ids=["the model's end", "nothing more", "length", "an end without text", "a blank line"],
)
async def test_each_end_of_a_step_is_told_apart(texts: tuple[str, ...], reason: str, finish: int) -> None:
    async with served(*said(*texts, reason=reason)) as (core, _):
        (one,), usage = await generate(core, begin())
    assert (one.text, one.finish_reason) == ("".join(texts), finish)
    assert usage.completion_tokens == one.tokens == len(texts)


async def test_a_line_end_is_no_end_where_no_step_was_asked_for() -> None:
    async with served(*said("a\n", "b\n")) as (core, triton):
        (one,), _ = await generate(core, begin(sampling=Sampling(stop=["END"])))
    assert (one.text, one.finish_reason) == ("a\nb\n", FINISH_REASON_STOP)
    assert triton.asked[0]["stop"] == ["END"]
    assert "include_stop_str_in_output" not in triton.asked[0]


async def test_steps_that_are_aborted_are_billed_for_what_came() -> None:
    async with served(("= ", "None"), ("408", "None")) as (core, triton):
        call = Call(core, begin(2, stream_text=True))
        for _ in range(4):
            assert (await call.next()).HasField("delta")
        call.abort()
        responses = await call.rest()
        async with asyncio.timeout(10):
            await triton.cancelled.wait()
    made, usage = samples(responses), responses[-1].usage
    assert [(one.text, one.finish_reason) for one in made] == [("= 408", FINISH_REASON_ABORTED)] * 2
    assert (usage.aborted_tokens, usage.unseen_tokens) == (4, 2 * UNSEEN_TOKENS)


async def test_a_model_whose_entry_says_nothing_of_steps_has_none() -> None:
    async with served(steps=False) as (core, triton):
        (model,) = (await core.describe(None)).models  # type: ignore[arg-type]
        assert not model.capabilities.steps
        with pytest.raises(InvalidArgument, match="far cannot end a sample after a step"):
            await generate(core, begin())
    assert not triton.asked


async def test_a_branch_with_turns_of_its_own_is_another_prompt() -> None:
    branches = [
        Branch(samples=1, turns=[Message(role="user", content=words)]) for words in ("sure?", "critique")
    ]
    async with served(*said("4")) as (core, triton):
        await generate(core, start("far", branches=branches))
    assert sorted(triton.prompts) == ["critique", "sure?"]


@pytest.mark.parametrize(
    ("chunks", "fields", "says"),
    [
        ([], {"first_token_seconds": 0.1}, "did not begin within 0.1 seconds"),
        ([("= ", "None")], {"next_token_seconds": 0.1}, "sent nothing for 0.1 seconds"),
    ],
)
async def test_a_server_that_falls_silent_is_given_up_and_what_came_is_billed(
    chunks: Sequence[Chunk], fields: dict[str, float], says: str
) -> None:
    async with served(*chunks, **fields) as (core, triton):
        call = Call(core, begin(2))
        told = await anext(call.responses)
        with pytest.raises(Unavailable, match=says):
            await anext(call.responses)
        await asyncio.wait_for(triton.cancelled.wait(), 5)
    assert told.usage.aborted_tokens == 2 * len(chunks)
