"""The generation service in other processes, as its callers see it.

Where it has several replicas that are named one by one, all rounds of a query go to the same one, so that
what they continue is in its engine's cache: the replica whose hash with the query's id is greatest, of those
that are not known to be down (rendezvous hashing: Thaler and Ravishankar 1998).
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
from isoflop.rpc import from_rpc_error
from isoflop.v1.generation_pb2 import (
    DescribeModelsRequest,
    DescribeModelsResponse,
    GenerateRequest,
    GenerateResponse,
)
from isoflop.v1.generation_pb2_grpc import GenerationServiceStub

from services.common.channels import Channels


class RemoteGeneration:
    """Calls the service; raises the errors of isoflop.errors."""

    def __init__(self, targets: str, channels: Channels) -> None:
        """`targets`: host:port, or several with commas between them."""
        self._channels = {target: channels.to(target) for target in targets.split(",")}

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round; closing the generator cancels the call."""
        first = await anext(requests, GenerateRequest())  # Without one the service says what is missing.
        target = self._chosen(first.start.query_id)
        call = self._stub(target).Generate(_with(first, requests))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, _named(target)) from None
        finally:
            call.cancel()

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        """The models: each replica has the same."""
        target = self._chosen("")
        try:
            response: DescribeModelsResponse = await self._stub(target).DescribeModels(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, _named(target)) from None
        return response

    def _chosen(self, query_id: str) -> str:
        """The replica for a query."""
        targets: Sequence[str] = [
            target
            for target, channel in self._channels.items()
            if channel.get_state(try_to_connect=True) != grpc.ChannelConnectivity.TRANSIENT_FAILURE
        ]
        return max(targets or self._channels, key=lambda target: _hash(f"{target} {query_id}"))

    def _stub(self, target: str) -> Any:
        return GenerationServiceStub(self._channels[target])


def _named(target: str) -> str:
    return f"the generation service at {target}"


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


async def _with(
    first: GenerateRequest, rest: AsyncIterator[GenerateRequest]
) -> AsyncIterator[GenerateRequest]:
    yield first
    async for request in rest:
        yield request
