"""Generation by Triton, behind the tensors of its vLLM backend.

One stream carries a round: a request for each sample, with seeds of their own, matched by id. Closing
the stream cancels them all in the backend, so the stream is closed once every sample of the round is
aborted; a single aborted sample runs on unseen among the others, and its tokens are billed as aborted.
A closed stream says no final usage: the tokens that came are billed, and what the backend may have
computed by then is reported as unseen.

So one step cannot be hung up on, either: a line end is its stop text, and is kept in the text, so that a text
without one is seen to have been ended by the model. Of blank lines a stop text knows nothing: one at a
sample's beginning is all there is of that step.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from isoflop.errors import InvalidArgument, Unavailable
from isoflop.v1.common_pb2 import (
    FINISH_REASON_ABORTED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STEP,
    FINISH_REASON_STOP,
    SEED_PROMISE_ALONE,
    Capabilities,
    Model,
)

from services.common.catalog import CatalogError
from services.common.template import ChatTemplate
from services.generation.backends import End, Job, Piece, Round
from services.generation.catalog import TritonEntry

UNSEEN_TOKENS = 64
"""Tokens that a cancelled request may have generated and not told of, at most. Measured with the embedded
models: about 20 at 6,500 tokens a second, most of them on their way; 5 to 8 for a slower model; more on a
machine that is busy with other things."""

NUMBERS = {"FP32": "<f", "UINT32": "<I", "INT32": "<i", "INT64": "<q", "UINT64": "<Q", "FP64": "<d"}
"""How numbers lie in a tensor."""

FLAGS = (
    "exclude_input_in_output",
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_num_input_tokens",
    "return_num_output_tokens",
)


@dataclass
class Progress:
    """What has come of one sample."""

    one_step: bool
    """It is to end with its line."""
    line_ended: bool = False
    """Its text so far ends with a line end."""
    prompt_tokens: int = 0
    logprob: float = 0.0
    """Cumulative, as far as it was told."""


class TritonBackend:
    """Serves one model of a Triton server."""

    def __init__(self, entry: TritonEntry, currency: str) -> None:
        """Raises CatalogError where the client is not installed; the server is first asked by a round."""
        try:
            from tritonclient.grpc import InferInput

            from services.common.triton import make_client
        except ImportError:
            raise CatalogError(
                f"model {entry.name}: Triton's client is not installed; pip install 'isoflop-suite[triton]'"
            ) from None
        try:
            self._template = ChatTemplate(entry.chat_template)
        except ValueError as error:
            raise CatalogError(f"model {entry.name}: {error}") from None
        self._input: Any = InferInput
        self._make_client = make_client
        self._client: Any = None
        self._entry = entry
        self.model = Model(
            name=entry.name,
            backend="triton",
            shape=entry.shape.message(),
            context=entry.context,
            price=entry.price.message(currency),
            capabilities=Capabilities(prefix=True, seed=SEED_PROMISE_ALONE, logprobs=True, steps=entry.steps),
        )

    async def run(self, round: Round) -> None:
        """Sample all jobs on one stream."""
        if self._client is None:
            # Made here because the channel belongs to the event loop that it is made in.
            self._client = self._make_client(self._entry.address)
        requests = self._requests(round.jobs)
        stream = self._client.stream_infer(_each(requests))
        progress = {job.sample_id: Progress(job.sampling.one_step) for job in round.jobs}
        reader = asyncio.create_task(self._read(stream, round, progress))
        aborted = asyncio.create_task(round.until_all_aborted())
        try:
            await asyncio.wait({reader, aborted}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        finally:
            aborted.cancel()
            # Leaving the loop over it does not cancel a stream.
            stream.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        # All that is left has been aborted.
        for sample_id, seen in progress.items():
            end = End(FINISH_REASON_ABORTED, seen.prompt_tokens, unseen_tokens=UNSEEN_TOKENS)
            round.put(Piece(sample_id, end=end))

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()

    def _requests(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """A request for each job; what jobs of one prefix share is made once."""
        flags = [self._tensor(name, True) for name in ("stream", *FLAGS)]
        texts: dict[tuple[int, str], Any] = {}
        for job in jobs:
            if job.place not in texts:
                prompt = self._template.render(job.messages, job.prefix).encode()
                texts[job.place] = self._tensor("text_input", prompt)
        return [
            {
                "model_name": self._entry.model or self._entry.name,
                "request_id": job.sample_id,
                "inputs": [
                    texts[job.place],
                    self._tensor("sampling_parameters", json.dumps(self._parameters(job)).encode()),
                    *flags,
                ],
            }
            for job in jobs
        ]

    def _parameters(self, job: Job) -> dict[str, Any]:
        """vLLM's sampling parameters of one job."""
        sampling = job.sampling
        parameters: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p or 1.0,
            # Without it the backend tells NaN for the cumulative log-probability.
            "logprobs": 0,
        }
        if sampling.max_tokens or self._entry.context:
            parameters["max_tokens"] = sampling.max_tokens or self._entry.context
        if sampling.one_step:
            parameters |= {"stop": ["\n"], "include_stop_str_in_output": True}
        elif sampling.stop:
            parameters["stop"] = list(sampling.stop)
        if job.seed is not None:
            parameters["seed"] = job.seed
        return parameters

    def _tensor(self, name: str, value: bytes | bool) -> Any:
        tensor = self._input(name, [1], "BYTES" if isinstance(value, bytes) else "BOOL")
        tensor.set_data_from_numpy(np.array([value], dtype=object if isinstance(value, bytes) else bool))
        return tensor

    async def _read(self, stream: Any, round: Round, progress: dict[str, Progress]) -> None:
        """Take responses until each sample has ended; ended samples leave `progress`."""
        entry, clock, begun = self._entry, asyncio.get_running_loop().time, False
        try:
            async with asyncio.timeout(entry.first_token_seconds) as limit:
                async for result, error in stream:
                    if error is not None:
                        raise _refused(str(error.message()), entry)
                    self._take(result, round, progress)
                    begun = True
                    limit.reschedule(clock() + entry.next_token_seconds)
        except TimeoutError:
            if progress:
                late = f"sent nothing for {entry.next_token_seconds:g} seconds"
                if not begun:
                    late = f"did not begin within {entry.first_token_seconds:g} seconds"
                raise Unavailable(f"Triton at {entry.address} {late}") from None
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(
                    f"Triton at {self._entry.address} does not answer: is it running?"
                ) from None
            raise Unavailable(f"Triton at {self._entry.address}: {error.details()}") from None
        if progress:
            raise Unavailable(f"Triton at {self._entry.address} ended the stream early")

    @staticmethod
    def _take(result: Any, round: Round, progress: dict[str, Progress]) -> None:
        """One response into its sample."""
        response = result.get_response()
        sample_id = response.id
        seen = progress.get(sample_id)
        if seen is None:
            return
        piece = _piece(sample_id, response, seen, round.aborted(sample_id))
        if piece.end is not None:
            del progress[sample_id]
        round.put(piece)


async def _each(requests: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for request in requests:
        yield request


def _piece(sample_id: str, response: Any, seen: Progress, aborted: bool) -> Piece:
    """One response as a piece."""
    values = _outputs(response)
    reason = values.get("finish_reason", b"").decode("utf-8", "replace")
    seen.prompt_tokens = values.get("num_input_tokens", seen.prompt_tokens)
    cumulative = values.get("cumulative_logprob", math.nan)
    logprob = None if math.isnan(cumulative) else cumulative - seen.logprob
    seen.logprob += logprob or 0.0
    text = values.get("text_output", b"").decode("utf-8", "replace")
    if text:
        seen.line_ended = text.endswith("\n")
    end = None
    if reason and reason != "None":
        finish = FINISH_REASON_LENGTH if reason == "length" else FINISH_REASON_STOP
        if finish == FINISH_REASON_STOP and seen.one_step and seen.line_ended:
            finish = FINISH_REASON_STEP
        end = End(FINISH_REASON_ABORTED if aborted else finish, seen.prompt_tokens)
    return Piece(sample_id, text, values.get("num_output_tokens", 0), logprob, end)


def _outputs(response: Any) -> dict[str, Any]:
    """The output tensors of a response, each of one element, by name.

    Read from the message itself: by way of numpy a busy reader would fall behind the model, and an abort
    would come late.
    """
    values: dict[str, Any] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        try:
            if output.datatype == "BYTES":
                (length,) = struct.unpack_from("<I", content)
                values[output.name] = content[4 : 4 + length]
            else:
                (values[output.name],) = struct.unpack_from(NUMBERS[output.datatype], content)
        except (struct.error, KeyError):
            raise Unavailable(
                f"Triton's output {output.name} is no {output.datatype} of one element"
            ) from None
    return values


def _refused(message: str, entry: TritonEntry) -> Exception:
    """An error that came in the stream as one of ours."""
    name, said = entry.model or entry.name, message.splitlines()[0] if message else "no reason given"
    if any(fault in said for fault in ("unknown model", "not ready", "not healthy")):
        return Unavailable(f"Triton at {entry.address} does not serve {name!r}: {said}")
    return InvalidArgument("sampling", f"Triton's model {name!r} refuses it: {said}")
