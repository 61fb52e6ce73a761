"""The generation service in another process, as its callers see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
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

    def __init__(self, target: str, channels: Channels) -> None:
        self._what = f"the generation service at {target}"
        self._stub: Any = GenerationServiceStub(channels.to(target))

    async def generate(
        self, requests: AsyncIterator[GenerateRequest]
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One round; closing the generator cancels the call."""
        call = self._stub.Generate(requests)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._what) from None
        finally:
            call.cancel()

    async def describe(self, request: DescribeModelsRequest) -> DescribeModelsResponse:
        """The models."""
        try:
            response: DescribeModelsResponse = await self._stub.DescribeModels(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._what) from None
        return response
