"""Verification by a model on a Triton server, behind plain tensors.

The contract (docker/triton/README.md has it, and docker/triton/models/onnx a model that keeps it): one
request for each chain, with the rendered prompt and the text of each step; scores for the steps, and the
number of tokens that were read, come back. What Triton says of one request, or does not say in time, concerns
that chain alone; where it cannot be reached, or does not serve the model, for any of them, it is unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from isoflop.errors import Unavailable
from isoflop.v1.common_pb2 import Message
from isoflop.v1.verification_pb2 import Chain, Verifier

from services.common.catalog import CatalogError
from services.common.template import ChatTemplate
from services.verification.backends import Scored, Spent, Unscorable, score_each
from services.verification.catalog import TritonEntry
from services.verification.steps import texts


class TritonBackend:
    """Scores steps by one model of a Triton server."""

    whole = False

    def __init__(self, entry: TritonEntry, currency: str) -> None:
        """Raises CatalogError where the client is not installed; the server is first asked for scores."""
        try:
            from tritonclient.grpc import InferInput
            from tritonclient.utils import InferenceServerException

            from services.common.triton import make_client
        except ImportError:
            raise CatalogError(
                f"verifier {entry.name}: Triton's client is not installed; "
                "pip install 'isoflop-suite[triton]'"
            ) from None
        try:
            self._template = ChatTemplate(entry.chat_template)
        except ValueError as error:
            raise CatalogError(f"verifier {entry.name}: {error}") from None
        self.name = entry.name
        self._entry = entry
        self._model = entry.model or entry.name
        self._slots = asyncio.Semaphore(entry.parallel)
        self._input: Any = InferInput
        self._error: type[Exception] = InferenceServerException
        self._make_client = make_client
        self._client: Any = None
        self._verifier = Verifier(
            name=entry.name,
            backend="triton",
            shape=entry.shape.message(),
            context=entry.context,
            price=entry.price.message(currency),
            scoring=entry.scoring_or("min"),
            extra_tokens=1,  # The line end of the last step.
        )

    async def describe(self) -> Verifier:
        """As its entry says."""
        return self._verifier

    async def score(
        self, messages: Sequence[Message], chains: Sequence[Chain]
    ) -> Sequence[Scored | Unscorable]:
        """A request for each chain; cancelling cancels them."""
        if self._client is None:
            # Made here because the channel belongs to the event loop that it is made in.
            self._client = self._make_client(self._entry.address)
        prompt = self._tensor("prompt", [self._template.render(messages)])
        return await score_each(partial(self._ask, prompt), chains)

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()

    async def _ask(self, prompt: Any, chain: Chain) -> Scored | Unscorable:
        try:
            inputs = [prompt, self._tensor("steps", texts(chain))]
            async with self._slots:
                result = await self._client.infer(
                    self._model, inputs, request_id=chain.id, client_timeout=self._entry.timeout_seconds
                )
        except Unscorable as error:
            return error
        except self._error as error:
            return self._refused(error)
        return self._outcome(result, len(chain.steps))

    def _tensor(self, name: str, values: Sequence[str]) -> Any:
        tensor = self._input(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=object))
        return tensor

    def _outcome(self, result: Any, steps: int) -> Scored | Unscorable:
        tokens, scores = result.as_numpy("tokens"), result.as_numpy("scores")
        if fault := _fault("tokens", tokens, np.int32, (1,)):
            return Unscorable(fault)
        if tokens[0] < 0:
            return Unscorable(f"Triton's output tokens is {tokens[0]}")
        spent = Spent.reading(self._verifier.shape, int(tokens[0]))
        if fault := _fault("scores", scores, np.float32, (steps,)):
            return Unscorable(fault, spent)
        return Scored(scores.tolist(), spent)

    def _refused(self, error: Any) -> Unscorable:
        """What Triton said of one request; raises Unavailable where that is of no chain's making."""
        status, said = str(error.status()), str(error.message() or "no reason given").splitlines()[0][:300]
        address, model = self._entry.address, self._model
        if "unknown model" in said or "not ready" in said:
            raise Unavailable(f"Triton at {address} does not serve {model!r}: {said}")
        if "UNAVAILABLE" in status:
            raise Unavailable(f"Triton at {address} does not answer: is it running?")
        if "DEADLINE_EXCEEDED" in status:
            seconds = self._entry.timeout_seconds
            raise Unavailable(f"Triton at {address} did not score within {seconds:g} seconds")
        return Unscorable(f"Triton's model {model!r} refuses it: {said}")


def _fault(name: str, output: Any, kind: type[np.number[Any]], shape: tuple[int, ...]) -> str:
    """What is wrong with an output tensor; empty where nothing is."""
    if output is None:
        return f"Triton gave no output {name}"
    if output.dtype != kind or output.shape != shape:
        found, wanted = f"{output.dtype} {list(output.shape)}", f"{kind.__name__} {list(shape)}"
        return f"Triton's output {name} is {found}, and should be {wanted}"
    return ""
